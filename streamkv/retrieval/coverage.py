"""Where a question names several moments: segments that together answer for its tokens.

which sign comes first , C 36 or M 75 ?
                         ~~~~    ~~~~     two segments, neither of which the mean of all tokens resembles
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from streamkv.memory import VideoMemory
from streamkv.retrieval.agreement import Agreement, Scores, over_layers
from streamkv.retrieval.base import Candidates, Query, stand_out

TOKEN_CANDIDATES = 8
"""All queries together may bring this many times `candidate_segments` into a layer, or one segment each."""


class Coverage(Agreement):
    """`agree` for a question about one moment; for one that names several, segments that cover its tokens.

    A mean query over two things that are named resembles many segments a little; a token of one of them resembles its
    segment a lot. So the question names several moments if the mean's best segment stands out less than `cover_share`
    of what some token's best one does. Either way at most `agree_segments`.
    """

    def agree(
        self, memory: VideoMemory, queries: Sequence[Query], candidates: Sequence[Candidates]
    ) -> list[int]:
        best = super().agree(memory, queries, candidates)
        if len(best) == 1:  # nothing comes near it
            return best
        segment_nos, z_QS, _ = self._scores(memory, queries)
        mean_S, tokens_TS = z_QS[0], z_QS[1:]
        if mean_S.max() >= self.config.cover_share * tokens_TS.max():
            return best
        gains_TS = np.maximum(tokens_TS - self.config.cover_above, 0.0)
        columns = cover(gains_TS, self.config.agree_segments, self.config.cover_gain)
        return segment_nos[columns].tolist() or best

    def _scores(self, memory: VideoMemory, queries: Sequence[Query]) -> Scores:
        """For the mean query, then for each token, of what any of them finds."""
        layers = []
        for layer, query in enumerate(queries):
            queries_QD = torch.cat([query.mean[None], query.tokens]).float().cpu()
            table = memory.table(layer, self._found_by_any(memory, layer, queries_QD))
            scores_QB = queries_QD @ table.mean_keys.float().T
            layers.append(stand_out(table.segment_nos, scores_QB.double().numpy()))
        return over_layers(layers, num_queries=1 + len(queries[0].tokens))

    def _found_by_any(self, memory: VideoMemory, layer: int, queries_QD: Tensor) -> np.ndarray | None:
        wanted = self.config.candidate_segments
        if not wanted:
            return None
        each = max(1, TOKEN_CANDIDATES * wanted // len(queries_QD))
        found = memory.search_each(layer, queries_QD, min(wanted, each))
        return np.unique(np.concatenate([ranked.segment_nos for ranked in found]))


def cover(gains_TS: np.ndarray, count: int, least: float) -> list[int]:
    """Up to `count` columns that together have high row maxima, chosen greedily, the one that adds most first.

    gains_TS: at least 0. Ends before a column that adds less than `least` of what the first one did. Of equals the
    earlier one. The sum of row maxima is submodular: greedy reaches 1 - 1/e of the best choice (Nemhauser et al. 1978).
    """
    chosen: list[int] = []
    held_T = np.zeros(len(gains_TS))
    first = 0.0
    while len(chosen) < count:
        added_S = np.maximum(gains_TS - held_T[:, None], 0.0).sum(axis=0)
        column = int(added_S.argmax())
        added = float(added_S[column])
        first = first or added
        if added <= 0 or added < least * first:
            break
        chosen.append(column)
        held_T = np.maximum(held_T, gains_TS[:, column])
    return chosen
