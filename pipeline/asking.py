"""One query from its words to its reply. Knows not who reads it and when."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from typing import NamedTuple

from pipeline.dialogue import CancelledError, Query, Reply
from pipeline.links import Links, links_of
from pipeline.schemas import Answer, Evidence, Gap
from pipeline.spans import AskedSpan, asked_span, origin_of
from streamkv.config import ServeConfig
from streamkv.conversation import Turn
from streamkv.errors import QuestionError
from streamkv.memory import VideoMemory
from streamkv.question import OnToken, Question, check_question
from streamkv.store import StreamRecord
from streamkv.types import Answer as EngineAnswer

MAX_GAPS = 20
"""Gaps that an answer names, the latest ones."""
EARLIER_QUESTIONS = 4
"""All earlier turns together may be as long as this many of the longest questions."""


class Past(NamedTuple):
    """A stream as a query finds it."""

    memory: VideoMemory
    record: StreamRecord


class Asking:
    """A query and its outcome; None while it is waiting or under way."""

    def __init__(self, query: Query, cancelled: threading.Event, on_text: OnToken | None = None) -> None:
        """`on_text` hears each new piece of the answer, until `cancelled` is set."""
        self.query, self.cancelled = query, cancelled
        self.outcome: Reply | Exception | None = None
        self._on_text = on_text
        self._span: AskedSpan | None = None
        self._record: StreamRecord | None = None
        self._max_new_tokens = 0
        self._max_clip_s = 0.0

    def checked(self, serve: ServeConfig) -> Query:
        """The query, if it is within limits and somebody waits for its answer.

        Raises:
            QuestionError, CancelledError: otherwise.
        """
        if self.cancelled.is_set():
            raise CancelledError
        check_question(self.query.question, serve.max_question_chars)
        _check_earlier(self.query.earlier, EARLIER_QUESTIONS * serve.max_question_chars)
        return self.query

    def question(self, past: Past, serve: ServeConfig) -> Question:
        """What an engine is to answer. QuestionError when it names a time of which there is nothing."""
        self._span = asked = asked_span(self.query, past.memory, past.record, serve)
        self._record, self._max_clip_s = past.record, serve.max_clip_s
        self._max_new_tokens = self.query.max_new_tokens or serve.max_new_tokens
        return Question(
            past.memory,
            asked.question if asked else self.query.question,
            span=asked.span if asked else None,
            earlier=self.query.earlier,
            max_new_tokens=self._max_new_tokens,
            min_confidence=serve.min_confidence,
            on_token=self._tell,
        )

    def settle(self, found: EngineAnswer | Exception) -> None:
        """With what the engine made of the question."""
        self.outcome = found if isinstance(found, Exception) else self._reply(found)

    def _tell(self, text: str) -> None:
        if self.cancelled.is_set():
            raise CancelledError
        if self._on_text is not None:
            self._on_text(text)

    def _reply(self, found: EngineAnswer) -> Reply:
        record = self._record
        assert record is not None, "question() comes first"
        start_s, end_s = self._span.span if self._span else (-math.inf, math.inf)
        end_s = min(end_s, found.as_of_s)
        gaps = [gap for gap in record.gaps if gap.start_s <= end_s and gap.end_s > start_s]
        answer = Answer(
            answer=found.text,
            evidence=[
                Evidence(
                    segment=e.segment_no,
                    start_s=e.start_s,
                    end_s=e.end_s,
                    weight=e.weight,
                    **links_to(record, e.start_s, e.end_s, self._max_clip_s)._asdict(),
                )
                for e in found.evidence
            ],
            confidence=found.confidence,
            as_of_s=found.as_of_s,
            timings_ms=found.timings_ms,
            gaps=[Gap(start_s=g.start_s, end_s=g.end_s, reason=g.reason) for g in gaps[-MAX_GAPS:]],
            span=self._span.shown() if self._span else None,
        )
        return Reply(
            answer=answer,
            prompt_tokens=found.num_prompt_tokens,
            completion_tokens=found.num_tokens,
            finish="stop" if found.num_tokens < self._max_new_tokens else "length",
        )


def links_to(record: StreamRecord, start_s: float, end_s: float, max_clip_s: float) -> Links:
    """Where the pictures of a span are found; nowhere for a live source."""
    if origin_of(record) is not None:
        return Links()
    return links_of(record.name, start_s, end_s, max_clip_s)


def _check_earlier(turns: Sequence[Turn], max_chars: int) -> None:
    """QuestionError when a conversation has grown too long."""
    found = sum(len(turn.text) for turn in turns)
    if found > max_chars:
        raise QuestionError(
            f"earlier turns: got {found} characters, allowed {max_chars} together; leave the oldest out"
        )
