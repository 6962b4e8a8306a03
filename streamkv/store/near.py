"""Blocks that were read lately, kept near the model: on its device, and in host memory behind that.

A tier is one slab of rows, each for a block's keys and values as attention sees them, so that what is all there comes
by one gather on its device. The least recently used leave when the slab is full. Files stay what is true: a row is
known by its file's path, which says its content, so an aged or removed segment's rows are never found again.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from streamkv.store.records import ModelIdentity, NearTier
from streamkv.store.segment_file import torch_dtype
from streamkv.types import LayerBlocks

Read = Callable[[np.ndarray], LayerBlocks]
"""Reads those of the blocks asked for that have these positions (ascending)."""


class BlockKey(NamedTuple):
    path: str  # of its segment's file
    layer: int
    slot: int


class _Label(NamedTuple):
    """What of a block is no tensor."""

    frame_id: int
    span_s: tuple[float, float]


class NearBlocks:
    """One tier, with those behind it. Threads may share it."""

    def __init__(self, identity: ModelIdentity, tiers: Sequence[NearTier]) -> None:
        """`tiers`, at least one: the nearest first. Memory is taken when the first block comes."""
        geometry, tier = identity.geometry, tiers[0]
        self.device = torch.device(tier.device)
        self.max_blocks = tier.num_bytes // identity.block_bytes // 2
        self.behind = NearBlocks(identity, tiers[1:]) if tiers[1:] else None
        self.num_hits = self.num_misses = 0  # blocks
        self._dtype = torch_dtype(identity.dtype)
        self._shape = (geometry.frame_tokens, geometry.num_kv_heads, geometry.head_dim)
        self._slabs: tuple[torch.Tensor, torch.Tensor] | None = None  # keys, values: (max_blocks, N, G, d)
        self._rows: OrderedDict[BlockKey, tuple[int, _Label]] = OrderedDict()  # the least recently used first
        self._free = list(range(self.max_blocks))
        self._lock = threading.Lock()

    @property
    def num_blocks(self) -> int:
        return len(self._rows)

    def gather(self, keys: Sequence[BlockKey], read: Read) -> LayerBlocks:
        """The blocks in the order asked, on this tier's device; `read` is asked for what no tier has."""
        keys_bNGd, values_bNGd = out = (self._empty(len(keys)), self._empty(len(keys)))
        labels: dict[int, _Label] = {}  # by position
        with self._lock:
            rows: list[int] = []
            for i, key in enumerate(keys):
                if key in self._rows:
                    self._rows.move_to_end(key)
                    row, labels[i] = self._rows[key]
                    rows.append(row)
            if rows:  # under the lock: a row may be given to another block as soon as it is released
                self._take(rows, list(labels), out)
            away = np.array([i for i in range(len(keys)) if i not in labels], np.int64)
            self.num_hits, self.num_misses = self.num_hits + len(rows), self.num_misses + len(away)
        if len(away):
            blocks = self._read([keys[i] for i in away], lambda at: read(away[at]))
            at = torch.from_numpy(away).to(self.device)
            for part, read_bNGd in zip(out, (blocks.keys_bNGd, blocks.values_bNGd), strict=True):
                part[at] = read_bNGd.to(self.device)
            new = dict(zip(away.tolist(), map(_Label, blocks.frame_ids, blocks.spans_s), strict=True))
            self._keep(keys, new, out)
            labels |= new
        ordered = [labels[i] for i in range(len(keys))]
        return LayerBlocks(
            keys_bNGd, values_bNGd, tuple(x.frame_id for x in ordered), tuple(x.span_s for x in ordered)
        )

    def forget(self, paths: Iterable[str]) -> None:
        """Gives up the rows of these files, which are deleted or no longer read."""
        gone = set(paths)
        with self._lock:
            for key in [key for key in self._rows if key.path in gone] if gone else []:
                self._free.append(self._rows.pop(key)[0])
        if self.behind is not None:
            self.behind.forget(gone)

    # ---- inside

    def _read(self, keys: Sequence[BlockKey], read: Read) -> LayerBlocks:
        return read(np.arange(len(keys))) if self.behind is None else self.behind.gather(keys, read)

    def _take(self, rows: list[int], to: list[int], out: tuple[torch.Tensor, torch.Tensor]) -> None:
        """Copies rows of the slabs to positions of the result."""
        assert self._slabs is not None
        rows_b = torch.tensor(rows, device=self.device)
        for part, slab in zip(out, self._slabs, strict=True):
            if len(to) == len(part):
                torch.index_select(slab, 0, rows_b, out=part)
            else:
                part[torch.tensor(to, device=self.device)] = slab[rows_b]

    def _keep(
        self, keys: Sequence[BlockKey], new: dict[int, _Label], out: tuple[torch.Tensor, torch.Tensor]
    ) -> None:
        """Copies what was just read into the slabs, from its position in the result; the last of it when that is more
        than they hold."""
        if not self.max_blocks:
            return
        rows: list[int] = []
        positions: list[int] = []
        with self._lock:
            for position, label in list(new.items())[-self.max_blocks :]:
                if keys[position] in self._rows:  # asked for twice, or another thread was first
                    continue
                row = self._free.pop() if self._free else self._rows.popitem(last=False)[1][0]
                self._rows[keys[position]] = row, label
                rows.append(row)
                positions.append(position)
            if rows:
                rows_b, from_b = (torch.tensor(some, device=self.device) for some in (rows, positions))
                for slab, part in zip(self._allocated(), out, strict=True):
                    slab[rows_b] = part[from_b]

    def _allocated(self) -> tuple[torch.Tensor, torch.Tensor]:
        if self._slabs is None:
            pinned = self.device.type == "cpu" and torch.cuda.is_available()
            with torch.inference_mode(False):  # else only such a mode might write to them
                self._slabs = self._empty(self.max_blocks, pinned), self._empty(self.max_blocks, pinned)
        return self._slabs

    def _empty(self, num_blocks: int, pinned: bool = False) -> torch.Tensor:
        shape = (num_blocks, *self._shape)
        return torch.empty(shape, dtype=self._dtype, device=self.device, pin_memory=pinned)
