"""Spans that a question names are found in it; whatever is not clearly one changes nothing."""

from __future__ import annotations

import math
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamkv.excerpt import Span
from streamkv.phrases import Phrase, find_phrase, phrase_span, without
from streamkv.townsquare.questions import make_questions
from streamkv.townsquare.script import make_world
from streamkv.when import StreamClock

INF = math.inf
BERLIN = ZoneInfo("Europe/Berlin")
NOW = datetime(2026, 1, 31, 15, 0, tzinfo=BERLIN)
BORN = NOW - timedelta(days=3)
LIVE = StreamClock(as_of_s=3 * 86_400 - 20.0, now_s=NOW.timestamp(), origin_s=BORN.timestamp(), zone=BERLIN)
ARCHIVE = StreamClock(as_of_s=5_000.0, now_s=NOW.timestamp())

QUESTIONS = [
    ("what does the sign say ", "?"),
    ("", ", how many people crossed?"),
    ("Was a red truck there ", "?"),
]
WORDS = [
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "twenty",
    "forty-five",
]
VALUES = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 20, 45]


@st.composite
def clocks(draw: st.DrawFn) -> tuple[str, float]:
    """A time of day and its seconds after midnight."""
    hour, minute, second = (draw(st.integers(0, top)) for top in (23, 59, 59))
    written = draw(st.sampled_from(["24", "24 s", "12"]))
    if written == "12":
        half = "am" if hour < 12 else "pm"
        return f"{(hour - 1) % 12 + 1}:{minute:02d} {half}", 3600.0 * hour + 60 * minute
    if written == "24":
        return f"{hour}:{minute:02d}", 3600.0 * hour + 60 * minute
    return f"{hour:02d}:{minute:02d}:{second:02d}", 3600.0 * hour + 60 * minute + second


@st.composite
def positions(draw: st.DrawFn) -> tuple[str, float]:
    """A place in a video and its seconds."""
    seconds = draw(st.integers(0, 4 * 3600))
    minutes, rest = divmod(seconds, 60)
    hours, left = divmod(minutes, 60)
    text = f"{hours}:{left:02d}:{rest:02d}" if hours or draw(st.booleans()) else f"{minutes}:{rest:02d}"
    return text, float(seconds)


@st.composite
def durations(draw: st.DrawFn) -> tuple[str, float]:
    unit, seconds = draw(
        st.sampled_from([("second", 1), ("minute", 60), ("min", 60), ("hour", 3600), ("day", 86_400)])
    )
    word, value = draw(
        st.sampled_from([*zip(WORDS, VALUES, strict=True), ("12", 12), ("1.5", 1.5), ("90", 90)])
    )
    return f"{word} {unit}{'' if value == 1 else 's'}", float(value * seconds)


@st.composite
def bounds(draw: st.DrawFn) -> tuple[str, str, float, float]:
    """Words, kind, start and end."""
    in_video = draw(st.booleans())
    (a, a_s), (b, b_s) = (draw(positions() if in_video else clocks()) for _ in range(2))
    form = draw(st.sampled_from(["between", "from", "since", "after", "before", "until"]))
    if form in ("between", "from"):
        if a_s == b_s or ("m" in a) != ("m" in b) or (in_video and a_s > b_s):
            a, a_s, b, b_s = ("1:00", 60.0, "2:00", 120.0) if in_video else ("23:50", 85_800.0, "0:10", 600.0)
        words, start, end = f"{form} {a} {'and' if form == 'between' else 'to'} {b}", a_s, b_s
    elif form in ("since", "after"):
        words, start, end = f"{form} {a}", a_s, INF
    else:
        words, start, end = f"{form} {a}", -INF, a_s
    if in_video:
        words += draw(st.sampled_from([" of the video", " into the recording", " in this clip"]))
    return words, "video" if in_video else "clock", start, end


@st.composite
def edges(draw: st.DrawFn) -> tuple[str, str, float, float]:
    length, seconds = draw(durations())
    start = draw(st.sampled_from(["in", "during", "over", "within"]))
    which = draw(st.sampled_from(["last", "past", "first"]))
    tail = draw(st.sampled_from(["", " of the video"]))
    words = f"{start} the {which} {length}{tail}"
    return (words, "video", -INF, seconds) if which == "first" else (words, "last", -seconds, INF)


@st.composite
def moments(draw: st.DrawFn) -> tuple[str, str, float, float]:
    text, at_s = draw(positions())
    return f"{draw(st.sampled_from(['at ', '']))}{text} into the video", "video", at_s, at_s + 1


