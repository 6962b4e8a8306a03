"""One stream's way through a `DecodeEncode`. Only its loop touches it, but for the feed's own thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from actors.feed import Feed
from actors.messages import FeedState, FeedStatus, SegmentSink, StreamSpec
from streamkv.types import Frame, Segment

if TYPE_CHECKING:
    from torch import Tensor


class SegmentMaker(Protocol):
    """`streamkv.segmentation.Segmenter`, or what behaves like it."""

    @property
    def open_segment(self) -> Segment | None: ...

    def push(self, features_ND: Tensor, start_s: float, end_s: float) -> Segment | None: ...

    def flush(self) -> Segment | None: ...


@dataclass
class Session:
    """See the module."""

    spec: StreamSpec
    feed: Feed
    sink: SegmentSink
    segmenter: SegmentMaker | None = None  # made at the first frame
    state: FeedState = "running"
    detail: str = ""
    position_s: float = 0.0
    frames: int = 0
    in_flight: int = 0  # segments and gaps sent and not yet durable
    committed_s: float = 0.0  # the end of the last one that is durable, and was not before
    closed: deque[Segment] = field(default_factory=deque)  # segments that wait to be sent
    sent: dict[int, Segment] = field(default_factory=dict)  # that are not yet durable, by number
    had: float = 0.0  # frames that it gave, over its priority; see `DecodeEncode`
    is_watched: bool = False
    look: Future[bool] | None = None  # of its watches at the open segment, the latest
    looked: int = 0  # frames that there were by then
    flushed: bool = False
    is_draining: bool = False  # it is to stop where it is, and resume elsewhere
    paused: bool = False  # the open segment was closed because the source is away

    @property
    def takes_frames(self) -> bool:
        return self.state == "running" and not self.closed

    @property
    def is_drained(self) -> bool:
        """An archive's open segment is left: elsewhere it closes where it would have closed here."""
        has_left = self.flushed or not self.spec.is_live
        return self.is_draining and has_left and not self.closed and self.in_flight == 0

    def advance(
        self, frame: Frame, features_ND: Tensor, make_segmenter: Callable[[int], SegmentMaker]
    ) -> None:
        """Takes in a frame; what it closes is in `closed`. `make_segmenter`: from the number of its first segment."""
        if self.segmenter is None:
            self.segmenter = make_segmenter(self.spec.next_segment_no)
        if frame.start_s < self.spec.start_s:
            # A resume begins to read before it: its first frame is compared with the one before, and none is kept.
            self.segmenter = make_segmenter(self.spec.next_segment_no - 1)
            self.segmenter.push(features_ND, frame.start_s, frame.end_s)
            self.segmenter.flush()
            return
        self.frames += 1
        self.paused = False
        self.position_s = frame.end_s
        closed = self.segmenter.push(features_ND, frame.start_s, frame.end_s)
        if closed is not None:
            self.closed.append(closed)

    def close_open_segment(self) -> None:
        last = self.segmenter.flush() if self.segmenter is not None else None
        if last is not None:
            self.closed.append(last)

    def latest(self) -> list[Segment]:
        """What is not durable, the open segment as if it closed now."""
        open_segment = self.segmenter.open_segment if self.segmenter is not None else None
        shown = [*self.sent.values(), *self.closed, *([open_segment] if open_segment is not None else [])]
        return [segment for segment in shown if segment.segment_no >= self.spec.num_committed]

    def end(self, state: FeedState, detail: str) -> None:
        self.feed.stop()
        self.closed.clear()
        self.state, self.detail = state, detail

    def status(self) -> FeedStatus:
        return FeedStatus(
            epoch=self.spec.epoch,
            state=self.state,
            detail=self.detail,
            position_s=self.position_s,
            frames=self.frames,
            queued=self.feed.num_queued,
            in_flight=self.in_flight,
            committed_s=self.committed_s,
            live=self.feed.live,
        )
