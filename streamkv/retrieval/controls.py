"""What answers are compared with: the latest blocks, the last window, everything."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from streamkv.config import MethodConfig
from streamkv.errors import ConfigError
from streamkv.memory import BlockTable, VideoMemory, last_blocks
from streamkv.retrieval.base import Candidates, Query, Retriever
from streamkv.types import Geometry


class Recent(Retriever):
    """The latest `recent_blocks`."""

    def __init__(self, method: MethodConfig, geometry: Geometry) -> None:
        super().__init__(method, geometry)
        if method.retrieve.recent_blocks < 1:
            raise ConfigError("retrieve.recent_blocks: got 0, policy `recent` needs at least 1")

    def look_each(self, memory: VideoMemory, layer: int, queries: Sequence[Query]) -> list[Candidates]:
        return _unscored(last_blocks(memory, layer, self.method.retrieve.recent_blocks), queries)


class Window(Retriever):
    """The blocks that lie within the last `n_local` tokens, at least one; all when n_local is 0."""

    def look_each(self, memory: VideoMemory, layer: int, queries: Sequence[Query]) -> list[Candidates]:
        n_local = self.method.n_local
        if not n_local:
            return _unscored(memory.table(layer), queries)
        num_blocks = max(1, n_local // self.geometry.frame_tokens)
        return _unscored(last_blocks(memory, layer, num_blocks), queries)


class Everything(Retriever):
    """All blocks."""

    def look_each(self, memory: VideoMemory, layer: int, queries: Sequence[Query]) -> list[Candidates]:
        return _unscored(memory.table(layer), queries)


def _unscored(table: BlockTable, queries: Sequence[Query]) -> list[Candidates]:
    """The same for all questions."""
    return [Candidates(table.segment_nos, table.slots, torch.zeros(table.num_blocks))] * len(queries)
