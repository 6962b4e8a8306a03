"""Layer-adaptive budgets (ALGORITHM.md, section 6): scores of all layers and a total to a count for each.

Knows not what the scores mean: compression asks how many frames a layer keeps, retrieval how many blocks it
reads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from streamkv.config import BudgetConfig
from streamkv.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Bounds:
    """What one layer may get. A layer with fewer items than `lo` gets them all."""

    lo: int = 1
    hi: int | None = None  # None: as many as it has, and no rescaling (the paper)

    def of(self, num_items: int) -> tuple[int, int]:
        """Bounds of a layer with that many items."""
        hi = num_items if self.hi is None else min(self.hi, num_items)
        return min(self.lo, hi), hi


def bounds_around(
    share: float, tau: float | None, *, at_least: int = 1, at_most: int | None = None
) -> Bounds:
    """share * (1 - tau) to share * (1 + tau), rounded outwards so that the share itself stays within reach.

    `at_least` (never below 1: no layer goes empty) and `at_most` bound both ends; tau None: no clamp.
    """
    if tau is None:
        return Bounds(max(1, at_least), None)
    lo = max(1, at_least, math.floor(share * (1 - tau) + _SLACK))
    hi = max(lo, math.ceil(share * (1 + tau) - _SLACK))
    return Bounds(lo if at_most is None else min(lo, at_most), hi if at_most is None else min(hi, at_most))


_SLACK = 1e-9  # 4 * 0.6 * 2 is 4.800000000000001: rounding outwards must not count that as more


Targets = Callable[[Sequence["Tensor"], int, Bounds, bool], list[float]]
"""(scores of each layer, none empty; feasible total; bounds; zscore) to real counts that sum to total."""


def allocate(scores: Sequence[Tensor], total: int, bounds: Bounds, budget: BudgetConfig) -> list[int]:
    """A count for each layer, summing to `total` exactly wherever the bounds allow it.

    `scores` holds one 1-D tensor a layer; lengths may differ and may be 0. The corners, all defined:

    - total above what the layers may get: each gets all that it may; below what they must get: each gets `lo`
      (at least 1, so a tiny ratio never empties a layer); a layer without items gets 0;
    - equal scores, or one item: the layer's mass is spread evenly; equal layers share alike;
    - ties, and remainders of a division, go to the layer with the lower number;
    - of two layers with as many items, one that needs more of them to reach the common mass never gets fewer.
    """
    find_targets = budget_policy(budget.policy)
    filled = [layer for layer, s in enumerate(scores) if len(s)]
    counts = [0] * len(scores)
    if not filled:
        return counts
    lengths = [len(scores[layer]) for layer in filled]
    limits = [bounds.of(n) for n in lengths]
    feasible = min(max(total, sum(lo for lo, _ in limits)), sum(hi for _, hi in limits))
    targets = find_targets([scores[layer] for layer in filled], feasible, bounds, budget.zscore)
    for layer, count in zip(filled, round_within(targets, feasible, limits), strict=True):
        counts[layer] = count
    return counts


def uniform_targets(scores: Sequence[Tensor], total: int, bounds: Bounds, zscore: bool) -> list[float]:
    """The same for each layer; what a short layer cannot take, `allocate` gives to the others."""
    return [total / len(scores)] * len(scores)


def adaptive_targets(scores: Sequence[Tensor], total: int, bounds: Bounds, zscore: bool) -> list[float]:
    """Counts at one softmax mass for all layers, taken as wide as the bounds allow."""
    counts = equal_mass_counts([_softmax(s, zscore) for s in scores], total)
    return counts if bounds.hi is None else stretch(counts, bounds.lo, bounds.hi)


BUDGETS: dict[str, Targets] = {"adaptive": adaptive_targets, "uniform": uniform_targets}
"""Budget policies by name. To add one: a `Targets` and a row here."""


def budget_policy(name: str) -> Targets:
    """The policy of that name, or ConfigError."""
    if name not in BUDGETS:
        raise ConfigError(f"budget.policy: unknown {name!r}; known: {', '.join(sorted(BUDGETS))}")
    return BUDGETS[name]


def equal_mass_counts(masses: Sequence[np.ndarray], total: int) -> list[float]:
    """Counts at the one mass p at which they sum to `total`; exact, without bisection.

    `masses`: each layer's shares, descending, summing to 1; total from the number of layers to that of items.
    A layer's count at p is the least k whose k best items hold p. It passes from k to k + 1 as p passes the
    mass of the k best, that is, as 1 - p falls below the mass of the others. So of all passages the total - L
    with the most mass left over are taken. Passages that tie at the end share what is left to take, in
    fractions: equal layers get equal counts, which `stretch` cannot drive apart.
    """
    layers = np.repeat(np.arange(len(masses)), [len(m) - 1 for m in masses])
    # Mass of the items k, k + 1 .. of each layer, summed from the small end, where sums are exact.
    left_over = np.concatenate([np.cumsum(m[::-1])[::-1][1:] for m in masses])
    counts = np.ones(len(masses))
    num_taken = total - len(masses)
    if num_taken:
        last = np.sort(left_over)[::-1][num_taken - 1]
        tied = np.isclose(left_over, last, rtol=1e-9, atol=0.0)
        above = (left_over > last) & ~tied
        counts += np.bincount(layers[above], minlength=len(masses))
        share = (num_taken - above.sum()) / tied.sum()
        counts += share * np.bincount(layers[tied], minlength=len(masses))
    return [float(c) for c in counts]


def stretch(counts: Sequence[float], lo: int, hi: int) -> list[float]:
    """The linear map about the mean that keeps the sum and takes the counts as wide as [lo, hi] allows.

    counts 2 4 6, bounds 3 to 8  ->  3 4 5      counts 3 4 5, bounds 1 to 8  ->  1 4 7
    """
    mean = sum(counts) / len(counts)
    below, above = mean - min(counts), max(counts) - mean
    if min(below, above) < _SLACK:
        return [mean] * len(counts)
    slope = max(0.0, min((mean - lo) / below, (hi - mean) / above))
    return [mean + slope * (c - mean) for c in counts]


def top_in_time_order(scores: Tensor, count: int) -> list[int]:
    """Indices of the `count` highest scores, ascending; of equal scores the earlier."""
    order = scores.sort(descending=True, stable=True).indices[:count]
    return sorted(order.tolist())


def _softmax(scores: Tensor, zscore: bool) -> np.ndarray:
    """Softmax in float64, descending. The z-score is by the sample deviation, as in the released code."""
    values = scores.detach().cpu().double().numpy()
    centred = values - values.mean()
    if zscore:
        deviation = values.std(ddof=1) if len(values) > 1 else 0.0
        # Equal scores leave nothing to tell apart; below rounding noise they count as equal.
        noise = np.finfo(np.float32).eps * np.abs(values).max()
        centred = centred / deviation if deviation > noise else np.zeros_like(values)
    mass = np.exp(np.sort(centred)[::-1] - centred.max())
    return np.asarray(mass / mass.sum())


def round_within(targets: Sequence[float], total: int, limits: Sequence[tuple[int, int]]) -> list[int]:
    """Integers within their limits, summing to total: targets moved by one common shift, then rounded.

    Rounding is by largest remainder, ties to the lower number; total must lie within the sums of the limits.
    """
    shift = _common_shift(targets, total, limits)
    moved = [min(max(t + shift, lo), hi) for t, (lo, hi) in zip(targets, limits, strict=True)]
    counts = [math.floor(m + _SLACK) for m in moved]
    by_remainder = sorted(range(len(moved)), key=lambda i: (-round(moved[i] - counts[i], 6), i))
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    return counts


def _common_shift(targets: Sequence[float], total: int, limits: Sequence[tuple[int, int]]) -> float:
    """The shift at which the clamped targets sum to total; the sum is piecewise linear and rises with it."""

    def clamped_sum(shift: float) -> float:
        return sum(min(max(t + shift, lo), hi) for t, (lo, hi) in zip(targets, limits, strict=True))

    kinks = sorted({b - t for t, (lo, hi) in zip(targets, limits, strict=True) for b in (lo, hi)} | {0.0})
    for left, right in pairwise(kinks):
        low, high = clamped_sum(left), clamped_sum(right)
        if low <= total <= high:
            return left if high == low else left + (total - low) * (right - left) / (high - low)
    return kinks[0] if total <= clamped_sum(kinks[0]) else kinks[-1]
