"""`from` and `to`, in seconds or by the wall clock, as a span of the stream."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from streamkv.errors import QuestionError
from streamkv.excerpt import Span
from streamkv.when import Moment, StreamClock, named_span

BORN = datetime(2026, 1, 31, 14, 0, tzinfo=UTC)
LIVE = StreamClock(as_of_s=3590.0, now_s=BORN.timestamp() + 3600, origin_s=BORN.timestamp())
ARCHIVE = StreamClock(as_of_s=600.0, now_s=BORN.timestamp() + 3600)


@pytest.mark.parametrize(
    ("start", "end", "span"),
    [
        (None, None, None),
        (60, 90.5, Span(60.0, 90.5)),
        ("60", None, Span(60.0, math.inf)),
        (None, 90, Span(-math.inf, 90.0)),
        ("2026-01-31T14:10:00Z", "2026-01-31T15:20:00+01:00", Span(600.0, 1200.0)),
        ("2026-01-31 14:10", "2026-01-31T14:20:00", Span(600.0, 1200.0)),
        ("2026-01-30", 10, Span(-38 * 3600.0, 10.0)),
        (0, "2026-01-31T15:00:30Z", Span(0.0, 3630.0)),  # the asker's clock is a little ahead
    ],
)
def test_seconds_and_wall_clock_times_are_named(
    start: Moment | None, end: Moment | None, span: Span | None
) -> None:
    assert named_span(start, end, LIVE) == span


def test_time_without_a_zone_is_in_the_configured_one() -> None:
    clock = StreamClock(LIVE.as_of_s, LIVE.now_s, LIVE.origin_s, ZoneInfo("Asia/Kolkata"))
    assert named_span("2026-01-31T19:40:00", None, clock) == Span(600.0)


@pytest.mark.parametrize(
    ("clock", "start", "end", "message"),
    [
        (LIVE, 20, 10, "from: got 20, to: got 10; `from` must come before `to`"),
        (LIVE, 10, 10, "`from` must come before `to`"),
        (LIVE, "2026-01-31T14:10Z", 10, "`from` must come before `to`"),
        (
            LIVE,
            "2027-01-31T14:10Z",
            None,
            "from: got '2027-01-31T14:10Z', which is in the future: it is 2026-01",
        ),
        (LIVE, 0, 7200, "to: got 7200, which is in the future: it is 2026-01-31T15:00:00+00:00, 3600 s into"),
        (
            LIVE,
            "half past two",
            None,
            "from: got 'half past two', allowed seconds of the stream or an ISO time",
        ),
        (LIVE, "nan", None, "from: got 'nan', allowed seconds"),
        (LIVE, None, math.inf, "to: got inf, allowed seconds"),
        (ARCHIVE, "2026-01-31T14:10Z", None, "when this stream was recorded is not known"),
    ],
)
def test_what_names_no_span_is_refused(
    clock: StreamClock, start: Moment | None, end: Moment | None, message: str
) -> None:
    with pytest.raises(QuestionError, match=re.escape(message)):
        named_span(start, end, clock)


def test_archive_takes_any_seconds() -> None:
    """Whether there is footage is asked when it is looked for."""
    assert named_span(0, 1e6, ARCHIVE) == Span(0.0, 1e6)
