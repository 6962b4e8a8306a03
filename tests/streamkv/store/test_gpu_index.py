"""A layer's index on a GPU: the same calls on a CPU's FAISS in its place, and on a GPU where there is one."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from streamkv.store import ann, gpu_index
from streamkv.store.gpu_index import MAX_FOUND, GpuIndex, has_gpu
from streamkv.store.index import SummaryIndex

faiss = pytest.importorskip("faiss", reason="needs FAISS")
COUNT, DIM = 3000, 16


class Clone:
    """As FAISS's GPU indexes are: no selection of rows, and a bound on what is found."""

    def __init__(self, flat: Any) -> None:
        self.flat, self.searches = flat, 0

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        assert k <= MAX_FOUND
        self.searches += 1
        found: tuple[np.ndarray, np.ndarray] = self.flat.search(queries, k)
        return found


@pytest.fixture(
    params=[
        "stand-in",
        pytest.param(
            "gpu",
            marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")],
        ),
    ]
)
def clones(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Clone]]:
    """Indexes that were copied to the GPU; of a real one nothing is known."""
    made: list[Clone] = []
    if request.param == "stand-in":

        def copy(resources: Any, device: int, flat: Any, options: Any) -> Clone:
            assert options.useFloat16
            made.append(Clone(flat))
            return made[-1]

        monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
        monkeypatch.setattr(faiss, "index_cpu_to_gpu", copy, raising=False)
        monkeypatch.setattr(faiss, "GpuClonerOptions", SimpleNamespace, raising=False)
        resources = SimpleNamespace(setTempMemory=lambda size: None)
        monkeypatch.setattr(faiss, "StandardGpuResources", lambda: resources, raising=False)
    gpu_index._resources.cache_clear()
    yield made
    gpu_index._resources.cache_clear()


@pytest.fixture
def vectors() -> np.ndarray:
    drawn = np.random.default_rng(0).standard_normal((COUNT, DIM)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def test_a_large_index_is_on_the_gpu_and_finds_what_is_best(clones: list[Clone], vectors: np.ndarray) -> None:
    index = ann.make_index(vectors, flat_below=100)
    assert isinstance(index, GpuIndex)
    assert isinstance(ann.make_index(vectors[:99], flat_below=100), faiss.IndexFlatIP)
    queries = vectors[:5] + 0.1
    assert ann.recall(index.search(queries, 20)[1], ann.exact_best(vectors, queries, 20)) > 0.98
    assert sum(clone.searches for clone in clones) == len(clones)
    np.testing.assert_allclose(index.reconstruct_n(0, index.ntotal), vectors, atol=4e-3)


def test_what_a_gpu_cannot_do_is_done_beside_it(clones: list[Clone], vectors: np.ndarray) -> None:
    index = ann.make_index(vectors, flat_below=100)
    rows = np.arange(0, COUNT, 7)
    _, found = ann.search_rows(index, vectors[:3], 9, rows)
    assert ann.recall(found, rows[ann.exact_best(vectors[rows], vectors[:3], 9)]) > 0.9
    assert index.search(vectors[:1], MAX_FOUND + 1)[1].shape == (1, MAX_FOUND + 1)
    assert [clone.searches for clone in clones] == [0] * len(clones)


def test_a_summary_index_goes_on_with_it(
    clones: list[Clone], vectors: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Segments that come later, and those that go, are found or not as on a CPU."""
    monkeypatch.setattr(ann, "FLAT_BELOW", 1000)
    numbers = np.arange(COUNT)
    index = SummaryIndex().added(numbers[:2000], vectors[:2000, None]).compacted()
    index = index.added(numbers[2000:], vectors[2000:, None])
    query = torch.from_numpy(vectors[2500])
    assert index.search(0, query, 5)[0] == 2500
    assert index.search(0, torch.from_numpy(vectors[700]), 5)[0] == 700
    later = index.without_before(1500)
    assert later.search(0, torch.from_numpy(vectors[700]), 50).min() >= 1500


def test_what_does_not_fit_the_gpu_goes_to_the_cpu(
    vectors: np.ndarray, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(index: GpuIndex, vectors_SC: np.ndarray) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(ann, "has_gpu", lambda: True)
    monkeypatch.setattr(GpuIndex, "__init__", full)
    assert isinstance(ann.make_index(vectors, flat_below=100), faiss.IndexRefine)
    assert "out of memory" in caplog.text


def test_without_a_gpu_there_is_none() -> None:
    assert has_gpu() == (torch.cuda.is_available() and hasattr(faiss, "index_cpu_to_gpu"))
