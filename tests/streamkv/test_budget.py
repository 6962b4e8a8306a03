"""Budgets hit their total, stay in bounds and follow the one common mass, whatever the scores are."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import counts_by_search, targets_by_bisection
from torch import Tensor

from streamkv.budget import (
    BUDGETS,
    Bounds,
    allocate,
    bounds_around,
    equal_mass_counts,
    stretch,
    top_in_time_order,
)
from streamkv.config import BudgetConfig
from streamkv.errors import ConfigError

ADAPTIVE = BudgetConfig(policy="adaptive", zscore=True)
PAPER = BudgetConfig(policy="adaptive", zscore=False, tau=None)
FREE = Bounds()

score = st.floats(-1e4, 1e4, width=32) | st.sampled_from([0.0, 1.0])
layer_scores = st.lists(score, min_size=1, max_size=12).map(lambda s: torch.tensor(s))
all_scores = st.lists(layer_scores, min_size=1, max_size=6)
some_bounds = st.one_of(
    st.just(FREE),
    st.tuples(st.integers(1, 8), st.integers(0, 8)).map(lambda b: Bounds(b[0], b[0] + b[1])),
)
budgets = st.builds(BudgetConfig, policy=st.sampled_from(sorted(BUDGETS)), zscore=st.booleans())


@settings(max_examples=300)
@given(all_scores, st.integers(0, 80), some_bounds, budgets)
def test_total_is_exact_wherever_feasible(
    scores: list[Tensor], total: int, bounds: Bounds, budget: BudgetConfig
) -> None:
    counts = allocate(scores, total, bounds, budget)
    limits = [bounds.of(len(s)) for s in scores]
    assert all(
        1 <= lo <= count <= hi <= len(s) for count, (lo, hi), s in zip(counts, limits, scores, strict=True)
    )
    least, most = sum(lo for lo, _ in limits), sum(hi for _, hi in limits)
    assert sum(counts) == min(max(total, least), most)


@settings(max_examples=100)
@given(all_scores, st.integers(0, 80), some_bounds, budgets)
def test_same_scores_give_the_same_counts(
    scores: list[Tensor], total: int, bounds: Bounds, budget: BudgetConfig
) -> None:
    shifted = [s.clone() for s in scores]
    assert allocate(scores, total, bounds, budget) == allocate(shifted, total, bounds, budget)


masses = st.lists(st.integers(1, 50), min_size=1, max_size=7).map(
    lambda parts: sorted((Fraction(p, sum(parts)) for p in parts), reverse=True)
)


@settings(max_examples=300)
@given(st.lists(masses, min_size=1, max_size=5), st.data())
def test_counts_are_those_at_one_mass(layers: list[list[Fraction]], data: st.DataObject) -> None:
    """Against a search over every edge in exact arithmetic; where ties leave no such mass, the sum holds."""
    total = data.draw(st.integers(len(layers), sum(len(m) for m in layers)))
    counts = equal_mass_counts([np.array([float(x) for x in m]) for m in layers], total)
    assert sum(counts) == pytest.approx(total)  # a shared tie is a fraction
    expected = counts_by_search(layers, total)
    if expected is not None:
        assert counts == expected


@settings(max_examples=300)
@given(
    st.integers(0, 10**6),
    st.integers(1, 6),
    st.integers(3, 12),  # z-scores of two items are always the same: a tie
    st.booleans(),
    st.sampled_from([None, 0.0, 0.3, 0.5, 1.0]),
    st.data(),
)
def test_counts_are_those_of_the_steps_one_by_one(
    seed: int, num_layers: int, n: int, zscore: bool, tau: float | None, data: st.DataObject
) -> None:
    """Z-score, softmax, bisection, rescaling: a count is its target, rounded to one of its neighbours."""
    scores = 3 * torch.randn(num_layers, n, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    total = data.draw(st.integers(num_layers, num_layers * n))
    bounds = bounds_around(total / num_layers, tau, at_most=n)
    targets = targets_by_bisection(scores.tolist(), total, bounds.lo, bounds.hi, zscore=zscore)
    counts = allocate(list(scores), total, bounds, BudgetConfig(zscore=zscore, tau=tau))
    assert targets is not None
    assert sum(counts) == total
    assert all(abs(c - t) < 1 - 1e-9 for c, t in zip(counts, targets, strict=True))


@settings(max_examples=100)
@given(
    st.integers(0, 10**6),
    st.lists(st.integers(3, 12), min_size=1, max_size=6),
    st.sampled_from([ADAPTIVE, PAPER]),
)
def test_more_in_all_is_never_less_for_one(seed: int, lengths: list[int], budget: BudgetConfig) -> None:
    """Up to all that there is; one by one, from one item a layer. Without ties: shares of those are rounded."""
    generator = torch.Generator().manual_seed(seed)
    scores = [torch.randn(n, generator=generator) for n in lengths]
    before = allocate(scores, 0, FREE, budget)
    for total in range(len(scores), sum(map(len, scores)) + 2):
        after = allocate(scores, total, FREE, budget)
        assert all(a >= b for a, b in zip(after, before, strict=True))
        before = after
    assert before == [len(s) for s in scores]


@settings(max_examples=200)
@given(st.integers(0, 10**6), st.integers(2, 5), st.floats(0.01, 3.0), st.data())
def test_a_layer_that_grows_surer_gets_no_more(
    seed: int, num_layers: int, rise: float, data: st.DataObject
) -> None:
    """Monotone in the scores: its best score rises, so fewer items hold the same mass, and others get the rest."""
    scores = list(torch.randn(num_layers, 8, generator=torch.Generator().manual_seed(seed)))
    total = data.draw(st.integers(num_layers, 8 * num_layers))
    surer = [scores[0].clone(), *scores[1:]]
    surer[0][surer[0].argmax()] += rise
    before, after = allocate(scores, total, FREE, PAPER), allocate(surer, total, FREE, PAPER)
    assert after[0] <= before[0]
    assert all(a >= b for a, b in zip(after[1:], before[1:], strict=True))


def test_worked_example() -> None:
    peaked, flat = np.array([0.7, 0.1, 0.1, 0.1]), np.array([0.25] * 4)
    # mass 0.7 takes 1 of the peaked layer and 3 of the flat one
    assert equal_mass_counts([peaked, flat], 4) == [1, 3]
    assert equal_mass_counts([peaked, flat], 2) == [1, 1]
    assert equal_mass_counts([peaked, flat], 8) == [4, 4]
    assert equal_mass_counts([flat, flat, peaked], 6) == [2.5, 2.5, 1]  # a tie is shared


def test_equal_layers_are_not_driven_apart() -> None:
    """8 items for 3 equal layers are 3, 3, 2: stretching those counts to the bounds would make it 4, 3, 1."""
    scores = [torch.arange(5.0)] * 3
    assert allocate(scores, 8, bounds_around(8 / 3, 1.0), ADAPTIVE) == [3, 3, 2]


def test_flatter_layer_gets_more() -> None:
    peaked, flat = torch.tensor([9.0] + [0.0] * 31), torch.tensor([1.0, 0.0] * 16)
    low, high = allocate([peaked, flat], 20, FREE, ADAPTIVE)
    assert low < high


def test_one_hot_layers_share_alike() -> None:
    """Raw scores of hundreds leave masses such as 1e-200: their order still counts, rounding does not."""
    scores = [torch.tensor([500.0, 40.0, 30.0, 0.0]), torch.tensor([500.0, 240.0, 30.0, 0.0])]
    assert allocate(scores, 3, FREE, PAPER) == [1, 2]
    assert allocate(scores, 4, FREE, PAPER) == [2, 2]


@pytest.mark.parametrize("policy", sorted(BUDGETS))
def test_equal_scores_share_alike_and_remainders_go_to_lower_layers(policy: str) -> None:
    scores = [torch.full((5,), 3.1415)] * 3
    assert allocate(scores, 8, bounds_around(8 / 3, 1.0), BudgetConfig(policy=policy)) == [3, 3, 2]


def test_zscore_forgets_scale_and_offset() -> None:
    scores = [torch.tensor([4.0, 1, 0, 2, 3]), torch.tensor([1.0, 0, 0, 0, 0])]
    scaled = [scores[0] * 100 + 7, scores[1]]
    bounds = bounds_around(2.5, 1.0)
    assert allocate(scores, 5, bounds, ADAPTIVE) == allocate(scaled, 5, bounds, ADAPTIVE)
    assert allocate(scores, 5, FREE, PAPER) != allocate(scaled, 5, FREE, PAPER)


def test_zscore_of_rounding_noise_counts_as_equal() -> None:
    """A still camera's frames differ by float32 noise; that must not be blown up to a preference."""
    noisy = torch.full((6,), 1000.0) + torch.tensor([0.0, 0, 0, 0, 0, 6e-5])
    assert noisy.unique().numel() == 2
    assert allocate([noisy, noisy.flip(0), torch.full((6,), 2.0)], 9, FREE, ADAPTIVE) == [3, 3, 3]


