"""The summary index against a plain sort, however its segments arrived."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streamkv.store import ann
from streamkv.store.index import SummaryIndex, faster

LAYERS, WIDTH = 3, 6


def vectors(count: int) -> np.ndarray:
    return np.random.default_rng(3).standard_normal((count, LAYERS, WIDTH)).astype(np.float32)


def built(sizes: list[int]) -> tuple[SummaryIndex, np.ndarray]:
    """Segments 10, 11, 12 ... in batches of these sizes."""
    every, index, at = vectors(sum(sizes)), SummaryIndex(), 0
    for size in sizes:
        index = index.added(np.arange(10 + at, 10 + at + size), every[at : at + size])
        at += size
    return index, every


@settings(max_examples=50)
@given(st.lists(st.integers(0, 9), max_size=12), st.integers(0, LAYERS - 1), st.integers(0, 40))
def test_any_batches_find_what_a_sort_finds(sizes: list[int], layer: int, k: int) -> None:
    index, every = built(sizes)
    query = torch.linspace(-1, 1, WIDTH)
    scores = every[:, layer] @ query.numpy()
    wanted = 10 + np.argsort(-scores, kind="stable")[:k]
    got = index.search(layer, query, k)
    assert got.dtype == np.int64
    np.testing.assert_array_equal(got, wanted)
    assert index.num_segments == sum(sizes)
    both = index.search_each(layer, torch.stack([-query, query]), k)
    np.testing.assert_array_equal(both[0].segment_nos, index.search(layer, -query, k))
    np.testing.assert_array_equal(both[1].segment_nos, wanted)
    np.testing.assert_allclose(both[1].scores, scores[wanted - 10], rtol=1e-5, atol=1e-6)


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 8)), max_size=8),
    st.integers(0, 30),
    st.booleans(),
)
def test_what_was_deleted_is_not_found_and_all_else_is(
    steps: list[tuple[int, int]], k: int, is_compacted: bool
) -> None:
    """Segments 0, 1, 2 ... come in batches; after each the first so many are deleted."""
    every, index, total, first = vectors(48), SummaryIndex(), 0, 0
    query = torch.linspace(-1, 1, WIDTH)
    for size, deleted in steps:
        index = index.added(np.arange(total, total + size), every[total : total + size])
        total, first = total + size, min(first + deleted, total + size)
        index = index.without_before(first)
        if is_compacted:
            index = index.replaced({id(shard): faster(shard) for shard in index._shards})
        scores = every[first:total, 1] @ query.numpy()
        wanted = first + np.argsort(-scores, kind="stable")[:k]
        np.testing.assert_array_equal(index.search(1, query, k), wanted)
        among = np.arange(total // 3, total)  # some of which may be deleted
        rows = np.arange(max(first, total // 3), total)
        best = rows[np.argsort(-(every[rows, 1] @ query.numpy()), kind="stable")[:k]]
        np.testing.assert_array_equal(index.search(1, query, k, among), best)
        assert index.num_segments == total - first
        assert sum(shard.num_segments for shard in index._shards) <= max(0, 2 * (total - first) - 1)


def test_layers_are_searched_apart() -> None:
    index, every = built([5])
    for layer in range(LAYERS):
        for row in range(5):
            loud = torch.from_numpy(every[row, layer]) * 100
            wanted = 10 + int(np.argmax(every[:, layer] @ every[row, layer]))
            assert index.search(layer, loud, 1).tolist() == [wanted]


def test_larger_index_leaves_the_smaller_as_it_was() -> None:
    index, _ = built([4])
    before = index.search(0, torch.ones(WIDTH), 99)
    index.added(np.array([14, 15]), vectors(6)[4:] * 1000)
    np.testing.assert_array_equal(index.search(0, torch.ones(WIDTH), 99), before)
    assert index.num_segments == 4


def test_one_at_a_time_makes_few_shards() -> None:
    index, _ = built([1] * 100)
    assert len(index._shards) <= 7  # log2(100)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_query_may_be_of_any_type(dtype: torch.dtype) -> None:
    index, _ = built([3])
    assert sorted(index.search(0, torch.ones(WIDTH, dtype=dtype), 3).tolist()) == [10, 11, 12]


def test_vector_that_is_not_a_number_is_never_found() -> None:
    every = vectors(3)
    every[1] = np.nan
    index = SummaryIndex().added(np.arange(3), every)
    assert sorted(index.search(0, torch.ones(WIDTH), 3).tolist()) == [0, 2]


WIDE = 16


def large(count: int, monkeypatch: pytest.MonkeyPatch) -> tuple[SummaryIndex, np.ndarray]:
    monkeypatch.setattr(ann, "FLAT_BELOW", 1_000)
    every = np.random.default_rng(4).standard_normal((count, 2, WIDE)).astype(np.float32)
    return SummaryIndex().added(np.arange(count), every), every


def test_compacted_large_shards_find_nearly_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    index, every = large(3_000, monkeypatch)
    faster = index.compacted()
    assert len(index.large_shards) == 1
    assert not faster.large_shards
    shares = []
    for row in range(20):
        query = torch.from_numpy(every[row, 1] + 0.3 * every[row + 1, 1])
        exact, found = index.search(1, query, 32), faster.search(1, query, 32)
        shares.append(len(np.intersect1d(exact, found)) / 32)
    assert np.mean(shares) > 0.9


def test_what_arrives_while_a_shard_is_compacted_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    index, every = large(2_000, monkeypatch)
    made = {id(shard): faster(shard) for shard in index.large_shards}
    later = index.added(np.array([2_000]), every[:1]).replaced(made)
    assert later.num_segments == 2_001
    assert not later.large_shards
    assert 2_000 in later.search(0, torch.from_numpy(every[0, 0]), 2).tolist()
    joined = later.added(np.arange(3_000, 6_000), np.concatenate([every, every[:1_000]]))
    assert joined.num_segments == 5_001
    assert joined.replaced(made).num_segments == 5_001  # the compacted shard is no longer there: passed over


@settings(max_examples=50)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.data())
def test_search_among_some_finds_the_best_of_them_however_many_are_better(
    sizes: list[int], data: st.DataObject
) -> None:
    """A filter afterwards would find fewer than k."""
    index, every = built(sizes)
    count = len(every)
    picked = st.sets(st.integers(0, count - 1)).map(sorted)
    start = data.draw(st.integers(0, count))
    stop = data.draw(st.integers(start, count))
    rows = np.array(data.draw(st.one_of(st.just(list(range(start, stop))), picked)), np.int64)
    k = data.draw(st.integers(1, 20))
    query = torch.linspace(-1, 1, WIDTH)
    scores = every[rows, 1] @ query.numpy()
    wanted = 10 + rows[np.argsort(-scores, kind="stable")[:k]]
    np.testing.assert_array_equal(index.search(1, query, k, 10 + rows), wanted)


def test_search_among_some_finds_those_that_came_late() -> None:
    every = vectors(6)
    index = SummaryIndex().added(np.array([4, 5]), every[4:]).added(np.arange(4), every[:4])
    assert sorted(index.search(0, torch.ones(WIDTH), 9, np.array([2, 3, 4])).tolist()) == [2, 3, 4]


@pytest.mark.parametrize("among", [np.arange(700, 760), np.arange(3, 3_000, 50)], ids=["range", "scattered"])
def test_compacted_shard_is_searched_among_some(monkeypatch: pytest.MonkeyPatch, among: np.ndarray) -> None:
    index, every = large(3_000, monkeypatch)
    query = torch.from_numpy(every[5, 1])
    best = among[np.argsort(-(every[among, 1] @ query.numpy()), kind="stable")]
    found = index.compacted().search(1, query, 20, among)
    assert len(np.intersect1d(found, best[:20])) >= 19  # fp16
    assert sorted(index.compacted().search(1, query, 99, among).tolist()) == among.tolist()
