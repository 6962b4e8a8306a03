"""Many streams' pasts as one, so that one question searches them all on one scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from torch import Tensor

from streamkv.memory import BlockTable, Ranked, SegmentInfo, VideoMemory, cat_tables, find_segment
from streamkv.types import Geometry, LayerBlocks, cat_blocks


class ManyVideos(VideoMemory):
    """Several memories. Segments are numbered anew: those of the first memory, of the second, and so on."""

    def __init__(self, memories: Sequence[VideoMemory]) -> None:
        """At least one, all of one model, none without a segment."""
        self._memories = tuple(memories)
        room = [memory.segments[-1].segment_no + 1 for memory in memories]
        self._offsets = np.concatenate([[0], np.cumsum(room)]).astype(np.int64)

    @property
    def geometry(self) -> Geometry:
        return self._memories[0].geometry

    @property
    def as_of_s(self) -> float:
        return max(memory.as_of_s for memory in self._memories)

    @cached_property
    def segments(self) -> tuple[SegmentInfo, ...]:
        """By stream, and within one in time order."""
        return tuple(
            SegmentInfo(int(offset) + s.segment_no, s.start_s, s.end_s, s.num_frames)
            for offset, memory in zip(self._offsets, self._memories, strict=False)
            for s in memory.segments
        )

    def original(self, segment_no: int) -> tuple[int, SegmentInfo]:
        """Which memory a segment of the whole is from, and the segment as that one has it."""
        stream = int(np.searchsorted(self._offsets, segment_no, side="right")) - 1
        return stream, find_segment(self._memories[stream], segment_no - int(self._offsets[stream]))

    def search_each(
        self, layer: int, queries: Tensor, k: int, among: np.ndarray | None = None
    ) -> list[Ranked]:
        found: list[list[Ranked]] = [[] for _ in queries]
        for stream, memory in enumerate(self._memories):
            own = None if among is None else self._own(stream, among)
            for ranked, into in zip(memory.search_each(layer, queries, k, own), found, strict=True):
                into.append(Ranked(ranked.segment_nos + self._offsets[stream], ranked.scores))
        return [Ranked.of(some).best(k) for some in found]

    def table(self, layer: int, segment_nos: np.ndarray | None = None) -> BlockTable:
        named = None if segment_nos is None else np.unique(segment_nos)
        parts = []
        for stream, memory in enumerate(self._memories):
            own = None if named is None else self._own(stream, named)
            if own is None or len(own):
                table = memory.table(layer, own)
                parts.append(
                    BlockTable(table.segment_nos + self._offsets[stream], table.slots, table.mean_keys)
                )
        return cat_tables(parts, self.geometry.summary_dim)

    def prefetch(self, segment_nos: np.ndarray) -> None:
        for stream, memory in enumerate(self._memories):
            if len(own := self._own(stream, segment_nos)):
                memory.prefetch(own)

    def gather(self, layer: int, segment_nos: np.ndarray, slots: np.ndarray) -> LayerBlocks:
        if not len(slots):
            return self._memories[0].gather(layer, segment_nos, slots)
        streams = np.searchsorted(self._offsets, segment_nos, side="right") - 1
        bounds = [0, *(np.flatnonzero(np.diff(streams)) + 1).tolist(), len(slots)]
        parts = []
        for start, stop in pairwise(bounds):
            stream = int(streams[start])
            own = segment_nos[start:stop] - self._offsets[stream]
            parts.append(self._memories[stream].gather(layer, own, slots[start:stop]))
        return cat_blocks(parts)

    def _own(self, stream: int, segment_nos: np.ndarray) -> np.ndarray:
        """Of ascending numbers those of one stream, as it counts."""
        first, stop = np.searchsorted(segment_nos, self._offsets[stream : stream + 2])
        own: np.ndarray = segment_nos[first:stop] - self._offsets[stream]
        return own


class FoundSegment(NamedTuple):
    """A segment as its stream numbers it, and how well all layers together find that it fits the question."""

    segment: SegmentInfo
    score: float


class FoundStream(NamedTuple):
    """One of the memories, by its index; its score is that of its best segment."""

    stream: int
    segments: tuple[FoundSegment, ...]  # best first, at least one

    @property
    def score(self) -> float:
        return self.segments[0].score


def best_streams(
    many: ManyVideos, scores: Mapping[int, float], count: int, segments_each: int
) -> list[FoundStream]:
    """The `count` memories whose best segment has the highest scores, best first; of equals the earlier one.

    `scores`: of some segments of the whole.
    """
    by_stream: dict[int, list[FoundSegment]] = {}
    for no in sorted(scores, key=lambda no: (-scores[no], no)):
        stream, segment = many.original(no)
        by_stream.setdefault(stream, []).append(FoundSegment(segment, scores[no]))
    return [FoundStream(s, tuple(found[:segments_each])) for s, found in list(by_stream.items())[:count]]
