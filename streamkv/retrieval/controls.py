"""What answers are compared with: the latest blocks, the last window, everything."""

from __future__ import annotations

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

    def look(self, memory: VideoMemory, layer: int, query: Query) -> Candidates:
        return _unscored(last_blocks(memory, layer, self.method.retrieve.recent_blocks))


class Window(Retriever):
    """The blocks that lie within the last `n_local` tokens, at least one; all when n_local is 0."""

    def look(self, memory: VideoMemory, layer: int, query: Query) -> Candidates:
        n_local = self.method.n_local
        if not n_local:
            return _unscored(memory.table(layer))
        return _unscored(last_blocks(memory, layer, max(1, n_local // self.geometry.frame_tokens)))


class Everything(Retriever):
    """All blocks."""

    def look(self, memory: VideoMemory, layer: int, query: Query) -> Candidates:
        return _unscored(memory.table(layer))


def _unscored(table: BlockTable) -> Candidates:
    return Candidates(table.segment_nos, table.slots, torch.zeros(table.num_blocks))