@pytest.mark.parametrize("policy", sorted(BUDGETS))
def test_corners(policy: str) -> None:
    budget = BudgetConfig(policy=policy)
    one, four, none = torch.tensor([5.0]), torch.tensor([1.0, 2, 3, 4]), torch.tensor([])
    assert allocate([one, one], 2, FREE, budget) == [1, 1]
    assert allocate([one, four], 100, FREE, budget) == [1, 4]  # more than there is
    assert allocate([four, four], 0, FREE, budget) == [1, 1]  # a ratio that would keep nothing
    assert allocate([none, four], 3, FREE, budget) == [0, 3]
    assert allocate([none, none], 3, FREE, budget) == [0, 0]
    assert allocate([], 3, FREE, budget) == []
    assert allocate([one, four], 4, Bounds(2, 3), budget) == [1, 3]  # a short layer gives what it cannot take


def test_uniform_fills_up_others_when_a_layer_is_short() -> None:
    scores = [torch.zeros(2), torch.zeros(9), torch.zeros(9)]
    assert allocate(scores, 12, FREE, BudgetConfig(policy="uniform")) == [2, 5, 5]


def test_tau_zero_is_uniform() -> None:
    scores = [torch.tensor([9.0, 0, 0, 0, 0]), torch.arange(5.0)]
    assert allocate(scores, 6, bounds_around(3, 0.0), ADAPTIVE) == [3, 3]


