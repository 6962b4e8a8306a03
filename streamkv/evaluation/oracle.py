"""A memory that shows only the segments that the truth lies in: what perfect retrieval could answer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from streamkv.memory import BlockTable, SegmentInfo, VideoMemory
from streamkv.types import Geometry, LayerBlocks


class OnlySegments:
    """A `VideoMemory` with some of another's segments."""

    def __init__(self, memory: VideoMemory, segment_nos: Sequence[int]) -> None:
        self._memory = memory
        self._nos = np.array(sorted(segment_nos), np.int64)

    @property
    def geometry(self) -> Geometry:
        return self._memory.geometry

    @property
    def as_of_s(self) -> float:
        return self._memory.as_of_s

    @property
    def segments(self) -> tuple[SegmentInfo, ...]:
        return tuple(s for s in self._memory.segments if s.segment_no in self._nos)

    def search(self, layer: int, query: Tensor, k: int) -> np.ndarray:
        return self.search_each(layer, query[None], k)[0]

    def search_each(self, layer: int, queries: Tensor, k: int) -> list[np.ndarray]:
        every = self._memory.search_each(layer, queries, len(self._memory.segments))
        return [ranked[np.isin(ranked, self._nos)][:k] for ranked in every]

    def table(self, layer: int, segment_nos: np.ndarray | None = None) -> BlockTable:
        wanted = self._nos if segment_nos is None else np.intersect1d(segment_nos, self._nos)
        return self._memory.table(layer, wanted)

    def gather(self, layer: int, segment_nos: np.ndarray, slots: np.ndarray) -> LayerBlocks:
        return self._memory.gather(layer, segment_nos, slots)


def holding(memory: VideoMemory, moments_s: Sequence[tuple[float, float]]) -> OnlySegments:
    """The segments that overlap any of the moments; the nearest one where none does."""
    segments = memory.segments
    chosen = [s.segment_no for s in segments if any(a < s.end_s and b > s.start_s for a, b in moments_s)]
    if not chosen and segments and moments_s:
        at = moments_s[0][0]
        chosen = [min(segments, key=lambda s: abs(s.start_s - at)).segment_no]
    return OnlySegments(memory, chosen or [s.segment_no for s in segments])
