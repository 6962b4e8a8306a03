"""Numbers of blocks to bytes and back: what `codecs` does with tensors. Knows no names and no files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

FLOAT16_MAX = 65_504.0
CACHED_NUMBERS = 100_000
"""How many are encoded or decoded at a time."""


# ---- numbers of another type


def cast(blocks_bNGd: Tensor, *, halve: bool) -> Tensor:
    """(b, N, G, d) to (b, bytes) uint8."""
    stored = _stored(blocks_bNGd.dtype, halve)
    if stored != blocks_bNGd.dtype:
        blocks_bNGd = blocks_bNGd.to(stored)
        if not _are_finite(blocks_bNGd):  # beyond float16's largest they have become infinite
            blocks_bNGd.clamp_(-FLOAT16_MAX, FLOAT16_MAX)
    return blocks_bNGd.contiguous().flatten(1).view(torch.uint8)


def uncast_into(parts: Sequence[Tensor], blocks_bNGd: Tensor, *, halve: bool) -> None:
    flat, stored, at = blocks_bNGd.flatten(1), _stored(blocks_bNGd.dtype, halve), 0
    for rows in parts:
        flat[at : at + len(rows)].copy_(rows.view(stored))
        at += len(rows)


def uncast(rows: Tensor, shape: tuple[int, ...], dtype: torch.dtype, *, halve: bool) -> Tensor:
    return rows.view(_stored(dtype, halve)).view(shape).to(dtype)


def _stored(dtype: torch.dtype, halve: bool) -> torch.dtype:
    return torch.float16 if halve and dtype == torch.float32 else dtype


def _are_finite(halves: Tensor) -> bool:
    """By their bits, which takes a third of what looking at them as numbers does."""
    bits = halves.view(torch.int16) & 0x7FFF
    return not bits.numel() or int(bits.max()) < 0x7C00


# ---- whole steps above the lowest of a group


def to_steps(blocks_bNGd: Tensor, bits: int, *, keys: bool) -> Tensor:
    """(b, N, G, d) to (b, bytes) uint8."""
    _, N, G, d = blocks_bNGd.shape
    size = (G * d if keys else N * G) * 4 + -(-N * G * d * bits // 8)
    rows = torch.empty(len(blocks_bNGd), size, dtype=torch.uint8)
    for few, blocks in _few_at_a_time(rows, blocks_bNGd):
        _encode(blocks.float(), few, bits, keys=keys)
    return rows


def _encode(blocks_bNGd: Tensor, rows: Tensor, bits: int, *, keys: bool) -> None:
    axis, levels = 1 if keys else 3, 2**bits - 1
    lowest = blocks_bNGd.amin(axis, keepdim=True).clamp_(-FLOAT16_MAX, FLOAT16_MAX).half()
    highest = blocks_bNGd.amax(axis, keepdim=True).clamp_(-FLOAT16_MAX, FLOAT16_MAX)
    # Half the range is stored, for a range of twice float16's largest; and no step of 0.
    spread = ((highest - lowest.float()) / 2).clamp_(2**-14).half()
    steps = (blocks_bNGd - lowest.float()).mul_((levels / 2) / spread.float())
    codes = steps.round_().clamp_(0, levels).to(torch.uint8).cpu().flatten(1)
    size = 2 * lowest[0].numel()
    rows[:, :size] = lowest.flatten(1).view(torch.uint8)
    rows[:, size : 2 * size] = spread.flatten(1).view(torch.uint8)
    rows[:, 2 * size :] = _pack(codes, bits)


def from_steps(parts: Sequence[Tensor], blocks_bNGd: Tensor, bits: int, *, keys: bool) -> None:
    """Joins the rows, which are small, then decodes a few at a time, while they are in the processor's cache."""
    rows = torch.cat(list(parts)) if len(parts) > 1 else parts[0]
    for few, blocks in _few_at_a_time(rows, blocks_bNGd):
        if blocks.dtype == torch.float32:
            _decode(few, blocks, bits, keys=keys)
        else:
            wide = torch.empty(blocks.shape)
            _decode(few, wide, bits, keys=keys)
            blocks.copy_(wide)


def _decode(rows: Tensor, blocks_bNGd: Tensor, bits: int, *, keys: bool) -> None:
    b, N, G, d = blocks_bNGd.shape
    group, size = ((b, 1, G, d), G * d) if keys else ((b, N, G, 1), N * G)
    lowest, spread = _halves(rows[:, : 4 * size]).view(b, 2, size).unbind(1)
    codes = _unpack(rows[:, 4 * size :], N * G * d, bits)
    blocks_bNGd.flatten(1).copy_(codes)
    blocks_bNGd.mul_((spread * (2 / (2**bits - 1))).view(group)).add_(lowest.view(group))


def _pack(codes: Tensor, bits: int) -> Tensor:
    codes = torch.nn.functional.pad(codes, (0, -codes.shape[1] % (8 // bits)))
    packed = codes.numpy()
    width = bits
    while width < 8:  # the two bytes of a little-endian number to one; numpy, which has unsigned ones
        pairs = packed.view(np.uint16)
        packed = (pairs | pairs >> (8 - width)).astype(np.uint8)
        width *= 2
    return torch.from_numpy(packed)


def _unpack(packed: Tensor, count: int, bits: int) -> Tensor:
    codes = packed.numpy()
    width = 8
    while width > bits:  # two codes of a byte to the two bytes of a little-endian number
        width //= 2
        pairs = codes.astype(np.uint16)
        pairs |= pairs << (8 - width)
        pairs &= (2**width - 1) * 0x0101
        codes = pairs.view(np.uint8)
    return torch.from_numpy(codes[:, :count])


def _halves(raw: Tensor) -> Tensor:
    """Bytes as float16, then float32; a copy, since a row of odd length begins anywhere."""
    return raw.clone(memory_format=torch.contiguous_format).view(torch.float16).float()


def _few_at_a_time(rows: Tensor, blocks_bNGd: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Blocks and their rows, so few that the processor's cache holds them."""
    if len(rows):
        few = max(1, CACHED_NUMBERS // blocks_bNGd[0].numel())
        yield from zip(torch.split(rows, few), torch.split(blocks_bNGd, few), strict=True)