def test_tau_bounds_each_layer() -> None:
    scores = [torch.tensor([900.0] + [0.0] * 19), torch.arange(20.0)]
    assert allocate(scores, 16, bounds_around(8, None), PAPER) == [1, 15]
    assert allocate(scores, 16, bounds_around(8, 0.5), BudgetConfig(zscore=False, tau=0.5)) == [4, 12]


def test_bounds_around_rounds_outwards() -> None:
    assert bounds_around(1.6, 0.0) == Bounds(1, 2)
    assert bounds_around(64, 0.5) == Bounds(32, 96)
    assert bounds_around(1.6, 1.0, at_most=2) == Bounds(1, 2)
    assert bounds_around(0.4, 1.0, at_most=1) == Bounds(1, 1)
    assert bounds_around(3, 1.0, at_least=2) == Bounds(2, 6)
    assert bounds_around(4 * 0.6, 1.0) == Bounds(1, 5)  # 4.8
    assert bounds_around(2.0000000000000004, 0.0) == Bounds(2, 2)  # float noise is not more
    assert bounds_around(7, None, at_least=3) == Bounds(3, None)


@settings(max_examples=200)
@given(st.lists(st.integers(1, 100), min_size=1, max_size=8), st.integers(1, 50), st.integers(0, 50))
def test_stretch_keeps_sum_and_order(counts: list[int], below: int, above: int) -> None:
    mean = sum(counts) / len(counts)
    lo, hi = max(1, int(mean) - below), int(mean) + 1 + above
    targets = stretch(counts, lo, hi)
    assert sum(targets) == pytest.approx(sum(counts))
    assert all(lo - 1e-9 <= t <= hi + 1e-9 for t in targets)
    by_count = sorted(range(len(counts)), key=lambda i: counts[i])
    assert all(targets[a] <= targets[b] + 1e-9 for a, b in pairwise(by_count))


def test_stretch_reaches_one_bound() -> None:
    assert stretch([2, 4, 6], 3, 8) == [3, 4, 5]
    assert stretch([3, 4, 5], 1, 8) == [1, 4, 7]
    assert stretch([4, 4], 1, 8) == [4, 4]


@settings(max_examples=200)
@given(st.lists(st.lists(score, min_size=9, max_size=9).map(torch.tensor), min_size=2, max_size=6), st.data())
def test_layer_that_needs_more_never_gets_fewer(scores: list[Tensor], data: st.DataObject) -> None:
    total = data.draw(st.integers(len(scores), 9 * len(scores)))
    share = total / len(scores)
    raw = allocate(scores, total, FREE, ADAPTIVE)
    clamped = allocate(scores, total, bounds_around(share, data.draw(st.floats(0, 1)), at_most=9), ADAPTIVE)
    for a in range(len(scores)):
        for b in range(len(scores)):
            if raw[a] > raw[b]:
                assert clamped[a] >= clamped[b]


def test_keeps_highest_scores_in_time_order_and_the_earlier_of_equals() -> None:
    assert top_in_time_order(torch.tensor([1.0, 5, 3, 5, 0]), 3) == [1, 2, 3]
    assert top_in_time_order(torch.tensor([2.0, 2, 2, 2]), 2) == [0, 1]
    assert top_in_time_order(torch.tensor([1.0]), 0) == []


@given(st.lists(score, min_size=1, max_size=9), st.data())
def test_raising_a_kept_score_keeps_it(values: list[float], data: st.DataObject) -> None:
    count, raised = data.draw(st.integers(1, len(values))), data.draw(st.integers(0, len(values) - 1))
    before = top_in_time_order(torch.tensor(values), count)
    higher = [*values[:raised], values[raised] + 10, *values[raised + 1 :]]
    after = top_in_time_order(torch.tensor(higher), count)
    if raised in before:
        assert raised in after


def test_unknown_policy_is_named() -> None:
    with pytest.raises(ConfigError, match=r"budget.policy: unknown 'magic'; known: adaptive, uniform"):
        allocate([torch.zeros(1)], 1, FREE, BudgetConfig(policy="magic"))
