"""What the supervisor tells the outside. Imports nothing heavy, so that the HTTP ingress stays small."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

MAX_PRIORITY = 8
"""Of a stream: so many times as many of its segments may wait for prefill, too."""


@dataclass(frozen=True)
class GapView:
    """Footage that is missing, in stream time."""

    start_s: float
    end_s: float
    reason: str


@dataclass(frozen=True)
class LiveView:
    """How a live source fares, since its session began."""

    sample_fps: float  # in effect: lower than configured while frames come faster than they are taken in
    dropped_frames: int  # that found no place even so; their time is a gap
    frame_age_s: float | None  # of the newest frame that was taken in; None: none was
    clock: str  # that dates its frames: `sender`, `arrival`; empty: none came
    connections: int
    outage: str  # since when and why the source is away; empty when it is there


@dataclass(frozen=True)
class Reencoding:
    """What a stream is to be encoded with, once more."""

    guidance: str | None = None  # None: as it is; empty: the method's
    keep_ratio: float | None = None  # None: as it is; 0.0: the method's
    model: str = ""  # a path; empty, and the server's own: this one


@dataclass(frozen=True)
class NextView:
    """A stream's memory that is being made anew, beside the one that answers."""

    state: str  # `done`: whole, and about to take its place, or kept from it as `detail` says
    detail: str
    duration_s: float
    position_s: float
    num_segments: int
    file_bytes: int
    guidance: str
    keep_ratio: float  # 0.0: the method's


@dataclass(frozen=True)
class StreamView:
    """A stream as users see it: the catalog's truth, and what is going on now."""

    stream_id: str
    uri: str  # without credentials
    state: str
    detail: str
    duration_s: float  # 0.0 when the source does not say
    position_s: float  # up to which frames were encoded
    as_of_s: float  # up to which segments are committed
    num_segments: int
    num_frames: int
    num_source_frames: int
    kv_bytes: int
    file_bytes: int
    restarts: int  # sessions that were lost since the supervisor started
    gaps: tuple[GapView, ...] = ()
    live: LiveView | None = None  # of a live source that is being ingested
    created_at: float = 0.0  # seconds since 1970
    guidance: str = ""  # its own guidance prompt; empty: the method's
    tenant: str = ""  # whose it is
    legal_hold: str = ""  # why nothing of it may be deleted; empty: it may
    keep_ratio: float = 0.0  # its own; 0.0: the method's
    next: NextView | None = None
    priority: int = 1
    queued_frames: int = 0  # decoded, that wait for the tower
    waiting_segments: int = 0  # closed, that are not committed yet


@dataclass(frozen=True)
class NewWatch:
    """A standing question that somebody wants asked; not yet checked."""

    stream_id: str
    question: str
    min_confidence: float | None = None  # None: the configuration's
    when_gone: bool = False
    url: str = field(default="", repr=False)  # of the webhook; empty: none
    secret: str = field(default="", repr=False)  # empty: one is made


@dataclass(frozen=True)
class WatchView:
    """A watch as users see it: without its secret, and with what may be shown of its webhook."""

    watch_id: str
    stream_id: str
    question: str
    min_confidence: float
    when_gone: bool
    webhook: str  # empty: none
    created_at: float  # seconds since 1970
    answer: str  # the last one; empty: not shown
    segment_no: int  # the last one that it was asked of; -1: none yet
    num_events: int
    num_waiting: int  # events that the webhook has not taken yet
    num_failed: int  # given up


@dataclass(frozen=True)
class WatchEventView:
    """What a watch told, and how far it is on its way to the webhook."""

    body: Mapping[str, Any]  # `streamkv.watches.event_body`
    delivery: str
    tries: int
    detail: str


@dataclass(frozen=True)
class WorkerView:
    """One actor of a pool."""

    name: str
    state: Literal["starting", "up", "away", "leaving"]
    streams: int
    detail: str = ""  # why it does not start


@dataclass(frozen=True)
class PoolView:
    """The actors of one stage."""

    name: str  # `encode`, `prefill`
    size: int  # that it is to have
    lowest: int  # within which its size follows the load; the same: it does not
    highest: int
    is_set: bool  # by `scale`; its size does not follow the load then
    busy: float | None  # share of the last minutes that its actors were at work; None: not known yet
    workers: tuple[WorkerView, ...]


@dataclass(frozen=True)
class PlaneState:
    """Whether the ingest plane takes streams."""

    phase: Literal["starting", "ready", "failed"]
    detail: str = ""
