"""Spans of time that a question names in words: "since 14:30", "in the last five minutes".

    between T and T | from T to T | since T | after T | before T | until T      T: 14:30, 9:05:10, 2 pm
    the same with ... of | in | into the video                                  T: 4:07, 1:20:05
    in the last D | in the first D                                              D: 5 minutes, half an hour
    T | D into the video

Careful rather than clever: what is not clearly a span restricts nothing, nor do two spans at once. A plain "at 14:07"
is none: it may well be a clock in the picture. Times of day need a stream that is dated.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from streamkv.excerpt import Span
from streamkv.when import StreamClock

DAY_S = 86_400


@dataclass(frozen=True)
class Phrase:
    """What the words say, of no stream in particular. Sides that are open are infinite."""

    words: str
    kind: Literal[
        "clock", "last", "video"
    ]  # seconds from: midnight, the latest moment, the stream's beginning
    start_s: float
    end_s: float  # of a clock: before `start_s` where midnight lies between
    days_ago: int | None = None  # of a clock's midnight; None: whichever makes it the latest in the past


def phrase_span(phrase: Phrase, clock: StreamClock) -> Span | None:
    """Where that is in a stream; None for times of day in a stream that is not dated."""
    if phrase.kind == "video":
        return Span(phrase.start_s, phrase.end_s)
    if phrase.kind == "last":
        return Span(clock.latest_s + phrase.start_s, math.inf)
    if clock.origin_s is None:
        return None
    now = datetime.fromtimestamp(clock.now_s, clock.zone)
    anchor_s = phrase.start_s if math.isfinite(phrase.start_s) else phrase.end_s
    days_ago = phrase.days_ago
    if days_ago is None:
        days_ago = int(_after_midnight(now, 0, anchor_s) > now)
    sides = [phrase.start_s, phrase.end_s + (DAY_S if phrase.end_s <= phrase.start_s else 0)]
    return Span(
        *(
            _after_midnight(now, days_ago, side).timestamp() - clock.origin_s if math.isfinite(side) else side
            for side in sides
        )
    )


def _after_midnight(now: datetime, days_ago: int, seconds: float) -> datetime:
    """By the clock on the wall, also on days when it is put forward or back."""
    midnight = datetime(now.year, now.month, now.day)
    return (midnight - timedelta(days=days_ago) + timedelta(seconds=seconds)).replace(tzinfo=now.tzinfo)


def find_phrase(question: str) -> Phrase | None:
    """The one span that the question names; None when it names none, or more, or one that cannot be."""
    text = " ".join(question.split())
    found: list[tuple[re.Match[str], Phrase | None]] = []
    for pattern, read in ((_BOUNDS, _read_bounds), (_EDGE, _read_edge), (_INTO, _read_into)):
        for match in pattern.finditer(text):
            if all(match.end() <= other.start() or match.start() >= other.end() for other, _ in found):
                found.append((match, read(match)))
    if len(found) != 1:
        return None
    match, phrase = found[0]
    if phrase is None or _SPOILS.search(text[: match.start()]):
        return None
    return _dated(phrase, text)


def without(question: str, words: str) -> str:
    """The question once the words of its phrase have had their effect; as it was if it has no others.

    Left in, a model may take them for a clock in the picture.
    """
    text = " ".join(question.split()).replace(words, "", 1)
    text = re.sub(r"\s+(?=[?.!,;])", "", " ".join(text.split()))
    text = re.sub(r",(?=[?.!,;])", "", text).strip(" ,;")
    return text if re.search(r"\w", text) else question


def _dated(phrase: Phrase, text: str) -> Phrase | None:
    """With the day that the question names; None where it is another than today or yesterday."""
    named = {word.lower() for word in _DAY.findall(text)}
    if not named:
        return phrase
    if phrase.kind != "clock" or len(named) > 1 or not named <= {"today", "yesterday"}:
        return None
    return Phrase(phrase.words, "clock", phrase.start_s, phrase.end_s, days_ago=int("yesterday" in named))


# ---------------------------------------------------------------- the words

_ONES = (
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen".split()
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_NUMBERS = {
    "a": 1,
    "an": 1,
    "half an": 0.5,
    **{word: float(i) for i, word in enumerate([*_ONES, "seventeen", "eighteen", "nineteen"], 1)},
    **{ten: 10.0 * i for i, ten in enumerate(_TENS, 2)},
    **{f"{ten}-{one}": 10.0 * i + j for i, ten in enumerate(_TENS, 2) for j, one in enumerate(_ONES[:9], 1)},
}
_UNITS = {"second": 1, "sec": 1, "minute": 60, "min": 60, "hour": 3600, "hr": 3600, "day": DAY_S}

_T = r"\d{1,2}:\d\d(?::\d\d)?(?: ?[ap]\.?m\b\.?)?|\d{1,2} ?[ap]\.?m\b\.?"
_UNIT = rf"(?P<unit>{'|'.join(_UNITS)})(?P<plural>s?)\b"
_COUNT = rf"(?P<count>\d{{1,4}}(?:\.\d+)?|{'|'.join(sorted(_NUMBERS, key=len, reverse=True))})[ -]"
_FOOTAGE = r"(?:the|this) (?:video|recording|footage|film|clip|stream|tape)\b"
_ITS = rf"(?P<its> (?:in|into|of) {_FOOTAGE})?"

_BOUNDS = re.compile(
    rf"\b(?:between (?P<a>{_T}) and (?P<b>{_T})|from (?P<c>{_T}) (?:to|until|till) (?P<d>{_T})"
    rf"|(?:since|after) (?P<since>{_T})|(?:before|until|till) (?P<before>{_T}))(?!:|\d){_ITS}",
    re.IGNORECASE,
)
_EDGE = re.compile(
    rf"\b(?:in|during|over|within) the (?P<edge>last|past|first) (?:{_COUNT})?{_UNIT}{_ITS}"
    r"(?! (?:before|after|of|until|when|while|that|where|leading|following)\b)",
    re.IGNORECASE,
)
_INTO = re.compile(rf"\b(?:at )?(?:(?P<at>{_T})|{_COUNT}{_UNIT}) into {_FOOTAGE}", re.IGNORECASE)
_SPOILS = re.compile(
    r"\b(?:not|except|except for|outside|never|than|and|to|since|after|before|until|from|between|by|about)\s*$"
    r"|n't\s*$",
    re.IGNORECASE,
)
_DAY = re.compile(
    r"\b(?:today|yesterday|tomorrow|(?:mon|tues|wednes|thurs|fri|satur|sun)days?|(?:last|next) (?:night|week|month)"
    r"|(?:every|each) (?:day|morning|afternoon|evening|night)|(?:days?|weeks?) ago|\d{4}-\d\d-\d\d"
    r"|\d+(?:st|nd|rd|th))\b",
    re.IGNORECASE,
)


def _read_bounds(match: re.Match[str]) -> Phrase | None:
    read = _position if match["its"] else _time_of_day
    texts = (match["a"] or match["c"] or match["since"], match["b"] or match["d"] or match["before"])
    sides = [None if text is None else read(text) for text in texts]
    if any(text is not None and side is None for text, side in zip(texts, sides, strict=True)):
        return None
    start_s = -math.inf if sides[0] is None else sides[0]
    end_s = math.inf if sides[1] is None else sides[1]
    if start_s == end_s or (match["its"] and start_s > end_s):
        return None
    if None not in texts and ("m" in texts[0].lower()) != ("m" in texts[1].lower()):
        return None  # between 2:00 and 4:00 pm: in the morning?
    return Phrase(match[0], "video" if match["its"] else "clock", start_s, end_s)


def _read_edge(match: re.Match[str]) -> Phrase | None:
    if match["count"] is None and match["plural"]:
        return None  # in the last minutes
    seconds = _duration(match)
    if match["edge"].lower() == "first":
        return Phrase(match[0], "video", -math.inf, seconds)
    return Phrase(match[0], "last", -seconds, math.inf)


def _read_into(match: re.Match[str]) -> Phrase | None:
    """A moment is as long as it is named exactly: a second, or a minute for "20 minutes into the video"."""
    if match["at"] is None:
        start_s = _duration(match)
        return Phrase(match[0], "video", start_s, start_s + min(_UNITS[match["unit"].lower()], 60))
    at_s = _position(match["at"])
    return None if at_s is None else Phrase(match[0], "video", at_s, at_s + 1)


def _duration(match: re.Match[str]) -> float:
    count = (match["count"] or "one").lower()
    return (_NUMBERS[count] if count in _NUMBERS else float(count)) * _UNITS[match["unit"].lower()]


def _time_of_day(text: str) -> float | None:
    """Seconds after midnight of 14:30, 9:05:10, 2 pm; None where no clock shows it."""
    digits = re.match(r"[\d:]+", text)
    assert digits, text
    hours, minutes, seconds = ([int(part) for part in digits[0].split(":")] + [0, 0])[:3]
    half = text[digits.end() :].strip(" .").lower()[:1]
    if half:
        if not 1 <= hours <= 12:
            return None
        hours = hours % 12 + (12 if half == "p" else 0)
    if hours > 23 or minutes > 59 or seconds > 59:
        return None
    return 3600.0 * hours + 60 * minutes + seconds


def _position(text: str) -> float | None:
    """Seconds into a video of 4:07 or 1:20:05."""
    parts = text.split(":")
    if (
        len(parts) < 2
        or not all(part.isdigit() for part in parts)
        or any(int(part) > 59 for part in parts[1:])
    ):
        return None
    seconds = 0.0
    for part in parts:
        seconds = 60 * seconds + int(part)
    return seconds
