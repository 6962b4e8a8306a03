"""Which part of a stream's past a question is about, and how that was said."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, tzinfo
from zoneinfo import ZoneInfo

from pipeline.dialogue import Query
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


def asked_span(
    query: Query, memory: VideoMemory, record: StreamRecord, config: ServeConfig
) -> AskedSpan | None:
    """What the query names, else what its question says in words; None: neither, so all of the past.

    Raises:
        QuestionError: it cannot be read, lies in the future, or nothing of the stream is in it.
    """
    clock = StreamClock(memory.as_of_s, time.time(), origin_of(record), _zone(config.time_zone))
    span = named_span(query.start, query.end, clock)
    if span is not None:
        between(memory, span)
        return AskedSpan(span, None, query.question)
    phrase = find_phrase(query.question) if config.time_phrases else None
    span = phrase_span(phrase, clock) if phrase is not None else None
    if phrase is None or span is None:
        return None
    try:
        between(memory, span)
    except QuestionError as exc:
        raise QuestionError(f"{phrase.words!r}: {exc}; or leave these words out") from None
    return AskedSpan(span, phrase.words, without(query.question, phrase.words))


def origin_of(record: StreamRecord) -> float | None:
    """Seconds since 1970 at the stream's time 0; None for an archive: when it was recorded is not known."""
    return record.created_at if record.config.get("is_live", is_live(record.uri)) else None


def _zone(name: str) -> tzinfo:
    return UTC if name == "UTC" else ZoneInfo(name)
