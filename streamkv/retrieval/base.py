"""What retrieval passes around, and what a policy is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from streamkv.config import MethodConfig
from streamkv.memory import VideoMemory
from streamkv.types import Geometry


@dataclass(frozen=True)
class Query:
    """What one layer looks for: queries before rotary embedding, summed over the heads of each group."""

    mean: Tensor  # (G * d,) of all the question's tokens, made for `retrieve.similarity`
    tokens: Tensor  # (T, G * d) of each


@dataclass(frozen=True)
class Candidates:
    """Blocks that one layer can choose from, in time order."""

    segment_nos: np.ndarray  # (B,)
    slots: np.ndarray  # (B,)
    scores: Tensor  # (B,) float32, on the CPU

    @property
    def num_blocks(self) -> int:
        return len(self.slots)

    def take(self, rows: Sequence[int]) -> BlockChoice:
        index = np.array(rows, np.int64)
        return BlockChoice(self.segment_nos[index], self.slots[index])


@dataclass(frozen=True)
class BlockChoice:
    """Blocks that one layer reads, in time order."""

    segment_nos: np.ndarray  # (b,)
    slots: np.ndarray  # (b,)

    @property
    def num_blocks(self) -> int:
        return len(self.slots)

    def same_as(self, other: BlockChoice) -> bool:
        return np.array_equal(self.segment_nos, other.segment_nos) and np.array_equal(self.slots, other.slots)


class Retriever(ABC):
    """Which blocks a layer reads."""

    is_adaptive = False
    """Whether choices wait for what all layers found, so that the question runs twice."""

    def __init__(self, method: MethodConfig, geometry: Geometry) -> None:
        self.method = method
        self.geometry = geometry

    @abstractmethod
    def look(self, memory: VideoMemory, layer: int, query: Query) -> Candidates:
        """What the layer can choose from."""

    def choose(self, candidates: Candidates, count: int | None = None) -> BlockChoice:
        """`count` of them, or as many as the policy takes by itself: all, unless it says otherwise."""
        return BlockChoice(candidates.segment_nos, candidates.slots)

    def reconsider(
        self, memory: VideoMemory, queries: Sequence[Query], candidates: Sequence[Candidates]
    ) -> Sequence[Candidates]:
        """Once all layers have looked: what each can choose from after all; as before, unless the policy says."""
        return candidates

    def allocate(self, candidates: Sequence[Candidates]) -> list[int]:
        """Each layer's count, from the scores of all layers."""
        return [c.num_blocks for c in candidates]
