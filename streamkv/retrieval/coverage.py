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
from streamkv.retrieval.base import Looks, Query, stand_out
from streamkv.retrieval.topk import rows_of, union_of

TOKEN_CANDIDATES = 8
"""All queries together may bring this many times `candidate_segments` into a layer, or one segment each."""


class Coverage(Agreement):
    """`agree` for a question about one moment; for one that names several, segments that cover its tokens.

    A mean query over two things that are named resembles many segments a little; a token of one of them resembles its
    segment a lot. So the question names several moments if the mean's best segment stands out less than `cover_share`
    of what some token's best one does. Either way at most `agree_segments`.
    """

    def agree_each(self, memory: VideoMemory, looks: Sequence[Looks]) -> list[np.ndarray]:
        best = super().agree_each(memory, looks)
        # Of a single segment nothing else comes near it.
        unsure = [i for i, segment_nos in enumerate(best) if len(segment_nos) > 1]
        if unsure:
            found = self._scores_of_tokens(memory, [looks[i].queries for i in unsure])
            for i, scores in zip(unsure, found, strict=True):
                covering = self._covering(scores)
                if len(covering):
                    best[i] = covering
        return best

    def _covering(self, scores: Scores) -> np.ndarray:
        """Segments that cover the tokens of a question; none if it is about one moment."""
        mean_S, tokens_TS = scores.z_QS[0], scores.z_QS[1:]
        if mean_S.max() >= self.config.cover_share * tokens_TS.max():
            return scores.segment_nos[:0]
        gains_TS = np.maximum(tokens_TS - self.config.cover_above, 0.0)
        columns = cover(gains_TS, self.config.agree_segments, self.config.cover_gain)
        return scores.segment_nos[columns]

    def _scores_of_tokens(self, memory: VideoMemory, asked: Sequence[Sequence[Query]]) -> list[Scores]:
        """Of each question: for its mean query, then for each token, how far what any of them finds stands out.

        The layers that choose say so; the middle one of them finds.
        """
        voters = self.voters(len(asked[0]))
        packed = [_packed([queries[layer] for queries in asked]) for layer in voters]
        lengths = [1 + len(queries[0].tokens) for queries in asked]
        middle = len(voters) // 2
        named = self._found_by_any(memory, voters[middle], packed[middle], lengths)
        layers = [
            self._stand_out(memory, layer, packed_QD, lengths, named)
            for layer, packed_QD in zip(voters, packed, strict=True)
        ]
        return [
            over_layers(found, num_queries=length)
            for length, found in zip(lengths, zip(*layers, strict=True), strict=True)
        ]

    def _stand_out(
        self,
        memory: VideoMemory,
        layer: int,
        packed_QD: Tensor,
        lengths: Sequence[int],
        named: Sequence[np.ndarray] | None,
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each question: segments, those named for it, and how far they stand out for each of its queries."""
        table = memory.table(layer, None if named is None else union_of(named))
        scores_QB = (packed_QD @ table.mean_keys.float().T).double().numpy()
        parts = np.split(scores_QB, np.cumsum(lengths)[:-1])
        if named is None or len(named) == 1:
            return [stand_out(table.segment_nos, part) for part in parts]
        rows = [rows_of(table, segment_nos) for segment_nos in named]
        return [stand_out(table.segment_nos[r], part[:, r]) for r, part in zip(rows, parts, strict=True)]

    def _found_by_any(
        self, memory: VideoMemory, layer: int, packed_QD: Tensor, lengths: Sequence[int]
    ) -> list[np.ndarray] | None:
        """For each question, what any of its queries finds; None: all."""
        wanted = self.config.candidate_segments
        if not wanted:
            return None
        counts = [min(wanted, max(1, TOKEN_CANDIDATES * wanted // length)) for length in lengths]
        ranked = iter(memory.search_each(layer, packed_QD, max(counts)))
        return [
            np.unique(np.concatenate([next(ranked).segment_nos[:count] for _ in range(length)]))
            for count, length in zip(counts, lengths, strict=True)
        ]


def _packed(queries: Sequence[Query]) -> Tensor:
    """Of each question its mean query, then its tokens'."""
    return torch.cat([part for query in queries for part in (query.mean[None], query.tokens)]).float().cpu()


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
