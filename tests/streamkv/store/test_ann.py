"""The large index against looking at all."""

from __future__ import annotations

import numpy as np
import pytest

from streamkv.store.ann import AT, exact_best, index_bytes, make_index, recall

DIM = 64


def vectors_of(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    scale = np.exp(-np.arange(DIM) / 12).astype(np.float32)
    return (rng.standard_normal((count, DIM)) * scale + scale).astype(np.float32)


def test_few_vectors_are_searched_exactly() -> None:
    vectors = vectors_of(500)
    index = make_index(vectors)
    assert type(index).__name__ == "IndexFlatIP"
    truth = np.argsort(-(vectors[:5] @ vectors.T), axis=1, kind="stable")[:, :7]
    assert np.array_equal(index.search(vectors[:5], 7)[1], truth)
    assert np.array_equal(exact_best(vectors, vectors[:5], 7), truth)


def test_many_are_found_nearly_all_in_fewer_bytes_looked_at() -> None:
    vectors = vectors_of(12_000)
    index = make_index(vectors, flat_below=1_000)
    rng = np.random.default_rng(1)
    queries = vectors[rng.choice(len(vectors), 40)] + 0.3 * vectors_of(40, seed=2)
    assert index.ntotal == len(vectors)
    assert recall(index.search(queries, AT)[1], exact_best(vectors, queries, AT)) >= 0.95
    scanned, exact_vectors = DIM // 8, 2 * DIM  # bytes: 4 bits for 4 directions, and fp16
    assert index_bytes(index) == pytest.approx(len(vectors) * (scanned + exact_vectors), rel=0.1)


def test_the_same_seed_builds_the_same_index() -> None:
    vectors, queries = vectors_of(4_000), vectors_of(9, seed=3)
    first, again = (make_index(vectors, flat_below=1_000, seed=5).search(queries, 20)[1] for _ in range(2))
    assert np.array_equal(first, again)


def test_recall_counts_what_is_missing() -> None:
    truth = np.array([[1, 2, 3, 4], [5, 6, 7, 8]])
    assert recall(truth, truth) == 1.0
    assert recall(np.array([[4, 3, 9, 9], [5, 6, 7, 8]]), truth) == 0.75
