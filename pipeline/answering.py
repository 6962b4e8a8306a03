"""Answers questions from the store: a model, an engine, and the streams that were asked about lately.

Any process can answer for any stream; one that was asked before still has its index.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence

from actors.parts import identity_of
from pipeline.dialogue import Query, Reply
from pipeline.schemas import Answer, Evidence, Gap
from streamkv.config import PipelineConfig
from streamkv.conversation import Turn
from streamkv.engine import Engine, check_question
from streamkv.errors import QuestionError, SegmentGoneError, StoreError
from streamkv.models import load_model
from streamkv.store import SegmentStore, StreamReader, StreamSnapshot
from streamkv.types import Answer as EngineAnswer

MAX_WARM = 256
"""Streams whose index is kept; the least recently asked is forgotten first."""
MAX_GAPS = 20
"""Gaps that an answer names, the latest ones."""
EARLIER_QUESTIONS = 4
"""All earlier turns together may be as long as this many of the longest questions."""


class CancelledError(Exception):
    """Nobody waits for the answer any more."""


class Answerer:
    """One question at a time: callers take turns."""

    def __init__(self, config: PipelineConfig) -> None:
        self._config = config
        self._model = load_model(config.model)
        self._engine = Engine(self._model, config.method)
        self._store: SegmentStore | None = None
        self._readers: OrderedDict[str, StreamReader] = OrderedDict()

    def check_health(self) -> None:
        """Raises when no question can be answered; there is no such state but death."""

    def answer(
        self, query: Query, cancelled: threading.Event, on_text: Callable[[str], None] | None = None
    ) -> Reply:
        """Tells each new piece of the answer's text.

        Raises:
            QuestionError, UnknownStreamError, StoreError: what was asked cannot be answered.
            CancelledError: `cancelled` was set before the end.
        """
        serve = self._config.serve
        question = check_question(query.question, serve.max_question_chars)
        _check_earlier(query.earlier, EARLIER_QUESTIONS * serve.max_question_chars)
        max_new_tokens = query.max_new_tokens or serve.max_new_tokens
        has_begun = False

        def on_token(text: str) -> None:
            nonlocal has_begun
            if cancelled.is_set():
                raise CancelledError
            has_begun = True
            if on_text is not None:
                on_text(text)

        def found_now() -> EngineAnswer:
            memory = self._memory(query.stream_id)
            return self._engine.answer(
                memory, question, earlier=query.earlier, max_new_tokens=max_new_tokens, on_token=on_token
            )

        try:
            found = found_now()
        except SegmentGoneError:
            if has_begun:
                raise
            found = found_now()  # of what retention has left
        gaps = [gap for gap in self._opened().stream(query.stream_id).gaps if gap.start_s <= found.as_of_s]
        answer = Answer(
            answer=found.text,
            evidence=[
                Evidence(segment=e.segment_no, start_s=e.start_s, end_s=e.end_s, weight=e.weight)
                for e in found.evidence
            ],
            as_of_s=found.as_of_s,
            timings_ms=found.timings_ms,
            gaps=[Gap(start_s=g.start_s, end_s=g.end_s, reason=g.reason) for g in gaps[-MAX_GAPS:]],
        )
        return Reply(
            answer=answer,
            prompt_tokens=found.num_prompt_tokens,
            completion_tokens=found.num_tokens,
            finish="stop" if found.num_tokens < max_new_tokens else "length",
        )

    def _memory(self, stream_id: str) -> StreamSnapshot:
        """What the stream has now; StoreError when that is nothing."""
        memory = self._reader(stream_id).refresh()
        if not memory.segments:
            raise StoreError(
                f"stream {stream_id!r}: nothing is committed yet, or all of it was deleted by retention, so there is "
                "nothing to answer from; wait for its next segment, then ask again"
            )
        return memory

    def _reader(self, stream_id: str) -> StreamReader:
        reader = self._readers.pop(stream_id, None) or self._opened().reader(stream_id)
        self._readers[stream_id] = reader
        while len(self._readers) > MAX_WARM:
            self._readers.popitem(last=False)
        return reader

    def _opened(self) -> SegmentStore:
        if self._store is None:  # made by the ingest plane, perhaps after this process started
            self._store = SegmentStore.open(
                self._config.store.root,
                catalog_url=self._config.store.catalog_url,
                identity=identity_of(self._model),
                read_only=True,
            )
        return self._store


def _check_earlier(turns: Sequence[Turn], max_chars: int) -> None:
    """QuestionError when a conversation has grown too long."""
    found = sum(len(turn.text) for turn in turns)
    if found > max_chars:
        raise QuestionError(
            f"earlier turns: got {found} characters, allowed {max_chars} together; leave the oldest out"
        )
