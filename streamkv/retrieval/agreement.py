"""Layers agree on the segments that they read (docs/decisions/0004-segments-and-agreement.md)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from streamkv.config import MethodConfig
from streamkv.errors import ConfigError
from streamkv.memory import VideoMemory
from streamkv.retrieval.base import Candidates, Query
from streamkv.retrieval.topk import TopK
from streamkv.types import Geometry


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


def agreed_segments(candidates: Sequence[Candidates], count: int, share: float = 0.0) -> list[int]:
    """The `count` segments with the highest sums, over layers, of their best block's z-score, best first.

    Z-scores count from the layer's lowest; that is what a segment gets where it is no candidate. Of equals the
    earlier one. A segment with less than `share` of the best one's sum is left out.
    """
    sums = segment_scores(candidates)
    ranked = sorted(sums, key=lambda no: (-sums[no], no))[:count]
    return [no for no in ranked if sums[no] >= share * sums[ranked[0]]]


def segment_scores(candidates: Sequence[Candidates]) -> dict[int, float]:
    """What `agreed_segments` ranks by, of every segment that is a candidate in any layer."""
    sums: dict[int, float] = {}
    for c in candidates:
        if not c.num_blocks:
            continue
        nos, best = _best_of_segments(c)
        z = zscores(best)
        for no, above_lowest in zip(nos.tolist(), (z - z.min()).tolist(), strict=True):
            sums[no] = sums.get(no, 0.0) + above_lowest
    return sums


def standing_out(candidates: Sequence[Candidates]) -> float:
    """The highest of all segments' mean z-score over layers: how sure the layers are of what they found."""
    found = [c for c in candidates if c.num_blocks]
    lowest = [float(zscores(_best_of_segments(c)[1]).min()) for c in found]
    above_lowest = max(segment_scores(found).values(), default=0.0)
    return (above_lowest + sum(lowest)) / max(1, len(found))


def _best_of_segments(c: Candidates) -> tuple[np.ndarray, np.ndarray]:
    """Segments (S,), ascending, and the score of each one's best block (S,)."""
    nos, first = np.unique(c.segment_nos, return_index=True)
    return nos, np.maximum.reduceat(c.scores.double().numpy(), first)


def zscores(scores: np.ndarray) -> np.ndarray:
    """Along the last axis: mean 0 and deviation 1; all 0 where all are equal."""
    spread = scores.std(axis=-1, keepdims=True)
    z: np.ndarray = (scores - scores.mean(axis=-1, keepdims=True)) / np.where(spread > 0, spread, 1.0)
    return z
