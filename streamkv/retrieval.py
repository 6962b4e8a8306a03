"""Mean query and a `VideoMemory` to the blocks that each layer reads (ALGORITHM.md, 7). Knows no attention.

An answer asks a `Retriever` twice: `look` finds what a layer could read, `choose` takes a count of it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from streamkv.budget import allocate, bounds_around, budget_policy, top_in_time_order
from streamkv.compression import block_scores
from streamkv.config import MethodConfig
from streamkv.errors import ConfigError
from streamkv.memory import BlockTable, VideoMemory, last_blocks
from streamkv.types import Geometry


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
    """Whether counts wait for the scores of all layers, so that the question runs twice."""

    def __init__(self, method: MethodConfig, geometry: Geometry) -> None:
        self.method = method
        self.geometry = geometry

    @abstractmethod
    def look(
        self, memory: VideoMemory, layer: int, query: Tensor, among: np.ndarray | None = None
    ) -> Candidates:
        """What the layer can choose from.

        query: the grouped mean query (G * d,) before rotary embedding, made for `retrieve.similarity`.
        among: the segments that the layers agreed on, for a policy whose `agree` names some.
        """

    def choose(self, candidates: Candidates, count: int | None = None) -> BlockChoice:
        """`count` of them, or as many as the policy takes by itself: all, unless it says otherwise."""
        return BlockChoice(candidates.segment_nos, candidates.slots)

    def agree(self, candidates: Sequence[Candidates]) -> np.ndarray | None:
        """Once all layers have looked: segments that they look at again, and at no others; None: as they have."""
        return None

    def allocate(self, candidates: Sequence[Candidates]) -> list[int]:
        """Each layer's count, from the scores of all layers."""
        return [c.num_blocks for c in candidates]


class TopK(Retriever):
    """The latest `recent_blocks` and the best by score: K in all, on average over layers or in each."""

    def __init__(self, method: MethodConfig, geometry: Geometry) -> None:
        super().__init__(method, geometry)
        self.config = method.retrieve
        budget_policy(self.config.budget.policy)  # an unknown name fails here, not at the first question
        self.is_adaptive = self.config.budget.policy != "uniform"
        self._num_recent = min(self.config.recent_blocks, self.config.blocks_per_layer)

    def look(
        self, memory: VideoMemory, layer: int, query: Tensor, among: np.ndarray | None = None
    ) -> Candidates:
        query = query.float().cpu()
        table = self._table(memory, layer, query, among)
        return Candidates(
            table.segment_nos, table.slots, block_scores(query, table.mean_keys, self.config.similarity)
        )

    def _table(self, memory: VideoMemory, layer: int, query: Tensor, among: np.ndarray | None) -> BlockTable:
        """Blocks of the candidate segments and of those that hold the latest blocks; of all if exact."""
        found = among
        if found is None and not self.config.candidate_segments:
            return memory.table(layer)
        if found is None:
            found = memory.search(layer, query, self.config.candidate_segments)
        recent = last_blocks(memory, layer, self._num_recent).segment_nos
        return memory.table(layer, np.union1d(found, recent))

    def choose(self, candidates: Candidates, count: int | None = None) -> BlockChoice:
        count = min(self.config.blocks_per_layer if count is None else count, candidates.num_blocks)
        first_recent = candidates.num_blocks - min(self._num_recent, count)
        recent = range(first_recent, candidates.num_blocks)
        best = top_in_time_order(candidates.scores[:first_recent], count - len(recent))
        return candidates.take([*best, *recent])

    def allocate(self, candidates: Sequence[Candidates]) -> list[int]:
        K = self.config.blocks_per_layer
        bounds = bounds_around(K, self.config.budget.tau, at_least=self._num_recent)
        return allocate([c.scores for c in candidates], len(candidates) * K, bounds, self.config.budget)


class Agreement(TopK):
    """`topk` among the `agree_segments` segments that all layers together score highest (and the latest blocks).

    A layer alone is easily fooled by a segment that resembles the right one in what this layer looks at; and blocks
    of a wrong segment in one layer disturb what the others read.
    """

    def __init__(self, method: MethodConfig, geometry: Geometry) -> None:
        super().__init__(method, geometry)
        if self.config.agree_segments < 1:
            raise ConfigError("retrieve.agree_segments: got 0, policy `agree` needs at least 1")
        self.is_adaptive = True

    def agree(self, candidates: Sequence[Candidates]) -> np.ndarray | None:
        best = agreed_segments(candidates, self.config.agree_segments, self.config.agree_share)
        return np.array(best, np.int64)


def agreed_segments(candidates: Sequence[Candidates], count: int, share: float = 0.0) -> list[int]:
    """The `count` segments with the highest sums, over layers, of their best block's z-score, best first.

    Z-scores count from the layer's lowest; that is what a segment gets where it is no candidate. Of equals the
    earlier one. A segment with less than `share` of the best one's sum is left out.
    """
    sums: dict[int, float] = {}
    for c in candidates:
        if not c.num_blocks:
            continue
        nos, first = np.unique(c.segment_nos, return_index=True)
        best = np.maximum.reduceat(c.scores.double().numpy(), first)
        z = (best - best.mean()) / (best.std() or 1.0)
        for no, above_lowest in zip(nos.tolist(), (z - z.min()).tolist(), strict=True):
            sums[no] = sums.get(no, 0.0) + above_lowest
    ranked = sorted(sums, key=lambda no: (-sums[no], no))[:count]
    return [no for no in ranked if sums[no] >= share * sums[ranked[0]]]


class Recent(Retriever):
    """The latest `recent_blocks`."""

    def __init__(self, method: MethodConfig, geometry: Geometry) -> None:
        super().__init__(method, geometry)
        if method.retrieve.recent_blocks < 1:
            raise ConfigError("retrieve.recent_blocks: got 0, policy `recent` needs at least 1")

    def look(
        self, memory: VideoMemory, layer: int, query: Tensor, among: np.ndarray | None = None
    ) -> Candidates:
        return _unscored(last_blocks(memory, layer, self.method.retrieve.recent_blocks))


class Window(Retriever):
    """The blocks that lie within the last `n_local` tokens, at least one; all when n_local is 0."""

    def look(
        self, memory: VideoMemory, layer: int, query: Tensor, among: np.ndarray | None = None
    ) -> Candidates:
        n_local = self.method.n_local
        if not n_local:
            return _unscored(memory.table(layer))
        return _unscored(last_blocks(memory, layer, max(1, n_local // self.geometry.frame_tokens)))


class Everything(Retriever):
    """All blocks."""

    def look(
        self, memory: VideoMemory, layer: int, query: Tensor, among: np.ndarray | None = None
    ) -> Candidates:
        return _unscored(memory.table(layer))


def _unscored(table: BlockTable) -> Candidates:
    return Candidates(table.segment_nos, table.slots, torch.zeros(table.num_blocks))


RETRIEVERS: dict[str, type[Retriever]] = {
    "topk": TopK,
    "agree": Agreement,
    "recent": Recent,
    "window": Window,
    "everything": Everything,
}
"""Retrieval policies by name. To add one: a `Retriever` and a row here."""


def make_retriever(method: MethodConfig, geometry: Geometry) -> Retriever:
    policy = method.retrieve.policy
    if policy not in RETRIEVERS:
        raise ConfigError(f"retrieve.policy: unknown {policy!r}; known: {', '.join(sorted(RETRIEVERS))}")
    return RETRIEVERS[policy](method, geometry)
