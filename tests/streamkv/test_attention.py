"""Rotary embedding and plain attention against references that look at one pair of tokens at a time."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import attend_stream_slowly
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers.models.qwen2.modeling_qwen2 import apply_rotary_pos_emb

from streamkv.attention import (
    KNOWN_TURNS,
    KV,
    Rope,
    attend,
    attend_stream,
    attend_with_weights,
    grouped_query,
)

T, S, H, G, d = 5, 11, 6, 2, 8
INV_FREQ = 1.0 / 10_000 ** (torch.arange(0, d, 2) / d)
ROPE = Rope(INV_FREQ)


def random_kv(num_tokens: int, seed: int) -> KV:
    keys, values = torch.randn(2, num_tokens, G, d, generator=torch.Generator().manual_seed(seed))
    return KV(keys, values)


def random_queries(num_tokens: int = T) -> Tensor:
    return torch.randn(num_tokens, H, d, generator=torch.Generator().manual_seed(99))


def test_rope_equals_that_of_transformers() -> None:
    q, positions = random_queries(), torch.tensor([0, 3, 4, 100, 5000])
    angles = torch.cat((positions[:, None] * INV_FREQ,) * 2, dim=-1)[None]
    expected, _ = apply_rotary_pos_emb(
        q.transpose(0, 1)[None], q.transpose(0, 1)[None], angles.cos(), angles.sin()
    )
    torch.testing.assert_close(ROPE(q, positions), expected[0].transpose(0, 1))


@given(st.lists(st.integers(0, KNOWN_TURNS - 1), min_size=1, max_size=9))
def test_turns_that_are_looked_up_are_those_that_are_computed(positions: list[int]) -> None:
    """One token that lies beyond has all of them computed."""
    q = random_queries(len(positions) + 1)
    known = ROPE(q[:-1], torch.tensor(positions))
    computed = ROPE(q, torch.tensor([*positions, KNOWN_TURNS]))
    assert torch.equal(known, computed[:-1])


def test_rope_scaling_multiplies() -> None:
    q, positions = random_queries(), torch.arange(T)
    torch.testing.assert_close(Rope(INV_FREQ, 1.5)(q, positions), 1.5 * ROPE(q, positions))


def test_rope_in_half_precision_turns_by_exact_positions() -> None:
    """15,001 has no bfloat16: angles are float32 and only the result is rounded."""
    q, positions = random_queries(1).bfloat16(), torch.tensor([15_001])
    expected = ROPE(q.float(), positions)
    torch.testing.assert_close(ROPE(q, positions).float(), expected, atol=0.05, rtol=0.02)


def test_attend_equals_torch_with_expanded_heads() -> None:
    q, kv = random_queries(), random_kv(S, 0)
    expand = (t.repeat_interleave(H // G, dim=1).transpose(0, 1) for t in (kv.keys_TGd, kv.values_TGd))
    mask = torch.ones(T, S, dtype=torch.bool).tril(S - T)
    expected = scaled_dot_product_attention(q.transpose(0, 1), *expand, attn_mask=mask).transpose(0, 1)
    torch.testing.assert_close(attend(q, kv.keys_TGd, kv.values_TGd), expected)


def test_weights_are_those_of_the_last_query() -> None:
    q, kv = random_queries(), random_kv(S, 0)
    _, weights = attend_with_weights(q, kv.keys_TGd, kv.values_TGd)
    keys = kv.keys_TGd.repeat_interleave(H // G, dim=1)
    expected = (torch.einsum("hd,shd->hs", q[-1], keys) / d**0.5).softmax(dim=-1)
    torch.testing.assert_close(weights, expected)


@pytest.mark.parametrize(
    ("num_past", "n_local"),
    [(0, 0), (7, 0), (0, 100), (9, 30), (4, 6), (9, 10), (12, 5), (3, 1)],
    ids=lambda v: str(v),
)
def test_stream_attention_equals_the_pairwise_reference(num_past: int, n_local: int) -> None:
    """No limit; nothing far yet; the system prompt turning far among the queries; all far; one token wide."""
    q, system, stream = random_queries(), random_kv(3, 1), random_kv(num_past + T, 2)
    window = KV(stream.keys_TGd[:num_past], stream.values_TGd[:num_past])
    if n_local:
        window = window.last(n_local)
    new = KV(stream.keys_TGd[num_past:], stream.values_TGd[num_past:])
    got = attend_stream(ROPE, q, system, window.join(new), num_past=num_past, n_local=n_local)
    expected = attend_stream_slowly(q, system, stream, INV_FREQ, num_past=num_past, n_local=n_local)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


def test_positions_do_not_grow_with_the_stream() -> None:
    """A year into the stream the numbers are bit for bit those of its first hour."""
    q, system, local = random_queries(), random_kv(3, 1), random_kv(20 + T, 2)
    hour, year = (
        attend_stream(ROPE, q, system, local, num_past=past, n_local=20) for past in (10**5, 6 * 10**9)
    )
    assert torch.equal(hour, year)


def test_far_system_prompt_stays_at_the_fixed_distance() -> None:
    """With the stream's values zero, what comes through is the system prompt, one key for all of it."""
    q, key = random_queries(1), random_kv(1, 1)
    system = KV(key.keys_TGd.repeat(3, 1, 1), key.values_TGd.repeat(3, 1, 1))
    local = KV(torch.zeros(5, G, d), torch.zeros(5, G, d))
    got = attend_stream(ROPE, q, system, local, num_past=1000, n_local=5)
    rotated = ROPE(q, torch.tensor([5]))[0]
    scores = (rotated * key.keys_TGd[0].repeat_interleave(H // G, dim=0)).sum(-1) / d**0.5
    share = 3 * scores.exp() / (3 * scores.exp() + 5)
    torch.testing.assert_close(got[0], share[:, None] * key.values_TGd[0].repeat_interleave(H // G, dim=0))


def test_grouped_query_gives_the_expanded_dot_product() -> None:
    q, keys = random_queries(), random_kv(S, 0).keys_TGd
    mean = q.mean(dim=0)
    expanded = torch.einsum("hd,shd->s", mean, keys.repeat_interleave(H // G, dim=1))
    torch.testing.assert_close(keys.flatten(1) @ grouped_query(q, G), expanded)


def test_last_tokens_are_a_copy() -> None:
    """A view would keep the whole stream's keys in memory."""
    kv = random_kv(S, 0)
    last = kv.last(4)
    assert torch.equal(last.keys_TGd, kv.keys_TGd[-4:])
    assert torch.equal(last.values_TGd, kv.values_TGd[-4:])
    assert last.keys_TGd.untyped_storage().nbytes() == last.keys_TGd.nbytes
    assert kv.last(S + 1) is kv
