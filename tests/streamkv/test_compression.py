"""Compression keeps the highest scores, in time order, as many as it was told."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import expanded_scores

from streamkv.attention import grouped_query
from streamkv.compression import COMPRESSORS, block_scores, make_compressor
from streamkv.config import BudgetConfig, CompressConfig
from streamkv.errors import ConfigError

T, N, d, L = 4, 3, 8, 5


@given(st.integers(0, 1000), st.sampled_from([(6, 2), (6, 6), (4, 1)]), st.sampled_from(["dot", "cosine"]))
def test_grouped_scores_equal_expanded_scores(seed: int, heads: tuple[int, int], similarity: str) -> None:
    """Mean query (H * d) against the mean key repeated for every head of its group, frame by frame."""
    (H, G), generator = heads, torch.Generator().manual_seed(seed)
    q, keys = torch.randn(T, H, d, generator=generator), torch.randn(7, N, G, d, generator=generator)
    scores = block_scores(grouped_query(q, G, similarity), keys.mean(1).flatten(1), similarity)
    torch.testing.assert_close(scores, expanded_scores(q, keys, similarity), atol=1e-5, rtol=1e-5)


@settings(max_examples=60)
@given(
    st.integers(1, 20),
    st.floats(0.01, 1.0),
    st.sampled_from(["adaptive", "uniform"]),
    st.sampled_from([None, 0.0, 1.0]),
)
def test_keep_ratio_is_hit_over_layers(n: int, keep_ratio: float, policy: str, tau: float | None) -> None:
    config = CompressConfig(keep_ratio=keep_ratio, budget=BudgetConfig(policy=policy, tau=tau))
    scores = list(torch.randn(L, n, generator=torch.Generator().manual_seed(n)))
    kept = make_compressor(config).keep(L, n, scores)
    assert sum(map(len, kept)) == max(L, round(L * (n * keep_ratio)))
    for rows, layer_scores in zip(kept, scores, strict=True):
        assert rows == sorted(set(rows))
        dropped = [float(layer_scores[i]) for i in range(n) if i not in rows]
        assert max(dropped, default=-1e9) <= min(float(layer_scores[i]) for i in rows)


def test_layers_keep_different_frames() -> None:
    scores = [torch.tensor([3.0, 0, 0, 1]), torch.tensor([0.0, 2, 9, 0])]
    config = CompressConfig(keep_ratio=0.5, budget=BudgetConfig(policy="uniform"))
    assert make_compressor(config).keep(2, 4, scores) == [[0, 3], [1, 2]]


@pytest.mark.parametrize(
    "config", [CompressConfig(policy="none"), CompressConfig(policy="guided", keep_ratio=1.0)]
)
def test_keeping_everything_needs_no_scores(config: CompressConfig) -> None:
    compressor = make_compressor(config)
    assert not compressor.needs_scores
    assert compressor.keep(2, 3, []) == [[0, 1, 2]] * 2


def test_one_frame_is_kept_at_any_ratio() -> None:
    scores = [torch.tensor([1.0])] * L
    assert make_compressor(CompressConfig(keep_ratio=0.01)).keep(L, 1, scores) == [[0]] * L


def test_guided_without_guidance_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"compress.guidance: got no text"):
        make_compressor(CompressConfig(guidance=" "))


def test_unknown_policy_is_named() -> None:
    assert set(COMPRESSORS) == {"guided", "none"}
    with pytest.raises(ConfigError, match=r"compress.policy: unknown 'magic'; known: guided, none"):
        make_compressor(CompressConfig(policy="magic"))
