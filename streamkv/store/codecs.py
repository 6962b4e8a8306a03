"""How a block's keys and values are stored. A row of a file decodes by itself: an answer pays for what it reads.

| codec | keys | values | round-trip error |
| --- | --- | --- | --- |
| `raw` | as they are | as they are | none |
| `fp16` | float32 to float16; 16-bit types as they are | the same | half a unit in the last place, 2^-11 of a value |
| `int8` | per channel over the block's tokens | per token and head, over its channels | 1/510 of the group's range |
| `int4` | the same, two to a byte | the same | 1/30 of the group's range |
| `int2` | the same, four to a byte | the same | 1/6 of the group's range |

Keys have channels that are large in every token, values do not (KIVI, arXiv 2402.02750): hence the groups. A group is
stored as its lowest value and half its range, both float16, and whole steps. Values beyond float16's range are
clamped to it.
To these errors float16's own comes: 2^-11 of the group's largest magnitude, for the lowest value and for the range.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from streamkv.errors import ConfigError
from streamkv.types import Geometry

FLOAT16_MAX = 65_504.0
CACHED_NUMBERS = 100_000
"""How many are encoded or decoded at a time."""


class Codec(ABC):
    """Blocks (b, N, G, d) of keys or of values to rows of bytes (b, row_bytes), and back."""

    @abstractmethod
    def row_bytes(self, geometry: Geometry, dtype: torch.dtype, *, keys: bool) -> int:
        """Bytes of one block's keys, or values."""

    @abstractmethod
    def encode(self, blocks_bNGd: Tensor, *, keys: bool) -> Tensor:
        """(b, row_bytes) uint8."""

    @abstractmethod
    def decode_into(self, parts: Sequence[Tensor], blocks_bNGd: Tensor, *, keys: bool) -> None:
        """Fills contiguous blocks, of the type that was encoded, with the rows of all parts."""

    def decode(self, rows: Tensor, geometry: Geometry, dtype: torch.dtype, *, keys: bool) -> Tensor:
        """(b, N, G, d) of `dtype`."""
        blocks_bNGd = torch.empty(shape_of(len(rows), geometry), dtype=dtype)
        self.decode_into([rows], blocks_bNGd, keys=keys)
        return blocks_bNGd


class Cast(Codec):
    """Numbers of another type; decoding to the type that they have is a view."""

    def __init__(self, *, halve: bool) -> None:
        self._halve = halve

    def _stored(self, dtype: torch.dtype) -> torch.dtype:
        return torch.float16 if self._halve and dtype == torch.float32 else dtype

    def row_bytes(self, geometry: Geometry, dtype: torch.dtype, *, keys: bool) -> int:
        return geometry.block_bytes(self._stored(dtype).itemsize) // 2

    def encode(self, blocks_bNGd: Tensor, *, keys: bool) -> Tensor:
        stored = self._stored(blocks_bNGd.dtype)
        if stored != blocks_bNGd.dtype:
            blocks_bNGd = blocks_bNGd.to(stored)
            if not _are_finite(blocks_bNGd):  # beyond float16's largest they have become infinite
                blocks_bNGd.clamp_(-FLOAT16_MAX, FLOAT16_MAX)
        return blocks_bNGd.contiguous().flatten(1).view(torch.uint8)

    def decode_into(self, parts: Sequence[Tensor], blocks_bNGd: Tensor, *, keys: bool) -> None:
        flat, stored, at = blocks_bNGd.flatten(1), self._stored(blocks_bNGd.dtype), 0
        for rows in parts:
            flat[at : at + len(rows)].copy_(rows.view(stored))
            at += len(rows)

    def decode(self, rows: Tensor, geometry: Geometry, dtype: torch.dtype, *, keys: bool) -> Tensor:
        return rows.view(self._stored(dtype)).view(shape_of(len(rows), geometry)).to(dtype)


