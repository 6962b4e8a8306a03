"""Watches between the supervisor and the outside: what is asked for is checked, what is shown has no secrets."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Iterable

from actors.views import NewWatch, WatchEventView, WatchView
from streamkv.config import PipelineConfig
from streamkv.errors import WatchError
from streamkv.question import check_question
from streamkv.store import WatchRecord
from streamkv.watches import (
    Watch,
    WatchEvent,
    WatchQuestion,
    check_webhook,
    event_body,
    new_secret,
    shown_url,
)


def make_watch(new: NewWatch, config: PipelineConfig) -> Watch:
    """QuestionError, WatchError: what is asked for cannot be had."""
    if new.url:
        check_webhook(new.url, new.secret)
    elif new.secret:
        raise WatchError("webhook: got a secret without a url; give both, or neither")
    return Watch(
        id=f"watch_{secrets.token_hex(12)}",
        stream_id=new.stream_id,
        question=check_question(new.question.replace("\0", " "), config.serve.max_question_chars),
        min_confidence=_min_confidence(new, config),
        when_gone=new.when_gone,
        url=new.url,
        secret=(new.secret or new_secret()) if new.url else "",
        created_at=time.time(),
    )


def questions_of(watches: Iterable[Watch]) -> tuple[WatchQuestion, ...]:
    return tuple(WatchQuestion(watch.id, watch.question) for watch in watches)


def view_watch(record: WatchRecord) -> WatchView:
    watch, counts = record.watch, record.num_events
    return WatchView(
        watch_id=watch.id,
        stream_id=watch.stream_id,
        question=watch.question,
        min_confidence=watch.min_confidence,
        when_gone=watch.when_gone,
        webhook=shown_url(watch.url) if watch.url else "",
        created_at=watch.created_at,
        answer=record.answer,
        segment_no=record.segment_no,
        num_events=sum(counts.values()),
        num_waiting=counts.get("waiting", 0),
        num_failed=counts.get("failed", 0),
    )


def view_event(event: WatchEvent) -> WatchEventView:
    delivery = event.delivery
    return WatchEventView(event_body(event), delivery.state, delivery.tries, delivery.detail)


def _min_confidence(new: NewWatch, config: PipelineConfig) -> float:
    is_said = config.method.watch_confidence is not None
    if new.min_confidence is None:
        return config.watch.min_confidence if is_said else 0.0
    if not (math.isfinite(new.min_confidence) and 0 <= new.min_confidence <= 1):
        raise WatchError(f"min_confidence: got {new.min_confidence:g}, allowed 0 to 1")
    if new.min_confidence and not is_said:
        raise WatchError(
            f"min_confidence: got {new.min_confidence:g}, but this model does not say how sure an answer of a watch is "
            "(method.watch_confidence); leave it out"
        )
    return new.min_confidence
