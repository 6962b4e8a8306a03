"""Layers agree on the segments that they read (docs/decisions/0004-segments-and-agreement.md)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from streamkv.config import MethodConfig
from streamkv.errors import ConfigError
from streamkv.memory import VideoMemory
from streamkv.retrieval.base import Candidates, Looks
from streamkv.retrieval.topk import TopK
from streamkv.types import Geometry

DECIMALS = 9
"""Scores that differ by less are equal."""


class Agreement(TopK):
    """`topk` among the `agree_segments` segments that layers together score highest (and the latest blocks).

    A layer alone is easily fooled by a segment that resembles the right one in what this layer looks at; and blocks
    of a wrong segment in one layer disturb what the others read.
    """

    agrees_at: int | None = None
    """The layer from which on layers read only what was agreed on, in the prompt's one run; None: after that run."""

    def __init__(self, method: MethodConfig, geometry: Geometry) -> None:
        super().__init__(method, geometry)
        layers = self.config.agree_layers
        if not layers:
            self.is_adaptive = True
            return
        if layers[-1] >= geometry.num_layers:
            raise ConfigError(
                f"retrieve.agree_layers: got {layers}, but the model's layers are 0 to {geometry.num_layers - 1}"
            )
        if self.is_adaptive:
            raise ConfigError(
                f"retrieve.agree_layers: got {layers} with retrieve.budget.policy={self.config.budget.policy}, which "
                "waits for all layers; set it to uniform, or agree_layers to []"
            )
        self.agrees_at = layers[-1]

    def voters(self, num_layers: int) -> Sequence[int]:
        return self.config.agree_layers or range(num_layers)

    def reconsider_each(self, memory: VideoMemory, looks: Sequence[Looks]) -> list[Sequence[Candidates]]:
        """One table a layer, of what any of them agreed on."""
        agreed = self.agree_each(memory, looks)
        layers = [
            self.look_in_each(memory, layer, queries, agreed)
            for layer, queries in enumerate(zip(*(look.queries for look in looks), strict=True))
        ]
        return [list(each) for each in zip(*layers, strict=True)]

    def agree_each(self, memory: VideoMemory, looks: Sequence[Looks]) -> list[np.ndarray]:
        """For each question the segments that layers read once they have agreed, the surest first."""
        count, share = self.config.agree_segments, self.config.agree_share
        found = [agreed_segments(self._of_voters(look.candidates), count, share) for look in looks]
        return [np.array(segment_nos, np.int64) for segment_nos in found]

    def _of_voters(self, candidates: Sequence[Candidates]) -> list[Candidates]:
        return [candidates[layer] for layer in self.voters(len(candidates))]


class Scores(NamedTuple):
    """How far segments stand out for some queries: z-scores of their best blocks, mean over layers.

    Where a segment is no candidate of a layer it has the layer's lowest.
    """

    segment_nos: np.ndarray  # (S,), ascending
    z_QS: np.ndarray
    lowest_Q: np.ndarray  # what a segment would have that is nowhere a candidate


def agreed_segments(candidates: Sequence[Candidates], count: int, share: float = 0.0) -> list[int]:
    """The `count` segments that stand out most above the lowest, over all layers, best first.

    Of equals the earlier one. A segment with less than `share` of the best one's is left out.
    """
    scores = mean_scores(candidates)
    ranked = sorted(scores, key=lambda no: (-scores[no], no))[:count]
    return [no for no in ranked if scores[no] >= share * scores[ranked[0]]]


def mean_scores(candidates: Sequence[Candidates]) -> dict[int, float]:
    """Of every segment that is a candidate in any layer: how far above the lowest its best block stands out."""
    scores = _of_mean(candidates)
    above = np.round(scores.z_QS[0] - scores.lowest_Q[0], DECIMALS)
    return dict(zip(scores.segment_nos.tolist(), above.tolist(), strict=True))


def standing_out(candidates: Sequence[Candidates]) -> float:
    """The highest z-score of all segments: how sure the layers are of what they found; 0.0 of nothing."""
    return max(_of_mean(candidates).z_QS[0].tolist(), default=0.0)


def _of_mean(candidates: Sequence[Candidates]) -> Scores:
    return over_layers([c.standing for c in candidates if c.num_blocks], num_queries=1)


def over_layers(layers: Sequence[tuple[np.ndarray, np.ndarray]], num_queries: int) -> Scores:
    """`layers`: of each, its segments (S,) in ascending order, and how far they stand out (Q, S)."""
    every = np.unique(np.concatenate([np.empty(0, np.int64), *(nos for nos, _ in layers)]))
    total_QS, lowest_Q = np.zeros((num_queries, len(every))), np.zeros(num_queries)
    for nos, z_QS in layers:
        low_Q = z_QS.min(axis=1)
        layer_QS = np.repeat(low_Q[:, None], len(every), axis=1)
        layer_QS[:, np.searchsorted(every, nos)] = z_QS
        total_QS += layer_QS
        lowest_Q += low_Q
    count = max(1, len(layers))
    return Scores(every, total_QS / count, lowest_Q / count)
