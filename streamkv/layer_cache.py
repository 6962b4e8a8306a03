"""What one layer has of an answer so far: rotated keys and values. Shapes as in `attention.py`.

Positions are rows, so no position is ever stored:

    0 .. S-1 system prompt | b blocks of N tokens, consecutive | T tokens of the prompt | the answer
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from streamkv.attention import KV, RotaryFn, attend_with_weights


class LayerCache:
    """Rotated keys and values (T, G, d) of one layer and one question, with room to grow."""

    def __init__(self, capacity: int, like: KV) -> None:
        self._keys_CGd = like.keys_TGd.new_empty((capacity, *like.keys_TGd.shape[1:]))
        self._values_CGd = like.values_TGd.new_empty((capacity, *like.values_TGd.shape[1:]))
        self.num_tokens = 0

    @property
    def keys(self) -> Tensor:
        return self._keys_CGd[: self.num_tokens]

    @property
    def values(self) -> Tensor:
        return self._values_CGd[: self.num_tokens]

    def append(self, rotated_keys_TGd: Tensor, values_TGd: Tensor) -> None:
        """The next tokens; there must be room."""
        stop = self.num_tokens + values_TGd.shape[0]
        assert stop <= self._keys_CGd.shape[0], (stop, self._keys_CGd.shape)
        self._keys_CGd[self.num_tokens : stop] = rotated_keys_TGd
        self._values_CGd[self.num_tokens : stop] = values_TGd
        self.num_tokens = stop


def attend_next(
    rope: RotaryFn,
    caches: Sequence[LayerCache],
    lengths: Sequence[int],
    q_THd: Tensor,
    k_TGd: Tensor,
    v_TGd: Tensor,
) -> tuple[Tensor, list[Tensor]]:
    """Several questions' next tokens, `lengths` of them for each cache, packed one question after the other.

    Returns what they attend to, (T, H, d), and the weights of each question's last token, (H, tokens). Each
    attends by itself: padded to one length and masked it measures the same with prompts, and no better than
    10 microseconds a question with single tokens.
    """
    num_heads = q_THd.shape[1]
    positions = consecutive([cache.num_tokens for cache in caches], lengths).to(q_THd.device)
    rotated = rope(torch.cat((q_THd, k_TGd), dim=1), positions)
    attended, weights = [], []
    each = list(lengths)
    parts = zip(caches, torch.split(rotated, each), torch.split(v_TGd, each), strict=True)
    for cache, queries_and_keys, values_TGd in parts:
        cache.append(queries_and_keys[:, num_heads:], values_TGd)
        out_THd, weights_HS = attend_with_weights(queries_and_keys[:, :num_heads], cache.keys, cache.values)
        attended.append(out_THd)
        weights.append(weights_HS)
    return torch.cat(attended), weights


def consecutive(starts: Sequence[int], lengths: Sequence[int]) -> Tensor:
    """Positions of runs of tokens: starts 3 10 and lengths 2 3 are 3 4 10 11 12."""
    runs = [np.arange(start, start + length) for start, length in zip(starts, lengths, strict=True)]
    return torch.from_numpy(np.concatenate(runs))
