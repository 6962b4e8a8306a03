"""What an answer reads: one stream's past as blocks, whoever keeps them.

`streamkv.store.StreamSnapshot` implements `VideoMemory` over files; `InMemoryVideo` over lists, for tests and
one-process use. The engine knows neither. torch is imported where tensors are joined: whoever only writes a store, or
speaks of spans of time, does without.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from streamkv.types import Geometry, LayerBlocks, SegmentKV

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class SegmentInfo:
    segment_no: int
    start_s: float
    end_s: float
    num_frames: int


@dataclass(frozen=True)
class BlockTable:
    """Blocks of one layer in time order: by segment, then by slot. Rows line up across the fields."""

    segment_nos: np.ndarray  # (B,) int64
    slots: np.ndarray  # (B,) int64: row within the segment's LayerBlocks of this layer
    mean_keys: Tensor  # (B, G * d) float32

    @property
    def num_blocks(self) -> int:
        return int(self.segment_nos.shape[0])


class Ranked(NamedTuple):
    """What a search found, best first."""

    segment_nos: np.ndarray  # (F,) int64
    scores: np.ndarray  # (F,) float32: inner products

    @classmethod
    def of(cls, parts: Sequence[Ranked]) -> Ranked:
        """What several searches found, in whatever order."""
        return cls(np.concatenate([p.segment_nos for p in parts]), np.concatenate([p.scores for p in parts]))

    def best(self, k: int) -> Ranked:
        """At most k; of equals those with the lower number."""
        order = np.lexsort((self.segment_nos, -self.scores))[:k]
        return Ranked(self.segment_nos[order], self.scores[order])


def cat_tables(parts: Sequence[BlockTable], summary_dim: int) -> BlockTable:
    """Tables of one layer in the order given; none makes an empty one."""
    import torch

    return BlockTable(
        np.concatenate([np.empty(0, np.int64), *(part.segment_nos for part in parts)]),
        np.concatenate([np.empty(0, np.int64), *(part.slots for part in parts)]),
        torch.cat([torch.empty((0, summary_dim)), *(part.mean_keys for part in parts)]),
    )


class VideoMemory(Protocol):
    """One stream's committed past, at one moment: it does not change while an answer reads it."""

    @property
    def geometry(self) -> Geometry: ...

    @property
    def as_of_s(self) -> float:
        """Stream time up to which segments are committed; 0.0 when there is none."""
        ...

    @property
    def segments(self) -> tuple[SegmentInfo, ...]:
        """In time order."""
        ...

    def search(self, layer: int, query: Tensor, k: int, among: np.ndarray | None = None) -> np.ndarray:
        """Segments whose summary vectors of `layer` have the largest inner product with query (G * d,).

        At most k of their numbers, best first, int64. `among`: the only segments that are looked at, as ascending
        numbers; None: all.
        """
        return self.search_each(layer, query[None], k, among)[0].segment_nos

    def search_each(
        self, layer: int, queries: Tensor, k: int, among: np.ndarray | None = None
    ) -> list[Ranked]:
        """What `search` finds for each of the queries (Q, G * d), in one pass over the vectors."""
        ...

    def table(self, layer: int, segment_nos: np.ndarray | None = None) -> BlockTable:
        """The blocks of `layer`, of all segments or of those named."""
        ...

    def prefetch(self, segment_nos: np.ndarray) -> None:
        """Most layers are about to gather blocks of these segments (ascending numbers): what can be begun is, and
        nothing is waited for."""
        return

    def gather(self, layer: int, segment_nos: np.ndarray, slots: np.ndarray) -> LayerBlocks:
        """The named blocks' keys and values, in the order named. The result may share memory with a file."""
        ...


