"""Plain attention with explicit positions, and rotary embedding. Knows no model and no store.

    T query tokens   S key tokens   H query heads   G key/value heads   d head size

Query head h reads key/value head h // (H / G). Nothing here is fused: it is the reference that a faster
kernel has to match.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

RotaryFn = Callable[[Tensor, Tensor], Tensor]
"""(T, heads, d) and positions (T,) to the rotated (T, heads, d)."""
KNOWN_TURNS = 2**15
"""Positions whose turns are kept."""
SHORT = 256
"""Tokens of a prompt that is short; the mask of such is kept."""


@dataclass(frozen=True)
class KV:
    """Keys before rotary embedding and values, of one layer."""

    keys_TGd: Tensor
    values_TGd: Tensor

    @property
    def num_tokens(self) -> int:
        return self.keys_TGd.shape[0]

    def join(self, later: KV) -> KV:
        return KV(
            torch.cat((self.keys_TGd, later.keys_TGd)),
            torch.cat((self.values_TGd, later.values_TGd)),
        )

    def last(self, num_tokens: int) -> KV:
        """The last `num_tokens` tokens, or all if there are fewer; a copy, so that the rest can be freed."""
        if self.num_tokens <= num_tokens:
            return self
        start = self.num_tokens - num_tokens
        return KV(self.keys_TGd[start:].clone(), self.values_TGd[start:].clone())


@dataclass(frozen=True)
class Rope:
    """Rotary embedding: pairs (i, i + d/2) turn by position * inv_freq[i]."""

    inv_freq: Tensor  # (d / 2,) float32
    scaling: float = 1.0

    def __call__(self, x_THd: Tensor, positions_T: Tensor) -> Tensor:
        cos, sin = self._turns(positions_T).to(x_THd.dtype).unbind(1)
        first, second = x_THd.chunk(2, dim=-1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)

    def _turns(self, positions_T: Tensor) -> Tensor:
        """(T, 2, 1, d / 2): cosines and sines. On a CPU they are looked up, since most calls are of few tokens."""
        if positions_T.is_cpu and len(positions_T) and int(positions_T.max()) < KNOWN_TURNS:
            return self._known.index_select(0, positions_T)
        # Angles in float32 even for half precision models: a position of 15,000 has no exact bfloat16.
        angles = positions_T.float()[:, None] * self.inv_freq
        return torch.stack((angles.cos(), angles.sin()), dim=1)[:, :, None] * self.scaling

    @cached_property
    def _known(self) -> Tensor:
        with torch.inference_mode(False):  # whoever trains may be next
            return self._turns(torch.arange(KNOWN_TURNS + 1))[:KNOWN_TURNS]  # one beyond what is looked up


def attention_scores(q_THd: Tensor, k_SGd: Tensor) -> Tensor:
    """(H, T, S): scaled dot products of rotated queries and keys."""
    T, H, d = q_THd.shape
    S, G, _ = k_SGd.shape
    q = q_THd.view(T, G, H // G, d).permute(1, 2, 0, 3).reshape(G, H // G * T, d)
    scores: Tensor = (q @ k_SGd.permute(1, 2, 0)).view(H, T, S)
    return scores * float(d**-0.5)


def masked_softmax(scores_HTS: Tensor, visible_TS: Tensor) -> Tensor:
    """(H, T, S) float32 weights; rows sum to 1. Each query must see at least one key."""
    scores = scores_HTS.float()  # the softmax wants float32
    return scores.masked_fill(~visible_TS, float("-inf")).softmax(dim=-1)


def mix_values(weights_HTS: Tensor, v_SGd: Tensor) -> Tensor:
    """(T, H, d): values weighted by head."""
    H, T, S = weights_HTS.shape
    _, G, d = v_SGd.shape
    weights = weights_HTS.to(v_SGd.dtype).view(G, H // G * T, S)
    return (weights @ v_SGd.permute(1, 0, 2)).view(H, T, d).transpose(0, 1)


def _later(num_tokens: int, device: torch.device) -> Tensor:
    """(T, T) bool: the keys j that come after query i, of the last T keys; all before them are visible.

    keys     |0 . . . . S-T . . . S|
    query i does not see key j   iff   j > S - T + i
    """
    if num_tokens > SHORT:
        return torch.ones((num_tokens, num_tokens), dtype=torch.bool, device=device).triu(diagonal=1)
    return _later_of_short(device)[:num_tokens, :num_tokens]


@lru_cache(8)
def _later_of_short(device: torch.device) -> Tensor:
    return torch.ones((SHORT, SHORT), dtype=torch.bool, device=device).triu(diagonal=1)


def attend(q_THd: Tensor, k_SGd: Tensor, v_SGd: Tensor) -> Tensor:
    """(T, H, d): causal attention of the last T of S tokens, queries and keys rotated already."""
    return attend_with_weights(q_THd, k_SGd, v_SGd)[0]


def attend_with_weights(q_THd: Tensor, k_SGd: Tensor, v_SGd: Tensor) -> tuple[Tensor, Tensor]:
    """As `attend`, and the weights of the last query alone, (H, S) float32."""
    scores_HTS = attention_scores(q_THd, k_SGd).float()  # the softmax wants float32
    if (T := q_THd.shape[0]) > 1:  # what is before the queries' own keys all of them see
        scores_HTS[:, :, -T:].masked_fill_(_later(T, q_THd.device), float("-inf"))
    weights_HTS = scores_HTS.softmax(dim=-1)
    return mix_values(weights_HTS, v_SGd), weights_HTS[:, -1]


def attend_stream(
    rope: RotaryFn, q_THd: Tensor, system: KV, local: KV, *, num_past: int, n_local: int
) -> Tensor:
    """(T, H, d): sliding-window attention of stream tokens (ALGORITHM.md, section 4).

    `local` ends with the T queries' own keys; before them stand the C tokens of the window. `num_past` counts
    the stream's tokens before the first query, those that slid out of the window too; n_local 0: no limit.

        system 0 .. S-1 | slid out | window 0 .. C-1 | queries C .. C+T-1

    A query sees itself and the n_local - 1 stream tokens before it, at their true distances. It always sees
    the system prompt: at the true distance while that is below n_local, else at the distance n_local (the
    query is rotated to n_local, the key to 0, as in InfLLM and ReKV). Positions count from the window's first
    token, so they stay below C + T however long the stream runs.
    """
    T = q_THd.shape[0]
    C = local.num_tokens - T
    steps = torch.arange(C + T, device=q_THd.device)
    local_scores = attention_scores(rope(q_THd, steps[C:]), rope(local.keys_TGd, steps))
    distances_TT = steps[C:, None] - steps[None, :]
    local_visible = distances_TT >= 0
    if n_local:
        local_visible &= distances_TT < n_local
    system_scores = _system_scores(rope, q_THd, system.keys_TGd, num_past=num_past, n_local=n_local)
    weights_HTS = masked_softmax(
        torch.cat((system_scores, local_scores), dim=-1),
        torch.cat((local_visible.new_ones(T, system.num_tokens), local_visible), dim=-1),
    )
    return mix_values(weights_HTS, torch.cat((system.values_TGd, local.values_TGd)))


def _system_scores(rope: RotaryFn, q_THd: Tensor, k_SGd: Tensor, *, num_past: int, n_local: int) -> Tensor:
    """(H, T, S): the queries' scores on the system prompt, near or far."""
    T, S = q_THd.shape[0], k_SGd.shape[0]
    system_positions = torch.arange(S, device=q_THd.device)
    query_positions = torch.arange(S + num_past, S + num_past + T, device=q_THd.device)
    nearest, farthest = num_past + 1, S + num_past + T - 1  # distances

    def near() -> Tensor:
        return attention_scores(rope(q_THd, query_positions), rope(k_SGd, system_positions))

    def far() -> Tensor:
        at_n_local = torch.full((T,), n_local, device=q_THd.device)
        return attention_scores(rope(q_THd, at_n_local), rope(k_SGd, torch.zeros_like(system_positions)))

    if not n_local or farthest < n_local:
        return near()
    if nearest >= n_local:
        return far()
    is_far_TS = query_positions[:, None] - system_positions[None, :] >= n_local
    return torch.where(is_far_TS, far(), near())


def grouped_query(q_THd: Tensor, num_kv_heads: int, similarity: str = "dot") -> Tensor:
    """(G * d,) float32: the mean query over tokens, summed over the heads of each group.

    Its dot product with a key (G * d) equals the sum over heads of the expanded dot products. For `cosine` it is
    scaled, so that its product with a key of length 1 is the cosine of the expanded vectors (H * d).
    """
    _, H, d = q_THd.shape
    mean_Hd = q_THd.float().mean(dim=0)
    if similarity == "cosine":  # the expanded key is sqrt(H / G) times as long as the key
        mean_Hd = (
            torch.nn.functional.normalize(mean_Hd.flatten(), dim=0).view(H, d) / (H / num_kv_heads) ** 0.5
        )
    return grouped_queries(mean_Hd[None], num_kv_heads)[0]


def grouped_queries(q_THd: Tensor, num_kv_heads: int) -> Tensor:
    """(T, G * d) float32: each token's query, summed over the heads of each group; their mean is `grouped_query`."""
    T, H, d = q_THd.shape
    return q_THd.float().view(T, num_kv_heads, H // num_kv_heads, d).sum(dim=2).flatten(1)
