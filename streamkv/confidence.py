"""How likely an answer is right, from what is known before its first word (logistic regression, Platt 1999).

A question about something that never happened finds no segment that stands out, and the first token of its answer is a
guess. How far "stands out" is depends on how many segments there are. What these are worth is fitted for a model and a
method (`python -m bench.confidence --fit`), on questions of which some have no answer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from streamkv.config import ConfidenceConfig

NOT_SHOWN = "The footage does not show it."
"""What is said in place of an answer that is too unlikely."""
ROUNDS, RIDGE = 200, 1e-3


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
    """The weights under which these outcomes are likeliest."""
    values = torch.tensor([s.values() for s in signs], dtype=torch.float64)
    truth = torch.tensor(is_right, dtype=torch.float64)
    mean, spread = values.mean(0), values.std(0).clamp(min=1e-6)
    inputs = torch.cat([(values - mean) / spread, torch.ones(len(values), 1, dtype=torch.float64)], dim=1)
    weights = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=ROUNDS)

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        unlikely = torch.nn.functional.binary_cross_entropy_with_logits(inputs @ weights, truth)
        total: torch.Tensor = unlikely + RIDGE * weights.square().sum()
        total.backward()  # type: ignore[no-untyped-call]
        return total

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    scaled = weights.detach()[:3] / spread
    intercept = float(weights.detach()[3] - (scaled * mean).sum())
    stands_out, first_token, log_segments = (round(float(w), 3) for w in scaled)
    return ConfidenceConfig(round(intercept, 3), stands_out, first_token, log_segments)
