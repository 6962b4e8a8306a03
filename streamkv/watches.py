"""Standing questions: asked of each new segment from what its prefill left, told when the answer changes.

A watch hears one segment at a time and nothing else: what is on show now. Its state is its last answer; none, while the
footage does not show what it asks about. Knows no file: `store.watch_rows` keeps watches, and decides by `is_change`
within the transaction that commits the segment, so that whatever dies on the way, each segment counts once.
"""

from __future__ import annotations

import base64
import binascii
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

from streamkv.confidence import NOT_SHOWN
from streamkv.config import MethodConfig
from streamkv.errors import WatchError
from streamkv.memory import InMemoryVideo
from streamkv.question import Question
from streamkv.types import Answer, Evidence, Geometry, SegmentKV

SECRET_PREFIX = "whsec_"
"""Of secrets in the form of Standard Webhooks; what follows is base64."""
SECRET_BYTES = (24, 64)

DeliveryState = Literal["none", "waiting", "delivered", "failed"]
"""Of an event to its watch's webhook. `none`: it has none; `failed`: given up."""


@dataclass(frozen=True)
class Watch:
    """A standing question about one stream."""

    id: str
    stream_id: str
    question: str
    min_confidence: float = 0.0  # a less likely answer counts as not shown
    when_gone: bool = False  # whether it fires, too, when nothing is shown any more
    url: str = field(default="", repr=False)  # where its events are posted; it may hold a password
    secret: str = field(default="", repr=False)  # that signs them
    created_at: float = 0.0  # seconds since 1970


@dataclass(frozen=True)
class WatchQuestion:
    """What is asked for a watch."""

    watch_id: str
    text: str


@dataclass(frozen=True)
class WatchAnswer:
    """What one segment answers."""

    watch_id: str
    text: str
    confidence: float | None
    evidence: tuple[Evidence, ...]  # heaviest first


@dataclass(frozen=True)
class OpenAnswers:
    """What a live stream's open segment answers to its watches."""

    stream_id: str
    epoch: int  # of the stream's writer
    segment_no: int
    span_s: tuple[float, float]  # what of it was seen
    answers: Sequence[WatchAnswer]


@dataclass(frozen=True)
class Delivery:
    """How far an event is on its way to the webhook."""

    state: DeliveryState
    tries: int = 0
    detail: str = ""  # why the last try failed


@dataclass(frozen=True)
class WatchEvent:
    """A watch's answer has changed."""

    watch_id: str
    stream_id: str
    segment_no: int  # that shows it; a watch fires once in it at most
    start_s: float  # stream time of the strongest evidence
    end_s: float
    answer: str  # empty: not shown any more
    previous: str  # empty: it was not shown
    confidence: float | None
    evidence: tuple[Evidence, ...]
    fired_at: float  # seconds since 1970
    delivery: Delivery


class Asked(Protocol):
    """`streamkv.engine.Engine`, or what answers like it."""

    def answer_many(self, questions: Sequence[Question]) -> list[Answer | Exception]: ...


def method_of_watches(method: MethodConfig) -> MethodConfig:
    """How a watch is answered: a segment keeps few blocks, so all are read, in one run of the prompt.

    Nothing can stand out of one segment, so its confidence has weights of its own.
    """
    retrieve = replace(method.retrieve, policy="everything")
    return replace(method, retrieve=retrieve, confidence=method.watch_confidence)


def ask_segment(
    engine: Asked,
    geometry: Geometry,
    max_new_tokens: int,
    segment: SegmentKV,
    questions: Sequence[WatchQuestion],
) -> list[WatchAnswer | Exception]:
    """What a segment that was just prefilled answers, all questions together. `engine`: of `method_of_watches`.

    In their order; why there is no answer in place of those that failed.
    """
    memory = InMemoryVideo(geometry, [segment])
    asked = [Question(memory, question.text, max_new_tokens=max_new_tokens) for question in questions]
    return [
        found
        if isinstance(found, Exception)
        else WatchAnswer(question.watch_id, found.text, found.confidence, found.evidence)
        for question, found in zip(questions, engine.answer_many(asked), strict=True)
    ]


def shown(answer: WatchAnswer, min_confidence: float) -> str:
    """The answer as it counts; empty: the footage does not show it."""
    if answer.confidence is not None and answer.confidence < min_confidence:
        return ""
    text = answer.text.replace("\0", "").strip()  # PostgreSQL takes none in a text
    return "" if text == NOT_SHOWN else text


def is_change(before: str, now: str, *, when_gone: bool) -> bool:
    """Whether a watch fires whose answer was `before`, or none, and is `now`; case does not count."""
    is_other = before.casefold().strip() != now.casefold().strip()
    return is_other and (when_gone or bool(now.strip()))


def event_body(event: WatchEvent) -> dict[str, Any]:
    """An event as every receiver sees it, for JSON."""
    return {
        "watch": event.watch_id,
        "stream": event.stream_id,
        "segment": event.segment_no,
        "start_s": event.start_s,
        "end_s": event.end_s,
        "answer": event.answer,
        "previous": event.previous,
        "confidence": event.confidence,
        "evidence": [
            {"segment": e.segment_no, "start_s": e.start_s, "end_s": e.end_s, "weight": e.weight}
            for e in event.evidence
        ],
        "fired_at": event.fired_at,
    }


# ---- webhooks


def check_webhook(url: str, secret: str) -> None:
    """WatchError unless events can be posted there, signed by that; an empty secret is none."""
    try:
        parts = urlsplit(url)
        is_good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # half an IPv6 address, a port that is no number
        is_good = False
    if not is_good or any(c.isspace() or not c.isprintable() for c in url):
        raise WatchError("webhook url: allowed http://... or https://... with a host")
    if secret:
        check_secret(secret)


def new_secret() -> str:
    return SECRET_PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()


def check_secret(secret: str) -> None:
    """WatchError when the secret has another form; the message does not show it."""
    least, most = SECRET_BYTES
    try:
        key = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not secret.startswith(SECRET_PREFIX) or not least <= len(key) <= most:
        raise WatchError(
            f"webhook secret: allowed {SECRET_PREFIX} and {least} to {most} bytes in base64; "
            "leave it out, and one is made"
        )


def shown_url(url: str) -> str:
    """Where a webhook goes, without what may be a secret of it: user, path and query often are."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    rest = "/***" if parts.path.strip("/") or parts.query else ""
    return f"{parts.scheme}://{host}{rest}"
