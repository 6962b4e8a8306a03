"""Layers agree on the segments that they read (docs/decisions/0004-segments-and-agreement.md)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from streamkv.config import MethodConfig
from streamkv.errors import ConfigError
from streamkv.memory import VideoMemory
from streamkv.retrieval.base import Candidates, Query
from streamkv.retrieval.topk import TopK
from streamkv.types import Geometry

DECIMALS = 9
"""Scores that differ by less are equal."""


class Agreement(TopK):
    """`topk` among the `agree_segments` segments that all layers together score highest (and the latest blocks).

    A layer alone is easily fooled by a segment that resembles the right one in what this layer looks at; and blocks
    of a wrong segment in one layer disturb what the others read.
    """

    def __init__(self, method: MethodConfig, geometry: Geometry) -> None:
        super().__init__(method, geometry)
        if self.config.agree_segments < 1:
            policy = self.config.policy
            raise ConfigError(f"retrieve.agree_segments: got 0, policy `{policy}` needs at least 1")
        self.is_adaptive = True

    def reconsider(
        self, memory: VideoMemory, queries: Sequence[Query], candidates: Sequence[Candidates]
    ) -> Sequence[Candidates]:
        agreed = np.array(self.agree(memory, queries, candidates), np.int64)
        return [self.look_in(memory, layer, query, agreed) for layer, query in enumerate(queries)]

    def agree(
        self, memory: VideoMemory, queries: Sequence[Query], candidates: Sequence[Candidates]
    ) -> list[int]:
        """The segments that all layers read, the surest first."""
        return agreed_segments(candidates, self.config.agree_segments, self.config.agree_share)


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
    layers = [(c.segment_nos, c.scores.double().numpy()[None]) for c in candidates if c.num_blocks]
    return over_layers(layers, num_queries=1)


def over_layers(layers: Sequence[tuple[np.ndarray, np.ndarray]], num_queries: int) -> Scores:
    """`layers`: of each, the candidate blocks' segments (B,) in ascending order and their scores (Q, B)."""
    found = []
    for segment_nos, scores_QB in layers:
        nos, first = np.unique(segment_nos, return_index=True)
        found.append((nos, zscores(np.maximum.reduceat(scores_QB, first, axis=1))))
    every = np.unique(np.concatenate([np.empty(0, np.int64), *(nos for nos, _ in found)]))
    total_QS, lowest_Q = np.zeros((num_queries, len(every))), np.zeros(num_queries)
    for nos, z_QS in found:
        low_Q = z_QS.min(axis=1)
        layer_QS = np.repeat(low_Q[:, None], len(every), axis=1)
        layer_QS[:, np.searchsorted(every, nos)] = z_QS
        total_QS += layer_QS
        lowest_Q += low_Q
    count = max(1, len(found))
    return Scores(every, total_QS / count, lowest_Q / count)


def zscores(scores: np.ndarray) -> np.ndarray:
    """Along the last axis: mean 0 and deviation 1; all 0 where all are equal."""
    spread = scores.std(axis=-1, keepdims=True)
    z: np.ndarray = (scores - scores.mean(axis=-1, keepdims=True)) / np.where(spread > 0, spread, 1.0)
    return z
