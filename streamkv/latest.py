"""What a stream has shown and its store does not hold yet: the open segment, and closed ones on their way.

Nothing of it is kept: it is prefilled where a question is answered, and again by the ingest when the segment closes.
So a camera that nobody asks about costs nothing more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from streamkv.engine import Engine
from streamkv.memory import BlockTable, InMemoryVideo, Ranked, SegmentInfo, VideoMemory, cat_tables
from streamkv.prefill import StreamWindow
from streamkv.types import Geometry, LayerBlocks, Segment, SegmentKV, cat_blocks, take_blocks


class JoinedVideo(VideoMemory):
    """A stream's committed past and the few segments after it."""

    def __init__(self, past: VideoMemory, latest: InMemoryVideo) -> None:
        self._past, self._latest = past, latest
        self._first_no = latest.segments[0].segment_no

    @property
    def geometry(self) -> Geometry:
        return self._latest.geometry

    @property
    def as_of_s(self) -> float:
        return max(self._past.as_of_s, self._latest.as_of_s)

    @property
    def segments(self) -> tuple[SegmentInfo, ...]:
        return (*self._past.segments, *self._latest.segments)

    def search_each(
        self, layer: int, queries: Tensor, k: int, among: np.ndarray | None = None
    ) -> list[Ranked]:
        old_among, new_among = (None, None) if among is None else self._split(among)
        past = self._past.search_each(layer, queries, k, old_among)
        latest = self._latest.search_each(layer, queries, k, new_among)
        return [Ranked.of(pair).best(k) for pair in zip(past, latest, strict=True)]

    def _split(self, segment_nos: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        is_new = segment_nos >= self._first_no
        return segment_nos[~is_new], segment_nos[is_new]

    def table(self, layer: int, segment_nos: np.ndarray | None = None) -> BlockTable:
        old_nos, new_nos = (None, None) if segment_nos is None else self._split(segment_nos)
        parts = [self._past.table(layer, old_nos), self._latest.table(layer, new_nos)]
        return cat_tables(parts, self.geometry.summary_dim)

    def gather(self, layer: int, segment_nos: np.ndarray, slots: np.ndarray) -> LayerBlocks:
        is_new = segment_nos >= self._first_no
        if not is_new.any():
            return self._past.gather(layer, segment_nos, slots)
        new = self._latest.gather(layer, segment_nos[is_new], slots[is_new])
        if is_new.all():
            return new
        old = self._past.gather(layer, segment_nos[~is_new], slots[~is_new])
        order = np.argsort(np.concatenate([np.flatnonzero(~is_new), np.flatnonzero(is_new)]))
        return take_blocks(cat_blocks([old, new]), order.tolist())


@dataclass(frozen=True)
class _Prefilled:
    shown: tuple[int, int, float]  # which segment, and how much of it
    kv: SegmentKV
    window: StreamWindow  # after it


class LatestPast:
    """One stream's latest segments, prefilled as often as there is more of them and no oftener.

    The window before them is rebuilt from what is stored, as after a restart.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._stored: tuple[SegmentInfo, ...] | None = None  # what the window was rebuilt from
        self._window: StreamWindow | None = None
        self._done: list[_Prefilled] = []

    def joined(self, past: VideoMemory, segments: Sequence[Segment], guidance: str = "") -> VideoMemory:
        """The past with these segments, in time order, after it; those that it holds already are passed over."""
        stored = past.segments
        new = [s for s in segments if not stored or s.segment_no > stored[-1].segment_no]
        if not new:
            return past
        if self._window is None or stored != self._stored:
            self._window, self._stored = self._engine.open_window(past if stored else None), stored
            self._done = []
        self._prefill(self._window, new, guidance)
        return JoinedVideo(past, InMemoryVideo(past.geometry, [done.kv for done in self._done]))

    def _prefill(self, window: StreamWindow, segments: Sequence[Segment], guidance: str) -> None:
        for i, segment in enumerate(segments):
            shown = segment.segment_no, segment.num_source_frames, segment.resume_s
            if i < len(self._done) and self._done[i].shown == shown:
                continue
            del self._done[i:]
            draft = (self._done[-1].window if self._done else window).fork()
            self._done.append(_Prefilled(shown, self._engine.prefill(draft, segment, guidance), draft))
        del self._done[len(segments) :]
