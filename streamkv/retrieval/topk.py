"""The paper's retrieval: each layer's best blocks, with adaptive counts (ALGORITHM.md, section 7)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from streamkv.budget import allocate, bounds_around, budget_policy, top_in_time_order
from streamkv.compression import block_scores
from streamkv.config import MethodConfig
from streamkv.memory import BlockTable, VideoMemory, last_blocks
from streamkv.retrieval.base import BlockChoice, Candidates, Query, Retriever
from streamkv.types import Geometry


class TopK(Retriever):
    """The latest `recent_blocks` and the best by score: K in all, on average over layers or in each."""

    def __init__(self, method: MethodConfig, geometry: Geometry) -> None:
        super().__init__(method, geometry)
        self.config = method.retrieve
        budget_policy(self.config.budget.policy)  # an unknown name fails here, not at the first question
        self.is_adaptive = self.config.budget.policy != "uniform"
        self._num_recent = min(self.config.recent_blocks, self.config.blocks_per_layer)

    def look_each(self, memory: VideoMemory, layer: int, queries: Sequence[Query]) -> list[Candidates]:
        """The blocks of the segments that the layer's index finds; all blocks if `candidate_segments` is 0.

        One search, and one table of what any of them found.
        """
        if not self.config.candidate_segments:
            table = memory.table(layer)
            return [_candidates(table, scores) for scores in self._scores_each(table, queries)]
        means_QD = torch.stack([query.mean.float().cpu() for query in queries])
        found = memory.search_each(layer, means_QD, self.config.candidate_segments)
        return self.look_in_each(memory, layer, queries, [ranked.segment_nos for ranked in found])

    def look_in_each(
        self, memory: VideoMemory, layer: int, queries: Sequence[Query], segment_nos: Sequence[np.ndarray]
    ) -> list[Candidates]:
        """For each query: the blocks of its segments and of those that hold the latest blocks."""
        recent = last_blocks(memory, layer, self._num_recent).segment_nos if self._num_recent else _NONE
        each = [np.unique(np.concatenate((nos, recent))) for nos in segment_nos]
        table = memory.table(layer, union_of(each))
        if len(each) == 1:
            return [_candidates(table, scores) for scores in self._scores_each(table, queries)]
        return [
            _candidates(table, scores, rows_of(table, nos))
            for scores, nos in zip(self._scores_each(table, queries), each, strict=True)
        ]

    def _scores_each(self, table: BlockTable, queries: Sequence[Query]) -> list[Tensor]:
        """(B,) for each query."""
        means_DQ = torch.stack([query.mean.float().cpu() for query in queries], dim=1)
        return list(block_scores(means_DQ, table.mean_keys, self.config.similarity).T.contiguous())

    def choose(self, candidates: Candidates, count: int | None = None) -> BlockChoice:
        count = self.config.blocks_per_layer if count is None else count
        if count >= candidates.num_blocks:
            return BlockChoice(candidates.segment_nos, candidates.slots)
        first_recent = candidates.num_blocks - min(self._num_recent, count)
        recent = range(first_recent, candidates.num_blocks)
        best = top_in_time_order(candidates.scores[:first_recent], count - len(recent))
        return candidates.take([*best, *recent])

    def allocate(self, candidates: Sequence[Candidates]) -> list[int]:
        K = self.config.blocks_per_layer
        bounds = bounds_around(K, self.config.budget.tau, at_least=self._num_recent)
        return allocate([c.scores for c in candidates], len(candidates) * K, bounds, self.config.budget)


_NONE = np.empty(0, np.int64)


def _candidates(table: BlockTable, scores_B: Tensor, rows: np.ndarray | None = None) -> Candidates:
    if rows is None:
        return Candidates(table.segment_nos, table.slots, scores_B)
    return Candidates(table.segment_nos[rows], table.slots[rows], scores_B[torch.from_numpy(rows)])


def union_of(each: Sequence[np.ndarray]) -> np.ndarray:
    """All of their segments, once, by ascending number, which each has."""
    return each[0] if len(each) == 1 else np.unique(np.concatenate(each))


def rows_of(table: BlockTable, segment_nos: np.ndarray) -> np.ndarray:
    """The rows of these segments, which are in the table, by ascending number."""
    at = np.searchsorted(segment_nos, table.segment_nos)
    at[at == len(segment_nos)] = 0
    rows: np.ndarray = np.flatnonzero(segment_nos[at] == table.segment_nos)
    return rows
