"""A memory that keeps what was read of it, for one who asks many questions about the same video."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import TypeVar

import numpy as np

from streamkv.memory import BlockTable, MemoryView, VideoMemory
from streamkv.types import LayerBlocks

HELD_BYTES = 256 * 2**20
"""Of tables, and of blocks: what was used longest ago is let go first."""

T = TypeVar("T")


class HeldVideo(MemoryView):
    """Another memory, which must not change; not for several threads."""

    def __init__(self, memory: VideoMemory, max_bytes: int = HELD_BYTES) -> None:
        super().__init__(memory)
        self._tables = _Held[BlockTable](max_bytes, lambda table: table.mean_keys.nbytes)
        self._blocks = _Held[LayerBlocks](max_bytes, lambda b: b.keys_bNGd.nbytes + b.values_bNGd.nbytes)

    def table(self, layer: int, segment_nos: np.ndarray | None = None) -> BlockTable:
        key = (layer, None if segment_nos is None else segment_nos.tobytes())
        return self._tables.get_or_read(key, lambda: self._memory.table(layer, segment_nos))

    def gather(self, layer: int, segment_nos: np.ndarray, slots: np.ndarray) -> LayerBlocks:
        key = (layer, segment_nos.tobytes(), slots.tobytes())
        return self._blocks.get_or_read(key, lambda: self._memory.gather(layer, segment_nos, slots))


class _Held(OrderedDict[Hashable, T]):
    """By key, the latest used last, as many as `max_bytes` hold."""

    def __init__(self, max_bytes: int, size: Callable[[T], int]) -> None:
        super().__init__()
        self._left, self._size = max_bytes, size

    def get_or_read(self, key: Hashable, read: Callable[[], T]) -> T:
        if key in self:
            self.move_to_end(key)
            return self[key]
        value = self[key] = read()
        self._left -= self._size(value)
        while self._left < 0:
            _, oldest = self.popitem(last=False)
            self._left += self._size(oldest)
        return value
