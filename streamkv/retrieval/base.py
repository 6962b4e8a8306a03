"""What retrieval passes around, and what a policy is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

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

    @cached_property
    def standing(self) -> tuple[np.ndarray, np.ndarray]:
        """Its segments (S,), and how far the best block of each stands out (1, S); of at least one block."""
        return stand_out(self.segment_nos, self.scores.double().numpy()[None])

    @property
    def num_blocks(self) -> int:
        return len(self.slots)

    def take(self, rows: Sequence[int]) -> BlockChoice:
        index = np.array(rows, np.int64)
        return BlockChoice(self.segment_nos[index], self.slots[index])


def stand_out(segment_nos: np.ndarray, scores_QB: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Segments of blocks that are in their order: their numbers (S,), z-scores of their best blocks (Q, S)."""
    first = np.flatnonzero(np.concatenate(([True], segment_nos[1:] != segment_nos[:-1])))
    return segment_nos[first], zscores(np.maximum.reduceat(scores_QB, first, axis=1))


def zscores(scores: np.ndarray) -> np.ndarray:
    """Along the last axis: mean 0 and deviation 1; all 0 where all are equal."""
    centred = scores - scores.mean(axis=-1, keepdims=True)
    spread = np.sqrt(np.square(centred).mean(axis=-1, keepdims=True))
    z: np.ndarray = centred / np.where(spread > 0, spread, 1.0)
    return z


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


class Looks(NamedTuple):
    """What all layers asked for one question, and found."""

    queries: Sequence[Query]
    candidates: Sequence[Candidates]


class Retriever(ABC):
    """Which blocks a layer reads.

    It is asked about several questions of one memory at a time, and says of each what it would say of it alone (but for
    the last bits of scores).
    """

    is_adaptive = False
    """Whether choices wait for what all layers found, so that the question runs twice."""

    def __init__(self, method: MethodConfig, geometry: Geometry) -> None:
        self.method = method
        self.geometry = geometry

    @abstractmethod
    def look_each(self, memory: VideoMemory, layer: int, queries: Sequence[Query]) -> list[Candidates]:
        """For each question, what the layer can choose from."""

    def choose(self, candidates: Candidates, count: int | None = None) -> BlockChoice:
        """`count` of them, or as many as the policy takes by itself: all, unless it says otherwise."""
        return BlockChoice(candidates.segment_nos, candidates.slots)

    def reconsider_each(self, memory: VideoMemory, looks: Sequence[Looks]) -> list[Sequence[Candidates]]:
        """Once all layers have looked: for each question what each can choose from after all; as before, unless the
        policy says otherwise."""
        return [look.candidates for look in looks]

    def voters(self, num_layers: int) -> Sequence[int]:
        """Of the layers that have looked, those that say how far segments stand out."""
        return range(num_layers)

    def allocate(self, candidates: Sequence[Candidates]) -> list[int]:
        """Each layer's count, from the scores of all layers."""
        return [c.num_blocks for c in candidates]

    def look(self, memory: VideoMemory, layer: int, query: Query) -> Candidates:
        """`look_each` for one question."""
        return self.look_each(memory, layer, [query])[0]

    def reconsider(
        self, memory: VideoMemory, queries: Sequence[Query], candidates: Sequence[Candidates]
    ) -> Sequence[Candidates]:
        """`reconsider_each` for one question."""
        return self.reconsider_each(memory, [Looks(queries, candidates)])[0]
