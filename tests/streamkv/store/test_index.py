"""The summary index against a plain sort, however its segments arrived."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streamkv.store.index import SummaryIndex

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


@settings(max_examples=50, deadline=None)
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
