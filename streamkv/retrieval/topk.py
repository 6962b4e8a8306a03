"""The paper's retrieval: each layer's best blocks, with adaptive counts (ALGORITHM.md, section 7)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

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

    def look(self, memory: VideoMemory, layer: int, query: Query) -> Candidates:
        """The blocks of the segments that the layer's index finds; all blocks if `candidate_segments` is 0."""
        if not self.config.candidate_segments:
            return self._scored(memory.table(layer), query)
        return self.look_in(memory, layer, query, self._found(memory, layer, query))

    def look_in(self, memory: VideoMemory, layer: int, query: Query, segment_nos: np.ndarray) -> Candidates:
        """The blocks of these segments and of those that hold the latest blocks."""
        recent = last_blocks(memory, layer, self._num_recent).segment_nos
        return self._scored(memory.table(layer, np.union1d(segment_nos, recent)), query)

    def _found(self, memory: VideoMemory, layer: int, query: Query) -> np.ndarray:
        return memory.search(layer, query.mean.float().cpu(), self.config.candidate_segments)

    def _scored(self, table: BlockTable, query: Query) -> Candidates:
        scores = block_scores(query.mean.float().cpu(), table.mean_keys, self.config.similarity)
        return Candidates(table.segment_nos, table.slots, scores)

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
