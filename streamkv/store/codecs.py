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

What is done with the tensors is in `packing`, which needs torch: whoever only asks how long a row is, as who opens a
file to commit it, does without.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

from streamkv.errors import ConfigError
from streamkv.types import Geometry

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Codec(ABC):
    """Blocks (b, N, G, d) of keys or of values to rows of bytes (b, stored_bytes), and back."""

    @abstractmethod
    def stored_bytes(self, geometry: Geometry, value_bytes: int, *, keys: bool) -> int:
        """Bytes of one block's keys, or values, of so many bytes a number."""

    @abstractmethod
    def encode(self, blocks_bNGd: Tensor, *, keys: bool) -> Tensor:
        """(b, stored_bytes) uint8."""

    @abstractmethod
    def decode_into(self, parts: Sequence[Tensor], blocks_bNGd: Tensor, *, keys: bool) -> None:
        """Fills contiguous blocks, of the type that was encoded, with the rows of all parts."""

    def decode(self, rows: Tensor, geometry: Geometry, dtype: torch.dtype, *, keys: bool) -> Tensor:
        """(b, N, G, d) of `dtype`."""
        blocks_bNGd = rows.new_empty(shape_of(len(rows), geometry), dtype=dtype)
        self.decode_into([rows], blocks_bNGd, keys=keys)
        return blocks_bNGd


class Cast(Codec):
    """Numbers of another type; decoding to the type that they have is a view."""

    def __init__(self, *, halve: bool) -> None:
        self._halve = halve

    def stored_bytes(self, geometry: Geometry, value_bytes: int, *, keys: bool) -> int:
        return geometry.block_bytes(min(value_bytes, 2) if self._halve else value_bytes) // 2

    def encode(self, blocks_bNGd: Tensor, *, keys: bool) -> Tensor:
        from streamkv.store import packing

        return packing.cast(blocks_bNGd, halve=self._halve)

    def decode_into(self, parts: Sequence[Tensor], blocks_bNGd: Tensor, *, keys: bool) -> None:
        from streamkv.store import packing

        packing.uncast_into(parts, blocks_bNGd, halve=self._halve)

    def decode(self, rows: Tensor, geometry: Geometry, dtype: torch.dtype, *, keys: bool) -> Tensor:
        from streamkv.store import packing

        return packing.uncast(rows, shape_of(len(rows), geometry), dtype, halve=self._halve)


class Steps(Codec):
    """Whole steps above the lowest value of a group: `bits` each, keys grouped by channel, values by token."""

    def __init__(self, bits: int) -> None:
        self._bits = bits

    def stored_bytes(self, geometry: Geometry, value_bytes: int, *, keys: bool) -> int:
        N, G, d = geometry.frame_tokens, geometry.num_kv_heads, geometry.head_dim
        groups = G * d if keys else N * G
        lowest_and_spread = 2
        return groups * lowest_and_spread * 2 + -(-N * G * d * self._bits // 8)

    def encode(self, blocks_bNGd: Tensor, *, keys: bool) -> Tensor:
        from streamkv.store import packing

        return packing.to_steps(blocks_bNGd, self._bits, keys=keys)

    def decode_into(self, parts: Sequence[Tensor], blocks_bNGd: Tensor, *, keys: bool) -> None:
        from streamkv.store import packing

        packing.from_steps(parts, blocks_bNGd, self._bits, keys=keys)


CODECS: dict[str, Codec] = {
    "raw": Cast(halve=False),
    "fp16": Cast(halve=True),
    "int8": Steps(8),
    "int4": Steps(4),
    "int2": Steps(2),
}
"""Codecs by name. To add one: a `Codec` and a row here; a file names the one that it was written with."""


def make_codec(name: str, setting: str = "store.codec") -> Codec:
    if name not in CODECS:
        raise ConfigError(f"{setting}: unknown {name!r}; known: {', '.join(CODECS)}")
    return CODECS[name]


def shape_of(rows: int, geometry: Geometry) -> tuple[int, int, int, int]:
    return rows, geometry.frame_tokens, geometry.num_kv_heads, geometry.head_dim
