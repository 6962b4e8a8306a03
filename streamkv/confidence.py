"""How likely an answer is right, from what is known before its first word (logistic regression, Platt 1999).

A question about something that never happened finds no segment that stands out, its blocks match and are looked at less
than a true one's, and the first token of its answer is a guess. How much that says depends on what is asked, which
the model's own state knows (a linear probe, as in Kadavath et al. 2022), and on how many segments there are. What these
are worth is fitted for a model and a method (`python -m bench.confidence --fit`), on questions of which some have no
answer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from streamkv.config import ConfidenceConfig
from streamkv.types import Geometry

NOT_SHOWN = "The footage does not show it."
"""What is said in place of an answer that is too unlikely."""
ROUNDS, RIDGE = 25, 1e-5
"""Newton steps; and how much each weight is held back for every weight that there is."""


PARTS = ("stands_out", "first_token", "log_segments", "scores", "attention", "heaviest", "hidden")
"""Of the signs, as `ConfidenceConfig` names their weights."""


@dataclass(frozen=True)
class Signs:
    """What is known of an answer before its first word."""

    stands_out: float  # the best segment's z-score, mean over layers
    first_token: float  # its probability
    num_segments: int  # that were searched
    scores: Sequence[float] = ()  # of the best block in each layer that chooses segments
    attention: Sequence[float] = ()  # of the last prompt token to all blocks, in each layer
    heaviest: Sequence[float] = ()  # the same to the block that gets most
    hidden: Sequence[float] = ()  # (D,) what the last layer is given for that token

    @property
    def log_segments(self) -> float:
        return math.log(max(1, self.num_segments))

    def parts(self) -> list[np.ndarray]:
        """One array for each of `PARTS`."""
        return [np.atleast_1d(np.asarray(getattr(self, name), np.float64)) for name in PARTS]


def confidence(config: ConfidenceConfig, signs: Signs) -> float:
    """The share of answers with such signs that are right, 0 to 1. The weights are such that `why_not` is empty."""
    logit = config.intercept
    for name, values in zip(PARTS, signs.parts(), strict=True):
        weights = np.atleast_1d(np.asarray(getattr(config, name), np.float64))
        if len(weights):
            logit += float(weights @ values)
    return 1 / (1 + math.exp(-max(-50.0, min(50.0, logit))))


def why_not(config: ConfidenceConfig, num_scores: int, geometry: Geometry) -> str:
    """Why the weights are of another model or method than one with so many `Signs.scores`; empty if they are not."""
    L = geometry.num_layers
    wanted = {"scores": num_scores, "attention": L, "heaviest": L, "hidden": geometry.hidden_dim}
    for name, count in wanted.items():
        if (got := len(getattr(config, name))) not in (0, count):
            return (
                f"confidence.{name}: got {got} weights, this model and method have {count} such signs; fit them: "
                "python -m bench.confidence --fit"
            )
    return ""


def fit(signs: Sequence[Signs], is_right: Sequence[bool]) -> ConfidenceConfig:
    """The weights under which these outcomes are likeliest, by Newton's method: the loss is convex.

    All signs have the same parts.
    """
    values = np.array([np.concatenate(s.parts()) for s in signs])
    truth = np.array(is_right, np.float64)
    mean, spread = values.mean(axis=0), np.maximum(values.std(axis=0, ddof=1), 1e-6)
    inputs = np.column_stack([(values - mean) / spread, np.ones(len(values))])
    weights = np.zeros(inputs.shape[1])
    ridge = RIDGE * len(weights)
    for _ in range(ROUNDS):
        sure = 1 / (1 + np.exp(-inputs @ weights))
        slope = inputs.T @ (sure - truth) / len(truth) + ridge * weights
        curve = (inputs.T * (sure * (1 - sure))) @ inputs / len(truth) + ridge * np.eye(len(weights))
        weights -= np.linalg.solve(curve, slope)
    scaled = [_short(weight) for weight in weights[:-1] / spread]
    found: dict[str, Any] = {"intercept": _short(weights[-1] - np.array(scaled) @ mean)}
    each = iter(scaled)
    for name, part in zip(PARTS, signs[0].parts(), strict=True):
        of_part = list(islice(each, len(part)))
        found[name] = of_part if isinstance(getattr(ConfidenceConfig(), name), list) else of_part[0]
    return ConfidenceConfig(**found)


def _short(weight: float) -> float:
    """Four digits say it."""
    return float(f"{weight:.4g}")