class InMemoryVideo(VideoMemory):
    """A `VideoMemory` over a list of segments, in time order; `add` appends the next."""

    def __init__(self, geometry: Geometry, segments: Iterable[SegmentKV] = ()) -> None:
        self._geometry = geometry
        self._by_no: dict[int, SegmentKV] = {}
        self._mean_keys: dict[tuple[int, int], Tensor] = {}  # (segment_no, layer)
        for segment in segments:
            self.add(segment)

    def add(self, segment: SegmentKV) -> None:
        """The next segment; its number must be higher than all before it."""
        if self._by_no and segment.segment_no <= (last := next(reversed(self._by_no))):
            raise ValueError(f"segment_no: got {segment.segment_no}, need more than {last}")
        for layer, blocks in enumerate(segment.layers):
            self._mean_keys[segment.segment_no, layer] = blocks.mean_keys().cpu()
        self._by_no[segment.segment_no] = segment

    @property
    def geometry(self) -> Geometry:
        return self._geometry

    @property
    def as_of_s(self) -> float:
        return max((s.end_s for s in self._by_no.values()), default=0.0)

    @property
    def segments(self) -> tuple[SegmentInfo, ...]:
        return tuple(
            SegmentInfo(s.segment_no, s.start_s, s.end_s, s.num_frames) for s in self._by_no.values()
        )

    def search_each(
        self, layer: int, queries: Tensor, k: int, among: np.ndarray | None = None
    ) -> list[Ranked]:
        import torch

        segment_nos = np.array([no for no in self._by_no if among is None or no in among], np.int64)
        if not len(segment_nos):
            return [Ranked(segment_nos, np.empty(0, np.float32)) for _ in queries]
        vectors = torch.stack([self._by_no[no].summary_vectors[layer] for no in segment_nos.tolist()]).cpu()
        scores_QS = queries.cpu().float() @ vectors.T
        return [Ranked(segment_nos, scores.numpy()).best(k) for scores in scores_QS]

    def table(self, layer: int, segment_nos: np.ndarray | None = None) -> BlockTable:
        import torch

        wanted = set(self._by_no) if segment_nos is None else {int(no) for no in segment_nos}
        chosen = [s for no, s in self._by_no.items() if no in wanted]
        counts = [s.layers[layer].num_blocks for s in chosen]
        empty = torch.empty((0, self._geometry.summary_dim))
        return BlockTable(
            segment_nos=np.repeat(np.array([s.segment_no for s in chosen], np.int64), counts),
            slots=np.concatenate([np.empty(0, np.int64), *(np.arange(c) for c in counts)]),
            mean_keys=torch.cat([empty, *(self._mean_keys[s.segment_no, layer] for s in chosen)]),
        )

    def gather(self, layer: int, segment_nos: np.ndarray, slots: np.ndarray) -> LayerBlocks:
        import torch

        rows = [
            (self._by_no[int(no)].layers[layer], int(slot))
            for no, slot in zip(segment_nos, slots, strict=True)
        ]
        return LayerBlocks(
            keys_bNGd=torch.stack([blocks.keys_bNGd[slot] for blocks, slot in rows]),
            values_bNGd=torch.stack([blocks.values_bNGd[slot] for blocks, slot in rows]),
            frame_ids=tuple(blocks.frame_ids[slot] for blocks, slot in rows),
            spans_s=tuple(blocks.spans_s[slot] for blocks, slot in rows),
        )


class MemoryView(VideoMemory):
    """Another memory, read as it is; who derives changes some of that."""

    def __init__(self, memory: VideoMemory) -> None:
        self._memory = memory

    @property
    def geometry(self) -> Geometry:
        return self._memory.geometry

    @property
    def as_of_s(self) -> float:
        return self._memory.as_of_s

    @property
    def segments(self) -> tuple[SegmentInfo, ...]:
        return self._memory.segments

    def search_each(
        self, layer: int, queries: Tensor, k: int, among: np.ndarray | None = None
    ) -> list[Ranked]:
        return self._memory.search_each(layer, queries, k, among)

    def table(self, layer: int, segment_nos: np.ndarray | None = None) -> BlockTable:
        return self._memory.table(layer, segment_nos)

    def prefetch(self, segment_nos: np.ndarray) -> None:
        self._memory.prefetch(segment_nos)

    def gather(self, layer: int, segment_nos: np.ndarray, slots: np.ndarray) -> LayerBlocks:
        return self._memory.gather(layer, segment_nos, slots)


def last_blocks(memory: VideoMemory, layer: int, count: int) -> BlockTable:
    """The latest `count` blocks of a layer, in time order; fewer where there are fewer."""
    # Each segment keeps at least one block in each layer, so these hold them all.
    segments = memory.segments
    latest = [s.segment_no for s in segments[max(0, len(segments) - count) :]]
    table = memory.table(layer, np.array(latest, np.int64))
    start = max(0, table.num_blocks - count)
    return BlockTable(table.segment_nos[start:], table.slots[start:], table.mean_keys[start:])


def find_segment(memory: VideoMemory, segment_no: int) -> SegmentInfo:
    """The segment of that number, which is there. There may be a hundred thousand, in the order of their numbers."""
    segments = memory.segments
    return segments[bisect_left(segments, segment_no, key=lambda s: s.segment_no)]
