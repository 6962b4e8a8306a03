"""Times that an asker names, by the wall clock or by the stream's own, as a span of the stream."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo

from streamkv.errors import QuestionError
from streamkv.excerpt import Span

Moment = float | str
"""Seconds of stream time, or an ISO 8601 time where the stream's wall clock is known."""

MAX_AHEAD_S = 60.0
"""How far an asker's clock may be ahead of ours."""


@dataclass(frozen=True)
class StreamClock:
    """One stream's time at the moment of a question."""

    as_of_s: float  # stream time up to which there is footage
    now_s: float  # seconds since 1970
    origin_s: float | None = None  # seconds since 1970 at stream time 0; None: nobody knows
    zone: tzinfo = UTC  # of times that name none

    @property
    def latest_s(self) -> float:
        """What "the last minutes" count from: now, or the footage's end where its date is not known."""
        return self.as_of_s if self.origin_s is None else self.now_s - self.origin_s

    def show(self, stream_s: float) -> str:
        """As the asker would name it: an ISO time, or seconds."""
        if self.origin_s is None:
            return f"{stream_s:g} s"
        return datetime.fromtimestamp(self.origin_s + stream_s, self.zone).isoformat(timespec="seconds")


def named_span(start: Moment | None, end: Moment | None, clock: StreamClock) -> Span | None:
    """The span between the two; a side that is None is open; None when both are.

    Raises:
        QuestionError: one cannot be read or lies in the future, or they are in the wrong order.
    """
    if start is None and end is None:
        return None
    from_s = -math.inf if start is None else _stream_time("from", start, clock)
    to_s = math.inf if end is None else _stream_time("to", end, clock)
    if from_s >= to_s:
        raise QuestionError(f"from: got {start!r}, to: got {end!r}; `from` must come before `to`")
    return Span(from_s, to_s)


def _stream_time(name: str, moment: Moment, clock: StreamClock) -> float:
    seconds = _seconds(moment)
    if seconds is None:
        seconds = _since_origin(name, _parsed(name, str(moment), clock.zone), clock)
    if not math.isfinite(seconds):
        raise QuestionError(f"{name}: got {moment!r}, allowed seconds of the stream or an ISO time")
    if clock.origin_s is not None and seconds > clock.latest_s + MAX_AHEAD_S:
        raise QuestionError(
            f"{name}: got {moment!r}, which is in the future: it is {clock.show(clock.latest_s)}, "
            f"{clock.latest_s:.0f} s into this stream"
        )
    return seconds


def _seconds(moment: Moment) -> float | None:
    try:
        return float(moment)
    except ValueError:
        return None


def _parsed(name: str, text: str, zone: tzinfo) -> datetime:
    try:
        time = datetime.fromisoformat(text.strip())
    except ValueError:
        raise QuestionError(
            f"{name}: got {text[:80]!r}, allowed seconds of the stream or an ISO time such as 2026-01-31T14:07:03"
        ) from None
    return time if time.tzinfo is not None else time.replace(tzinfo=zone)


def _since_origin(name: str, time: datetime, clock: StreamClock) -> float:
    if clock.origin_s is None:
        raise QuestionError(
            f"{name}: got the time {time.isoformat()}, but when this stream was recorded is not known (only live "
            "sources are dated); name seconds of the stream"
        )
    return time.timestamp() - clock.origin_s
