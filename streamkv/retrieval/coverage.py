"""Where a question names several moments: segments that together answer for its tokens.

which sign comes first , C 36 or M 75 ?
                         ~~~~    ~~~~     two segments, neither of which the mean of all tokens resembles
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from streamkv.memory import VideoMemory
from streamkv.retrieval.agreement import Agreement, agreed_segments, zscores
from streamkv.retrieval.base import Candidates, Query

TOKEN_CANDIDATES = 8
"""All tokens together may bring this many times `candidate_segments` into a layer, or one segment each."""


class Coverage(Agreement):
    """The one segment that all layers score highest, if none comes near it; else that one and those that cover the
    question's tokens.

    Near is `agree_share` of its score. A mean query over two things that are named resembles many segments a little;
    a token of one of them resembles its segment a lot. In all at most `agree_segments`.
    """

    def agree(
        self, memory: VideoMemory, queries: Sequence[Query], candidates: Sequence[Candidates]
    ) -> list[int]:
        best, *near = agreed_segments(candidates, 2, self.config.agree_share)
        if not near or self.config.agree_segments == 1:
            return [best]
        segment_nos, scores_TS = self._token_scores(memory, queries)
        columns = cover(
            np.maximum(scores_TS - self.config.cover_above, 0.0),
            self.config.agree_segments,
            self.config.cover_gain,
        )
        return list(dict.fromkeys([best, *segment_nos[columns].tolist()]))[: self.config.agree_segments]

    def _token_scores(self, memory: VideoMemory, queries: Sequence[Query]) -> tuple[np.ndarray, np.ndarray]:
        """Segments (S,), and for each token the mean over layers of their best block's z-score (T, S).

        Where a segment is no candidate it gets the layer's lowest.
        """
        found = [self._scores_in_layer(memory, layer, query) for layer, query in enumerate(queries)]
        every = np.unique(np.concatenate([nos for nos, _ in found]))
        total_TS = np.zeros((len(queries[0].tokens), len(every)))
        for nos, z_TS in found:
            layer_TS = np.repeat(z_TS.min(axis=1, keepdims=True), len(every), axis=1)
            layer_TS[:, np.searchsorted(every, nos)] = z_TS
            total_TS += layer_TS
        return every, total_TS / len(found)

    def _scores_in_layer(
        self, memory: VideoMemory, layer: int, query: Query
    ) -> tuple[np.ndarray, np.ndarray]:
        """One layer's candidates (S,) for any token, and their z-scores by token (T, S)."""
        tokens = query.tokens.float().cpu()
        table = memory.table(layer, self._found_by_tokens(memory, layer, query))
        nos, first = np.unique(table.segment_nos, return_index=True)
        blocks_TB = (tokens @ table.mean_keys.float().T).double().numpy()
        return nos, zscores(np.maximum.reduceat(blocks_TB, first, axis=1))

    def _found_by_tokens(self, memory: VideoMemory, layer: int, query: Query) -> np.ndarray | None:
        wanted = self.config.candidate_segments
        if not wanted:
            return None
        each = max(1, TOKEN_CANDIDATES * wanted // len(query.tokens))
        tokens = query.tokens.float().cpu()
        found = memory.search_each(layer, tokens, min(wanted, each))
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
