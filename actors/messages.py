"""What crosses a process, by receiver. Small and plain; only a segment's features are large.

torch is imported where features are made a message or taken out of one: the supervisor and the store do neither.
"""

from __future__ import annotations

import warnings
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from actors.in_hand import Place
from actors.views import GapView, LiveView
from streamkv.store import StreamRecord
from streamkv.types import Segment
from streamkv.watches import WatchQuestion

if TYPE_CHECKING:
    import torch

# ---------------------------------------------------------------- to DecodeEncode


@dataclass(frozen=True)
class StreamSpec:
    """One session of a stream: from its last commit on, under one writer's epoch."""

    stream_id: str
    uri: str = field(repr=False)  # it may hold a password
    epoch: int
    start_s: float = 0.0
    next_segment_no: int = 0  # of the first segment that it sends
    num_committed: int = 0  # segments below are committed, and sent for their window's sake alone
    is_live: bool = False
    is_watched: bool = False  # a live stream's watches look at its open segment
    origin_s: float = 0.0  # seconds since 1970 at stream time 0; a live source's alone
    priority: int = 1  # its share of what the stages can do, over that of a stream with 1


class SegmentSink(Protocol):
    """Where a stream's segments and gaps go; the futures end when they are durable.

    `show`: the open segment as it is, for the stream's watches; its future ends when they have looked.
    """

    def ship(self, message: SegmentMessage) -> Future[bool]: ...

    def show(self, message: SegmentMessage) -> Future[bool]: ...

    def add_gap(self, stream_id: str, gap: GapView) -> Future[None]: ...


# ---------------------------------------------------------------- to Prefill


@dataclass(frozen=True)
class SegmentMessage:
    """A closed segment. Its features are a NumPy array, which Ray shares and does not copy."""

    stream_id: str
    epoch: int
    segment_no: int
    features: np.ndarray  # (n, N, D); bfloat16 as its bits in int16
    is_bfloat16: bool
    spans_s: tuple[tuple[float, float], ...]
    similarities: tuple[float, ...]
    num_source_frames: int
    resume_s: float

    @classmethod
    def of(cls, spec: StreamSpec, segment: Segment) -> SegmentMessage:
        import torch

        features = segment.features_nND.detach().cpu().contiguous()
        is_bfloat16 = features.dtype == torch.bfloat16
        return cls(
            stream_id=spec.stream_id,
            epoch=spec.epoch,
            segment_no=segment.segment_no,
            features=(features.view(torch.int16) if is_bfloat16 else features).numpy(),
            is_bfloat16=is_bfloat16,
            spans_s=segment.spans_s,
            similarities=segment.similarities,
            num_source_frames=segment.num_source_frames,
            resume_s=segment.resume_s,
        )

    def to_segment(self, device: torch.device) -> Segment:
        """On CPU the features share the message's memory and must not be written to."""
        import torch

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            features = torch.from_numpy(self.features)
        return Segment(
            segment_no=self.segment_no,
            features_nND=(features.view(torch.bfloat16) if self.is_bfloat16 else features).to(device),
            spans_s=self.spans_s,
            similarities=self.similarities,
            num_source_frames=self.num_source_frames,
            resume_s=self.resume_s,
        )


# ---------------------------------------------------------------- to the supervisor

FeedState = Literal["running", "done", "failed", "lost", "full", "drained"]
"""`failed`: the source cannot go on; `lost`: the next stage did not take a segment, it must resume; `full`: the store
had no room for one, it must resume when there is; `drained`: it was told to stop, and all that it sent is durable."""


@dataclass(frozen=True)
class FeedStatus:
    """One stream as its decoder sees it."""

    epoch: int
    state: FeedState
    detail: str
    position_s: float  # stream time up to which frames were encoded
    frames: int
    queued: int  # decoded frames that wait for the tower
    in_flight: int  # segments shipped and not yet durable
    committed_s: float = (
        0.0  # the end of the last segment of this session that is durable, and was not before
    )
    live: LiveView | None = None


@dataclass(frozen=True)
class Replay:
    """Where a stream is to go back to, so that its window sees again what it had seen."""

    segment_no: int
    start_s: float


@dataclass(frozen=True)
class Beginning:
    """A stream's new writer and where it goes on, or why it does not."""

    record: StreamRecord | None = None  # with the writer's epoch
    watches: tuple[WatchQuestion, ...] = ()  # of the stream
    why_not: str = ""


@dataclass(frozen=True)
class WorkerStatus:
    """What every worker tells of itself."""

    incarnation: str  # another one: the process is new and knows none of its streams
    started: bool
    totals: dict[str, float]
    feeds: dict[str, FeedStatus] = field(default_factory=dict)
    prepared: dict[str, float] = field(
        default_factory=dict
    )  # streams to come, and from where on they are read
    windows: dict[str, int] = field(default_factory=dict)  # stream to epoch
    failure: str = ""  # why it can do no more work; it is to be replaced
    in_hand: Place | None = None  # where to read what it had in hand, should it end
