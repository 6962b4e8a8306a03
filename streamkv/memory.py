"""What an answer reads: one stream's past as blocks, whoever keeps them.

`streamkv.store.StreamReader` implements `VideoMemory` over files; `InMemoryVideo` over lists, for tests and
one-process use. The engine knows neither.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor

from streamkv.types import Geometry, LayerBlocks


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

    def search(self, layer: int, query: Tensor, k: int) -> np.ndarray:
        """Segment numbers whose summary vectors of `layer` have the largest inner product with query (G * d,).

        At most k of them, best first, int64.
        """
        ...

    def table(self, layer: int, segment_nos: np.ndarray | None = None) -> BlockTable:
        """The blocks of `layer`, of all segments or of those named."""
        ...

    def gather(self, layer: int, segment_nos: np.ndarray, slots: np.ndarray) -> LayerBlocks:
        """The named blocks' keys and values, in the order named. The result may share memory with a file."""
        ...
