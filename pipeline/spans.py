"""Which part of a stream's past a question is about, and how that was said."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from datetime import UTC, tzinfo
from zoneinfo import ZoneInfo

from pipeline.dialogue import Query
from pipeline.schemas import Span as ShownSpan
from streamkv.config import ServeConfig
from streamkv.errors import QuestionError
from streamkv.excerpt import Span, between
from streamkv.live import is_live
from streamkv.memory import VideoMemory
from streamkv.phrases import find_phrase, phrase_span, without
from streamkv.store import StreamRecord
from streamkv.when import StreamClock, named_span


@dataclass(frozen=True)
class AskedSpan:
    """A part of the past that holds at least one segment."""

    span: Span
    words: str | None  # of the question, that name it; None: it was named beside the question
    question: str  # without them

    def shown(self) -> ShownSpan:
        """As an answer names it: JSON has no infinity."""
        start_s, end_s = (side if math.isfinite(side) else None for side in self.span)
        return ShownSpan(start_s=start_s, end_s=end_s, words=self.words)


def asked_span(
    query: Query, memory: VideoMemory, record: StreamRecord, config: ServeConfig
) -> AskedSpan | None:
    """What the query names, else what its question says in words; None: neither, so all of the past.

    Raises:
        QuestionError: it cannot be read, lies in the future, or nothing of the stream is in it.
    """
    clock = StreamClock(memory.as_of_s, time.time(), origin_of(record), zone_of(config))
    named = named_span(query.start, query.end, clock)
    return question_span(query.question, named, memory, clock, config)


def question_span(
    question: str, named: Span | None, memory: VideoMemory, clock: StreamClock, config: ServeConfig
) -> AskedSpan | None:
    """`named`, which was beside the question, else what its words say; None: neither.

    Raises:
        QuestionError: nothing of the stream is in it.
    """
    if named is not None:
        between(memory, named)
        return AskedSpan(named, None, question)
    phrase = find_phrase(question) if config.time_phrases else None
    span = phrase_span(phrase, clock) if phrase is not None else None
    if phrase is None or span is None:
        return None
    try:
        between(memory, span)
    except QuestionError as exc:
        raise QuestionError(f"{phrase.words!r}: {exc}; or leave these words out") from None
    return AskedSpan(span, phrase.words, without(question, phrase.words))


def origin_of(record: StreamRecord) -> float | None:
    """Seconds since 1970 at the stream's time 0; None for an archive: when it was recorded is not known."""
    return record.created_at if record.config.get("is_live", is_live(record.uri)) else None


def zone_of(config: ServeConfig) -> tzinfo:
    """Of times that name none."""
    return UTC if config.time_zone == "UTC" else ZoneInfo(config.time_zone)
