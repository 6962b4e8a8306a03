"""How likely an answer is right, from what is known before its first word (logistic regression, Platt 1999).

A question about something that never happened finds no segment that stands out, and the first token of its answer is a
guess. How far "stands out" is depends on how many segments there are. What these are worth is fitted for a model and a
method (`python -m bench.confidence --fit`), on questions of which some have no answer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from streamkv.config import ConfidenceConfig

NOT_SHOWN = "The footage does not show it."
"""What is said in place of an answer that is too unlikely."""
ROUNDS, RIDGE = 25, 1e-3


@dataclass(frozen=True)
class Signs:
    """What is known of an answer before its first word."""

    stands_out: float  # the best segment's z-score, mean over layers
    first_token: float  # its probability
    num_segments: int  # that were searched

    def values(self) -> tuple[float, float, float]:
        return self.stands_out, self.first_token, math.log(max(1, self.num_segments))


def confidence(config: ConfidenceConfig, signs: Signs) -> float:
    """The share of answers with such signs that are right, 0 to 1."""
    weights = config.stands_out, config.first_token, config.log_segments
    logit = config.intercept + sum(w * x for w, x in zip(weights, signs.values(), strict=True))
    return 1 / (1 + math.exp(-max(-50.0, min(50.0, logit))))


def fit(signs: Sequence[Signs], is_right: Sequence[bool]) -> ConfidenceConfig:
    """The weights under which these outcomes are likeliest, by Newton's method: the loss is convex."""
    values = np.array([s.values() for s in signs])
    truth = np.array(is_right, np.float64)
    mean, spread = values.mean(axis=0), np.maximum(values.std(axis=0, ddof=1), 1e-6)
    inputs = np.column_stack([(values - mean) / spread, np.ones(len(values))])
    weights = np.zeros(inputs.shape[1])
    for _ in range(ROUNDS):
        sure = 1 / (1 + np.exp(-inputs @ weights))
        slope = inputs.T @ (sure - truth) / len(truth) + 2 * RIDGE * weights
        curve = (inputs.T * (sure * (1 - sure))) @ inputs / len(truth) + 2 * RIDGE * np.eye(len(weights))
        weights -= np.linalg.solve(curve, slope)
    scaled = weights[:-1] / spread
    intercept = weights[-1] - scaled @ mean
    return ConfidenceConfig(*(round(float(w), 3) for w in (intercept, *scaled)))
