"""One FAISS index a layer over the segments' summary vectors.

An index never changes: `added` returns a larger one, so that a search goes on undisturbed while segments
arrive. It keeps the vectors in shards and joins the last two when the later has grown as large as the
earlier, as a log-structured merge tree does: a vector is copied log2(n) times in all, a search visits log2(n)
shards. A shard is exact when it is new; `compacted` gives large ones an index that is searched faster (`ann`), which
takes seconds to build, so that a reader does it in the background.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from streamkv.memory import Ranked
from streamkv.store import ann

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class _Shard:
    segment_nos: np.ndarray  # (S,) int64
    layers: tuple[Any, ...]  # L x a FAISS index, whose row i is segment_nos[i]
    is_exact: bool = True

    @property
    def num_segments(self) -> int:
        return int(self.segment_nos.shape[0])

    def live(self, first_segment_no: int) -> np.ndarray:
        """(S,) which rows are of segments that are still there."""
        return self.segment_nos >= first_segment_no

    @cached_property
    def is_ascending(self) -> bool:
        """Segments whose vectors had to be read from their files may come late."""
        return bool((np.diff(self.segment_nos) > 0).all())

    def rows_of(self, among: np.ndarray | None, first_segment_no: int) -> range | np.ndarray:
        """The rows of those of these segments (ascending numbers) that are still there; a range where they are one."""
        if among is None:
            return self._rows_from(first_segment_no)
        among = among[np.searchsorted(among, first_segment_no) :]
        if not len(among):
            return range(0)
        first, last = int(among[0]), int(among[-1])
        if self.is_ascending and last - first + 1 == len(among):
            start, stop = np.searchsorted(self.segment_nos, (first, last + 1)).tolist()
            return range(start, stop)
        return np.flatnonzero(np.isin(self.segment_nos, among))

    def _rows_from(self, first_segment_no: int) -> range | np.ndarray:
        if self.is_ascending:
            return range(int(np.searchsorted(self.segment_nos, first_segment_no)), self.num_segments)
        return np.flatnonzero(self.live(first_segment_no))


@dataclass(frozen=True)
class SummaryIndex:
    """The summary vectors of some segments, searchable by layer. Immutable; threads may share it."""

    _shards: tuple[_Shard, ...] = ()
    first_segment_no: int = 0
    """Earlier segments are not found any more."""

    @property
    def num_segments(self) -> int:
        return sum(int(np.count_nonzero(shard.live(self.first_segment_no))) for shard in self._shards)

    def added(self, segment_nos: np.ndarray, vectors_SLc: np.ndarray) -> SummaryIndex:
        """An index with these segments too: (S,) numbers and their (S, L, G * d) float32 vectors."""
        if segment_nos.size == 0:
            return self
        shards = [*self._shards, _shard(segment_nos, vectors_SLc)]
        while len(shards) > 1 and shards[-2].num_segments <= shards[-1].num_segments:
            later, earlier = shards.pop(), shards.pop()
            shards.append(_joined(earlier, later))
        return replace(self, _shards=tuple(shards))

    def without_before(self, first_segment_no: int) -> SummaryIndex:
        """An index that finds no earlier segment. Their vectors go once they are half of a shard."""
        shards = []
        for shard in self._shards:
            live = shard.live(first_segment_no)
            if live.sum() * 2 <= shard.num_segments:
                shard = _picked(shard, np.flatnonzero(live))
            if shard.num_segments:
                shards.append(shard)
        return SummaryIndex(tuple(shards), first_segment_no)

    @property
    def large_shards(self) -> tuple[_Shard, ...]:
        """Those that `ann` would search faster than by looking at all."""
        return tuple(s for s in self._shards if s.is_exact and s.num_segments >= ann.FLAT_BELOW)

    def compacted(self) -> SummaryIndex:
        """The same segments, large shards searched faster, for a little recall."""
        return self.replaced({id(shard): faster(shard) for shard in self.large_shards})

    def replaced(self, shards: Mapping[int, _Shard]) -> SummaryIndex:
        """With other shards in place of those of these ids; an id that is no longer there is passed over."""
        return replace(self, _shards=tuple(shards.get(id(shard), shard) for shard in self._shards))

    def search(self, layer: int, query: Tensor, k: int, among: np.ndarray | None = None) -> np.ndarray:
        """At most k segment numbers, int64, largest inner product with query (G * d,) first.

        `among`: the only segments that are looked at, as ascending numbers; None: all.
        """
        return self.search_each(layer, query[None], k, among)[0].segment_nos

    def search_each(
        self, layer: int, queries: Tensor, k: int, among: np.ndarray | None = None
    ) -> list[Ranked]:
        """What `search` finds for each of the queries (Q, G * d); each shard is passed over once."""
        if k <= 0 or not self._shards or (among is not None and not len(among)):
            return [Ranked(np.empty(0, np.int64), np.empty(0, np.float32)) for _ in queries]
        rows = np.ascontiguousarray(queries.detach().float().cpu().numpy())
        found = [_search(shard, layer, rows, k, among, self.first_segment_no) for shard in self._shards]
        scores_QF = np.concatenate([scores for scores, _ in found], axis=1)
        segment_nos_QF = np.concatenate([segment_nos for _, segment_nos in found], axis=1)
        # As `Ranked.best`, for all queries at once.
        order_QF = np.lexsort((segment_nos_QF, -scores_QF))[:, :k]
        scores_QF = np.take_along_axis(scores_QF, order_QF, axis=1)
        segment_nos_QF = np.take_along_axis(segment_nos_QF, order_QF, axis=1)
        counts = (segment_nos_QF >= 0).sum(axis=1).tolist()  # what was not found has the lowest score
        rows_of_each = zip(segment_nos_QF, scores_QF, counts, strict=True)
        return [Ranked(segment_nos[:count], scores[:count]) for segment_nos, scores, count in rows_of_each]


def _shard(segment_nos: np.ndarray, vectors_SLc: np.ndarray) -> _Shard:
    layers = [_flat([vectors_SLc[:, layer]]) for layer in range(vectors_SLc.shape[1])]
    return _Shard(segment_nos.astype(np.int64), tuple(layers))


def _joined(earlier: _Shard, later: _Shard) -> _Shard:
    pairs = zip(earlier.layers, later.layers, strict=True)
    layers = tuple(_flat([a.reconstruct_n(0, a.ntotal), b.reconstruct_n(0, b.ntotal)]) for a, b in pairs)
    return _Shard(np.concatenate([earlier.segment_nos, later.segment_nos]), layers)


def _picked(shard: _Shard, rows: np.ndarray) -> _Shard:
    """Only these rows, exact."""
    vectors = [flat.reconstruct_n(0, flat.ntotal)[rows] for flat in shard.layers]
    return _Shard(shard.segment_nos[rows], tuple(_flat([part]) for part in vectors))


def faster(shard: _Shard) -> _Shard:
    """The same segments with an index that is searched faster; takes seconds."""
    layers = [ann.make_index(flat.reconstruct_n(0, flat.ntotal)) for flat in shard.layers]
    return replace(shard, layers=tuple(layers), is_exact=False)


def _flat(parts: list[np.ndarray]) -> Any:
    import faiss  # half a second that a writer need not spend

    index = faiss.IndexFlatIP(parts[0].shape[1])
    for vectors in parts:
        index.add(np.ascontiguousarray(vectors, np.float32))
    return index


def _search(
    shard: _Shard,
    layer: int,
    queries: np.ndarray,
    k: int,
    among: np.ndarray | None,
    first_segment_no: int,
) -> tuple[np.ndarray, np.ndarray]:
    """(Q, k') scores and segment numbers; -1 where FAISS found none, as where an inner product is NaN."""
    allowed = shard.rows_of(among, first_segment_no)
    k = min(k, len(allowed))
    if not k:
        return np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
    if len(allowed) == shard.num_segments:
        scores, rows = shard.layers[layer].search(queries, k)
    else:
        scores, rows = ann.search_rows(shard.layers[layer], queries, k, allowed)
    return scores, np.where(rows >= 0, shard.segment_nos[rows], -1)
