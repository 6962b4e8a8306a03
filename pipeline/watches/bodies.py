"""Bodies of the routes of watches. Imports nothing heavy."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from actors.views import WatchEventView, WatchView
from pipeline.schemas import example


class Webhook(BaseModel):
    """Where the events of a watch are posted, signed as standardwebhooks.com has it."""

    model_config = example(url="https://example.com/streamkv")

    url: Annotated[str, Field(min_length=1, max_length=2048, description="http or https")]
    secret: Annotated[
        str | None,
        Field(
            max_length=256,
            description="`whsec_` and 24 to 64 bytes in base64; null: one is made and shown once",
        ),
    ] = None


class NewWatch(BaseModel):
    """A question that is asked of each new segment of a stream."""

    model_config = example(
        stream="lobby", question="is there a red bus?", webhook={"url": "https://example.com/hook"}
    )

    stream: Annotated[str, Field(max_length=64, description="its id")]
    question: Annotated[
        str, Field(description="about what is on show now, as each segment is heard by itself")
    ]
    min_confidence: Annotated[
        float | None,
        Field(
            ge=0, le=1, allow_inf_nan=False, description="less counts as not shown; null: the server's own"
        ),
    ] = None
    when_gone: Annotated[
        bool, Field(description="fire, too, when nothing is shown any more; `answer` is then empty")
    ] = False
    webhook: Webhook | None = None


class Watch(BaseModel):
    """A standing question and what it heard last."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "watch_5f0c2f9d1e7a4b3c8d6e9f01",
                    "stream": "lobby",
                    "question": "is there a red bus?",
                    "min_confidence": 0.5,
                    "when_gone": False,
                    "webhook": "https://example.com/***",
                    "created_at": 1764000000.0,
                    "answer": "yes",
                    "segment": 41,
                    "events": 7,
                    "waiting": 0,
                    "failed": 0,
                }
            ]
        }
    )

    id: str
    stream: str
    question: str
    min_confidence: float
    when_gone: bool
    webhook: Annotated[str | None, Field(description="without what may be secret of it; null: none")]
    created_at: Annotated[float, Field(description="seconds since 1970")]
    answer: Annotated[str | None, Field(description="the last one; null: the footage does not show it")]
    segment: Annotated[int | None, Field(description="the last one that it was asked of; null: none yet")]
    events: Annotated[int, Field(description="that it fired")]
    waiting: Annotated[int, Field(description="of these, those that the webhook has not taken yet")]
    failed: Annotated[int, Field(description="of these, those that were given up after `watch.tries` tries")]

    @classmethod
    def of(cls, view: WatchView) -> Watch:
        return cls(
            id=view.watch_id,
            stream=view.stream_id,
            question=view.question,
            min_confidence=view.min_confidence,
            when_gone=view.when_gone,
            webhook=view.webhook or None,
            created_at=view.created_at,
            answer=view.answer or None,
            segment=view.segment_no if view.segment_no >= 0 else None,
            events=view.num_events,
            waiting=view.num_waiting,
            failed=view.num_failed,
        )


class AddedWatch(Watch):
    """A watch that was just registered."""

    secret: Annotated[
        str | None, Field(description="of its webhook, if the server made it; it is not shown again")
    ] = None


class WatchList(BaseModel):
    watches: Annotated[list[Watch], Field(description="the oldest first")]


class SegmentWeight(BaseModel):
    """A segment that an answer rests on."""

    segment: int
    start_s: float
    end_s: float
    weight: Annotated[float, Field(description="share of the answer's attention to video")]


class Delivery(BaseModel):
    """How far an event is on its way to the webhook."""

    state: Annotated[str, Field(description="none (no webhook), waiting, delivered or failed (given up)")]
    tries: int
    detail: Annotated[str, Field(description="why the last try failed")]


class WatchEvent(BaseModel):
    """A watch's answer has changed: the data of an event, and of a webhook's body but for `delivery`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "watch": "watch_5f0c2f9d1e7a4b3c8d6e9f01",
                    "stream": "lobby",
                    "segment": 41,
                    "start_s": 512.0,
                    "end_s": 524.0,
                    "answer": "yes",
                    "previous": "no",
                    "confidence": 0.97,
                    "evidence": [{"segment": 41, "start_s": 512.0, "end_s": 524.0, "weight": 1.0}],
                    "fired_at": 1764000000.0,
                    "delivery": {"state": "delivered", "tries": 1, "detail": ""},
                }
            ]
        }
    )

    watch: str
    stream: str
    segment: Annotated[int, Field(description="that shows it; the event's id, too")]
    start_s: Annotated[float, Field(description="stream time of the strongest evidence")]
    end_s: float
    answer: Annotated[str, Field(description="empty: not shown any more (`when_gone`)")]
    previous: Annotated[str, Field(description="empty: it was not shown")]
    confidence: float | None
    evidence: Annotated[list[SegmentWeight], Field(description="heaviest first")]
    fired_at: Annotated[float, Field(description="seconds since 1970")]
    delivery: Delivery

    @classmethod
    def of(cls, view: WatchEventView) -> WatchEvent:
        delivery = Delivery(state=view.delivery, tries=view.tries, detail=view.detail)
        return cls(**view.body, delivery=delivery)
