"""A live stream's feed: it never makes its source wait. Knows nothing of models.

A full queue first lowers the sample rate: every other frame goes, of those that wait and of those to come. At the
lowest rate the oldest frame that waits goes, and its time becomes a gap. When the queue has been nearly empty for
a while, the rate doubles again.

    waiting (4 of 4)      0 1 2 3    and 4 comes
    half the rate         0   2      and 4 joins: each stands for two sampling times from here on
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from actors.feed import Feed
from actors.in_hand import Slot
from actors.messages import StreamSpec
from actors.timing import StageClock
from actors.views import GapView, LiveView
from streamkv.frame_batches import FrameBatches
from streamkv.grid import OnGap
from streamkv.live import Clock, LiveFrame, LiveSource
from streamkv.types import Frame

MAX_THINNING = 8
"""The rate falls to this part of what is configured, and no further."""
CALM_SHARE = 0.25
"""A queue filled no more than this, for as many frames in a row as it holds, lets the rate rise again."""
PAUSE_S = 5.0
"""A source that is away for longer pauses its stream: what it has shown is then closed, and can be asked about."""

OpenLive = Callable[[StreamSpec, OnGap], LiveSource]


class LiveFeed(Feed):
    """Decodes as the source sends. One thread decodes; one other takes.

    It may have begun to read before it is somebody's turn to take: from `spec.start_s` on it is, and what was
    shown before then is not given out. `spec` may be set until the first frame is taken.
    """

    shares_batches = True

    def __init__(
        self,
        spec: StreamSpec,
        open_live: OpenLive,
        *,
        sample_fps: float,
        queue_frames: int,
        on_change: Callable[[], None],
        clock: StageClock,
        slot: Slot | None = None,
    ) -> None:
        super().__init__(
            spec,
            self._frames_of,
            batches=FrameBatches(sample_fps, 1),
            queue_frames=queue_frames,
            on_change=on_change,
            clock=clock,
            slot=slot,
        )
        self._source = open_live(spec, self._on_gap)
        self._sample_fps = sample_fps
        self._thinning = 1  # one of so many frames is taken in
        self._calm = 0  # frames in a row that found the queue nearly empty
        self._dropped = 0
        self._lost: tuple[float, float] | None = None  # the span of frames dropped since one was taken
        self._dated: tuple[float, Clock] | None = None  # of the last frame taken: its date, by whose clock

    def stop(self) -> None:
        self._source.stop()
        super().stop()

    def drain(self) -> None:
        """Takes in nothing more; what waits is the last of it, since nobody will be shown it again."""
        self._source.stop()
        with self._space:
            self._closed = True
        self._on_change()

    def take(self) -> list[Frame]:
        from_s = self.spec.start_s
        while (taken := super().take()) and taken[0].end_s <= from_s:
            pass
        for frame in taken:
            if isinstance(frame, LiveFrame):
                self._dated = frame.wall_s, frame.clock
        self._tell_lost()
        return [replace(frame, start_s=max(frame.start_s, from_s)) for frame in taken]

    def take_gaps(self) -> list[GapView]:
        from_s, gaps = self.spec.start_s, super().take_gaps()
        return [replace(gap, start_s=max(gap.start_s, from_s)) for gap in gaps if gap.end_s > from_s]

    @property
    def is_paused(self) -> bool:
        outage = self._source.outage
        return outage is not None and time.time() - outage.since_s > PAUSE_S and self.num_queued == 0

    @property
    def live(self) -> LiveView:
        outage = self._source.outage
        wall_s, clock = self._dated or (None, "")
        return LiveView(
            sample_fps=self._sample_fps / self._thinning,
            dropped_frames=self._dropped,
            frame_age_s=time.time() - wall_s if wall_s is not None else None,
            clock=clock,
            connections=self._source.connections,
            outage=str(outage) if outage is not None else "",
        )

    def _frames_of(self, spec: StreamSpec, on_gap: OnGap) -> Iterator[Frame]:
        return self._source.frames(self._slot.aside)

    def _put(self, batch: list[Frame]) -> None:
        (frame,) = batch
        with self._space:
            if self._stopping or self._closed:
                return
            self._rest(frame)
            if self._is_full(batch) and self._thinning < MAX_THINNING:
                self._thin()
            if not self._is_due(frame):
                self._clock.count("thinned_frames")
                return
            while self._is_full(batch):
                self._drop_oldest()
            self._append([self._widened(frame)])
        self._on_change()

    def _thin(self) -> None:
        """Halves the rate, of the frames that wait as well."""
        self._thinning *= 2
        waiting = list(self._frames)
        self._clear()
        for frame in waiting:
            if self._is_due(frame):
                self._append([self._widened(frame)])
            else:
                self._clock.count("thinned_frames")

    def _rest(self, coming: Frame) -> None:
        """Doubles the rate when there has been room for a while."""
        is_calm = len(self._frames) <= CALM_SHARE * self._queue_frames and not self._is_full([coming])
        self._calm = self._calm + 1 if is_calm else 0
        has_rested = self._calm >= max(self._queue_frames, MAX_THINNING)
        if self._thinning > 1 and has_rested and self._is_due(coming):  # where no frame's time is cut short
            self._thinning //= 2
            self._calm = 0

    def _drop_oldest(self) -> None:
        (frame,) = super().take()
        self._dropped += 1
        self._clock.count("dropped_frames")
        self._lost = (self._lost[0] if self._lost is not None else frame.start_s, frame.end_s)

    def _tell_lost(self) -> None:
        """Once for a run of them, when the taker has come back."""
        with self._space:
            lost, self._lost = self._lost, None
        if lost is not None:
            self._on_gap(*lost, "frames were dropped: they came faster than they could be taken in")

    def _is_due(self, frame: Frame) -> bool:
        return self._grid_index(frame) % self._thinning == 0

    def _widened(self, frame: Frame) -> Frame:
        """A frame that is due stands for the time until the next one that is."""
        return replace(frame, end_s=frame.start_s + self._thinning / self._sample_fps)

    def _grid_index(self, frame: Frame) -> int:
        return round(frame.start_s * self._sample_fps)