@settings(max_examples=400)
@given(st.one_of(bounds(), edges(), moments()), st.sampled_from(QUESTIONS), st.booleans())
def test_any_phrase_is_found_in_any_question(
    phrase: tuple[str, str, float, float], question: tuple[str, str], loud: bool
) -> None:
    words, kind, start_s, end_s = phrase
    said = words.upper() if loud else words
    text = f"{question[0]}{said}{question[1]}"
    assert find_phrase(text) == Phrase(said, kind, start_s, end_s)
    left = f"{question[0].strip()}{question[1]}".removeprefix(", ")
    assert without(text, said) == left
    assert find_phrase(left) is None


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.sampled_from([0.1, 2.0, 30.0]))
def test_questions_about_clocks_in_the_picture_name_no_span(seed: int, minutes: float) -> None:
    for question in make_questions(make_world(seed, minutes), 40, seed):
        assert find_phrase(question.question) is None, question.question


@pytest.mark.parametrize(
    "question",
    [
        "what colour is the bus at 14:07?",
        "what happened around 14:07?",
        "what does the clock say, 10:00 or 10:15?",
        "who stands between the bench and the tree?",
        "how many people, between 2 and 4, are there?",
        "between 2:00 and 4:00 pm, who came?",  # in the morning, or not?
        "between 25:00 and 26:00, who came?",
        "between 10:00 and 10:00, who came?",
        "what is the last sign?",
        "what happened in the last minutes?",
        "what happened in the last few minutes?",
        "who scored in the last five minutes of the match?",
        "what happened in the first minute after the crash?",
        "was it there before 9:05 or since 10:00?",
        "was it there at any time but not between 10:00 and 10:15?",
        "what happened between 5 and 10 minutes into the video?",
        "who was there on Monday between 10:00 and 10:15?",
        "who was there on 2026-01-05 between 10:00 and 10:15?",
        "who comes every day between 10:00 and 10:15?",
        "yesterday, in the last five minutes, who came?",
        "after 4 pm into the video?",
        "is it since 1:75 into the video?",
        "what does the sign say since 14:302?",
        "",
    ],
)
def test_what_is_not_clearly_a_span_changes_nothing(question: str) -> None:
    assert find_phrase(question) is None


def span_in(clock: StreamClock, question: str) -> Span | None:
    phrase = find_phrase(question)
    assert phrase is not None
    return phrase_span(phrase, clock)


def at(day: int, hour: int, minute: int) -> float:
    """Stream time of LIVE."""
    return datetime(2026, 1, day, hour, minute, tzinfo=BERLIN).timestamp() - BORN.timestamp()


@pytest.mark.parametrize(
    ("question", "span"),
    [
        ("between 10:00 and 10:15?", Span(at(31, 10, 0), at(31, 10, 15))),
        ("between 14:50 and 15:10?", Span(at(31, 14, 50), at(31, 15, 10))),
        ("between 15:10 and 15:20?", Span(at(30, 15, 10), at(30, 15, 20))),
        ("between 23:50 and 0:10?", Span(at(30, 23, 50), at(31, 0, 10))),
        ("yesterday between 10:00 and 10:15?", Span(at(30, 10, 0), at(30, 10, 15))),
        ("between 10 am and 2 pm today?", Span(at(31, 10, 0), at(31, 14, 0))),
        ("since 14:30?", Span(at(31, 14, 30), INF)),
        ("before 9:05?", Span(-INF, at(31, 9, 5))),
        ("until 16:00?", Span(-INF, at(30, 16, 0))),
        ("in the last five minutes?", Span(at(31, 14, 55), INF)),
        ("in the past half an hour?", Span(at(31, 14, 30), INF)),
        ("in the first hour?", Span(-INF, 3600.0)),
    ],
)
def test_dated_stream_has_times_of_day(question: str, span: Span) -> None:
    assert span_in(LIVE, question) == span


def test_days_are_those_of_the_clock_on_the_wall() -> None:
    """The clocks went forward on 29 March 2026 in Berlin: 3:30 is two and a half hours after midnight."""
    now = datetime(2026, 3, 29, 12, 0, tzinfo=BERLIN).timestamp()
    midnight = datetime(2026, 3, 29, tzinfo=BERLIN).timestamp()
    clock = StreamClock(as_of_s=0.0, now_s=now, origin_s=midnight, zone=BERLIN)
    assert span_in(clock, "since 3:30?") == Span(2.5 * 3600, INF)


def test_archive_has_its_own_time_and_no_time_of_day() -> None:
    assert span_in(ARCHIVE, "between 10:00 and 10:15?") is None
    assert span_in(ARCHIVE, "between 10:00 and 10:15 of the video?") == Span(600.0, 615.0)
    assert span_in(ARCHIVE, "in the last two minutes?") == Span(4_880.0, INF)
    assert span_in(ARCHIVE, "at 01:20:05 into the video?") == Span(4_805.0, 4_806.0)
    assert span_in(ARCHIVE, "20 minutes into the video?") == Span(1_200.0, 1_260.0)


def test_what_is_left_of_a_question_reads_well() -> None:
    words = "in the last five minutes"
    assert without(f"who, {words}, came?", words) == "who, came?"
    assert without(f"who  came\n {words} ?", words) == "who came?"
    assert without(f"who came, {words}?", words) == "who came?"
    assert without(f"{words}?", words) == f"{words}?"