class Steps(Codec):
    """Whole steps above the lowest value of a group: `bits` each, keys grouped by channel, values by token."""

    def __init__(self, bits: int) -> None:
        self._bits, self._levels = bits, 2**bits - 1

    def row_bytes(self, geometry: Geometry, dtype: torch.dtype, *, keys: bool) -> int:
        N, G, d = geometry.frame_tokens, geometry.num_kv_heads, geometry.head_dim
        groups = G * d if keys else N * G
        return groups * 2 * 2 + self._packed(N * G * d)

    def _packed(self, count: int) -> int:
        return -(-count * self._bits // 8)

    def encode(self, blocks_bNGd: Tensor, *, keys: bool) -> Tensor:
        _, N, G, d = blocks_bNGd.shape
        size = (G * d if keys else N * G) * 4 + self._packed(N * G * d)
        rows = torch.empty(len(blocks_bNGd), size, dtype=torch.uint8)
        for few, blocks in _few_at_a_time(rows, blocks_bNGd):
            self._encode(blocks.float(), few, keys=keys)
        return rows

    def _encode(self, blocks_bNGd: Tensor, rows: Tensor, *, keys: bool) -> None:
        axis = 1 if keys else 3
        lowest = blocks_bNGd.amin(axis, keepdim=True).clamp_(-FLOAT16_MAX, FLOAT16_MAX).half()
        highest = blocks_bNGd.amax(axis, keepdim=True).clamp_(-FLOAT16_MAX, FLOAT16_MAX)
        # Half the range is stored, for a range of twice float16's largest; and no step of 0.
        spread = ((highest - lowest.float()) / 2).clamp_(2**-14).half()
        steps = (blocks_bNGd - lowest.float()).mul_((self._levels / 2) / spread.float())
        codes = steps.round_().clamp_(0, self._levels).to(torch.uint8).cpu().flatten(1)
        size = 2 * lowest[0].numel()
        rows[:, :size] = lowest.flatten(1).view(torch.uint8)
        rows[:, size : 2 * size] = spread.flatten(1).view(torch.uint8)
        rows[:, 2 * size :] = self._pack(codes)

    def decode_into(self, parts: Sequence[Tensor], blocks_bNGd: Tensor, *, keys: bool) -> None:
        """Joins the rows, which are small, then decodes a few at a time, while they are in the processor's cache."""
        rows = torch.cat(list(parts)) if len(parts) > 1 else parts[0]
        for few, blocks in _few_at_a_time(rows, blocks_bNGd):
            if blocks.dtype == torch.float32:
                self._decode(few, blocks, keys=keys)
            else:
                wide = torch.empty(blocks.shape)
                self._decode(few, wide, keys=keys)
                blocks.copy_(wide)

    def _decode(self, rows: Tensor, blocks_bNGd: Tensor, *, keys: bool) -> None:
        b, N, G, d = blocks_bNGd.shape
        group, size = ((b, 1, G, d), G * d) if keys else ((b, N, G, 1), N * G)
        lowest, spread = _halves(rows[:, : 4 * size]).view(b, 2, size).unbind(1)
        codes = self._unpack(rows[:, 4 * size :], N * G * d)
        blocks_bNGd.flatten(1).copy_(codes)
        blocks_bNGd.mul_((spread * (2 / self._levels)).view(group)).add_(lowest.view(group))

    def _pack(self, codes: Tensor) -> Tensor:
        codes = torch.nn.functional.pad(codes, (0, -codes.shape[1] % (8 // self._bits)))
        packed = codes.numpy()
        width = self._bits
        while width < 8:  # the two bytes of a little-endian number to one; numpy, which has unsigned ones
            pairs = packed.view(np.uint16)
            packed = (pairs | pairs >> (8 - width)).astype(np.uint8)
            width *= 2
        return torch.from_numpy(packed)

    def _unpack(self, packed: Tensor, count: int) -> Tensor:
        codes = packed.numpy()
        width = 8
        while width > self._bits:  # two codes of a byte to the two bytes of a little-endian number
            width //= 2
            pairs = codes.astype(np.uint16)
            pairs |= pairs << (8 - width)
            pairs &= (2**width - 1) * 0x0101
            codes = pairs.view(np.uint8)
        return torch.from_numpy(codes[:, :count])


CODECS: dict[str, Codec] = {
    "raw": Cast(halve=False),
    "fp16": Cast(halve=True),
    "int8": Steps(8),
    "int4": Steps(4),
    "int2": Steps(2),
}
"""Codecs by name. To add one: a `Codec` and a row here; a file names the one that it was written with."""


def _are_finite(halves: Tensor) -> bool:
    """By their bits, which takes a third of what looking at them as numbers does."""
    bits = halves.view(torch.int16) & 0x7FFF
    return not bits.numel() or int(bits.max()) < 0x7C00


def _halves(raw: Tensor) -> Tensor:
    """Bytes as float16, then float32; a copy, since a row of odd length begins anywhere."""
    return raw.clone(memory_format=torch.contiguous_format).view(torch.float16).float()


def _few_at_a_time(rows: Tensor, blocks_bNGd: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Blocks and their rows, so few that the processor's cache holds them."""
    if len(rows):
        few = max(1, CACHED_NUMBERS // blocks_bNGd[0].numel())
        yield from zip(torch.split(rows, few), torch.split(blocks_bNGd, few), strict=True)


def make_codec(name: str, setting: str = "store.codec") -> Codec:
    if name not in CODECS:
        raise ConfigError(f"{setting}: unknown {name!r}; known: {', '.join(CODECS)}")
    return CODECS[name]


def shape_of(rows: int, geometry: Geometry) -> tuple[int, int, int, int]:
    return rows, geometry.frame_tokens, geometry.num_kv_heads, geometry.head_dim
