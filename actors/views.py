"""What the supervisor tells the outside. Imports nothing heavy, so that the HTTP ingress stays small."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class GapView:
    """Footage that is missing, in stream time."""

    start_s: float
    end_s: float
    reason: str


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


@dataclass(frozen=True)
class PlaneState:
    """Whether the ingest plane takes streams."""

    phase: Literal["starting", "ready", "failed"]
    detail: str = ""
