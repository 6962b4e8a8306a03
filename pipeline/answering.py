"""Answers questions from the store: a model, an engine, and the streams that were asked about lately.

Any process can answer for any stream; one that was asked before still has its index.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch

from pipeline.dialogue import Query, Reply
from pipeline.schemas import Answer, Evidence, Gap, Span
from pipeline.spans import AskedSpan, asked_span
from streamkv.config import PipelineConfig
from streamkv.conversation import Turn
from streamkv.engine import Engine
from streamkv.errors import QuestionError, SegmentGoneError, StoreError
from streamkv.latest import LatestPast
from streamkv.memory import VideoMemory
from streamkv.models import load_model
from streamkv.question import check_question
from streamkv.store import Gap as StoredGap
from streamkv.store import ModelIdentity, SegmentStore, StreamReader, StreamSnapshot
from streamkv.types import Answer as EngineAnswer
from streamkv.types import Segment

MAX_WARM = 256
"""Streams whose index is kept; the least recently asked is forgotten first."""
MAX_WINDOWS = 8
"""Streams that are ingested whose window is kept; each holds `n_local` tokens in every layer."""
MAX_GAPS = 20
"""Gaps that an answer names, the latest ones."""
EARLIER_QUESTIONS = 4
"""All earlier turns together may be as long as this many of the longest questions."""


class CancelledError(Exception):
    """Nobody waits for the answer any more."""


LatestSegments = Callable[[str, torch.device], list[Segment]]
"""What a stream has shown and is not yet durable."""


class Answerer:
    """One question at a time: callers take turns."""

    def __init__(self, config: PipelineConfig, latest: LatestSegments | None = None) -> None:
        """`latest`: None where nobody ingests."""
        self.config = config
        self._latest = latest if config.serve.read_open else None
        self._latest_pasts: OrderedDict[str, LatestPast] = OrderedDict()
        self._model = load_model(config.model)
        self.engine = Engine(self._model, config.method)
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
        serve = self.config.serve
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

        def found_now() -> tuple[EngineAnswer, AskedSpan | None, Sequence[StoredGap]]:
            memory = self._memory(query.stream_id)
            record = self.opened().record(query.stream_id)  # after the memory: gaps up to its end are in it
            asked = asked_span(query, memory, record, serve)
            found = self.engine.answer(
                memory,
                asked.question if asked else question,
                span=asked.span if asked else None,
                earlier=query.earlier,
                max_new_tokens=max_new_tokens,
                min_confidence=serve.min_confidence,
                on_token=on_token,
            )
            return found, asked, record.gaps

        try:
            found, asked, noted = found_now()
        except SegmentGoneError:
            if has_begun:
                raise
            found, asked, noted = found_now()  # of what retention has left
        start_s, end_s = asked.span if asked else (-math.inf, math.inf)
        end_s = min(end_s, found.as_of_s)
        gaps = [gap for gap in noted if gap.start_s <= end_s and gap.end_s > start_s]
        answer = Answer(
            answer=found.text,
            evidence=[
                Evidence(segment=e.segment_no, start_s=e.start_s, end_s=e.end_s, weight=e.weight)
                for e in found.evidence
            ],
            confidence=found.confidence,
            as_of_s=found.as_of_s,
            timings_ms=found.timings_ms,
            gaps=[Gap(start_s=g.start_s, end_s=g.end_s, reason=g.reason) for g in gaps[-MAX_GAPS:]],
            span=_shown(asked),
        )
        return Reply(
            answer=answer,
            prompt_tokens=found.num_prompt_tokens,
            completion_tokens=found.num_tokens,
            finish="stop" if found.num_tokens < max_new_tokens else "length",
        )

    def committed(self, stream_id: str) -> StreamSnapshot:
        """What is durable of the stream; StoreError when that is nothing."""
        memory = self._reader(stream_id).refresh()
        if not memory.segments:
            raise StoreError(
                f"stream {stream_id!r}: nothing is committed yet, or all of it was deleted by retention; wait for its "
                "first segment, then ask again"
            )
        return memory

    def _memory(self, stream_id: str) -> VideoMemory:
        """All that the stream has shown up to now, but for what retention deleted; StoreError when that is nothing."""
        memory = self._past_and_latest(stream_id)
        if not memory.segments:
            raise StoreError(
                f"stream {stream_id!r}: it has shown nothing yet, or all of it was deleted by retention, so there is "
                "nothing to answer from; wait for its next frame, then ask again"
            )
        return memory

    def _past_and_latest(self, stream_id: str) -> VideoMemory:
        reader, record = self._reader(stream_id), self.opened().record(stream_id)
        if self._latest is None or record.state != "ingesting":
            return reader.refresh()
        segments = self._latest(stream_id, self._model.device)
        past = reader.refresh()  # second: what is committed in between is then in both, and not in neither
        latest_past = self._latest_pasts.pop(stream_id, None) or LatestPast(self.engine)
        self._latest_pasts[stream_id] = latest_past
        if len(self._latest_pasts) > MAX_WINDOWS:
            self._latest_pasts.popitem(last=False)
        return latest_past.joined(past, segments, str(record.config.get("guidance", "")))

    def _reader(self, stream_id: str) -> StreamReader:
        reader = self._readers.pop(stream_id, None) or self.opened().reader(stream_id)
        self._readers[stream_id] = reader
        while len(self._readers) > MAX_WARM:
            self._readers.popitem(last=False)
        return reader

    def opened(self) -> SegmentStore:
        """The store, which only ingest writes."""
        if self._store is None:  # made by the ingest plane, perhaps after this process started
            self._store = SegmentStore.configured(
                self.config.store, identity=ModelIdentity.of(self._model), read_only=True
            )
        return self._store


def _shown(asked: AskedSpan | None) -> Span | None:
    """JSON has no infinity."""
    if asked is None:
        return None
    start_s, end_s = (side if math.isfinite(side) else None for side in asked.span)
    return Span(start_s=start_s, end_s=end_s, words=asked.words)


def _check_earlier(turns: Sequence[Turn], max_chars: int) -> None:
    """QuestionError when a conversation has grown too long."""
    found = sum(len(turn.text) for turn in turns)
    if found > max_chars:
        raise QuestionError(
            f"earlier turns: got {found} characters, allowed {max_chars} together; leave the oldest out"
        )
