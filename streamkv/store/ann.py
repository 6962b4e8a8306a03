"""A FAISS index for one layer's summary vectors: exact while small, scanned as 4-bit codes when large; on a GPU, looked
at whole (`gpu_index`).

Summary vectors of a large model spread over some hundred directions, and then inverted lists must probe a quarter of
all lists to find the best. Codes need no luck: an optimised product quantiser (Ge et al. 2013) makes a vector 32 bytes
or fewer, all of them are scanned in registers (André et al. 2015), and the best hundreds or thousands are scored again
in fp16. How many is not guessed: the smallest factor that reaches RECALL when the index is built.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from streamkv.store.gpu_index import GpuIndex, has_gpu

log = logging.getLogger(__name__)

FLAT_BELOW = 50_000
"""Vectors below which looking at all takes a millisecond or two, and nothing is trained."""
RECALL, AT, SAMPLE = 0.98, 64, 128
"""Wanted share of the true best `AT` that a search finds, measured with `SAMPLE` queries."""
FACTORS = (4, 6, 8, 12, 16, 24, 32, 48, 64)
"""Candidates that are scored again, as multiples of what is asked for."""
MAX_CODES, CODE_BITS = 64, 4
"""Codes of a vector, each for two directions or more, and bits of a code. With more codes fewer vectors have to be
scored again, but there is more to scan; measured at 64 and 512 directions, both together take least here."""
TRAIN, TRAIN_ROTATION, ROUNDS = 60_000, 8_000, 10


def make_index(vectors_SC: np.ndarray, *, flat_below: int | None = None, seed: int = 0) -> Any:
    """An inner-product index of (S, G * d) float32 vectors; row i has id i. G * d is a multiple of 8."""
    import faiss

    count, dim = vectors_SC.shape
    vectors_SC = np.ascontiguousarray(vectors_SC, np.float32)
    index: Any
    if count < (FLAT_BELOW if flat_below is None else flat_below):
        index = faiss.IndexFlatIP(dim)
        index.add(vectors_SC)
        return index
    if has_gpu():
        try:
            return GpuIndex(vectors_SC)
        except RuntimeError as exc:  # of FAISS: most likely the GPU's memory is taken
            log.warning("an index of %d vectors does not fit the GPU, it goes to the CPU: %s", count, exc)
    rng = np.random.default_rng(seed)
    sample = vectors_SC[rng.choice(count, min(count, TRAIN), replace=False)]
    codes = num_codes(dim)
    rotation = faiss.OPQMatrix(dim, codes)
    rotation.niter, rotation.niter_pq, rotation.niter_pq_0 = ROUNDS, 2, ROUNDS
    quantizer = faiss.ProductQuantizer(dim, codes, CODE_BITS)
    rotation.pq = quantizer
    rotation.train(sample[:TRAIN_ROTATION])
    scan = faiss.IndexPreTransform(
        rotation, faiss.IndexPQFastScan(dim, codes, CODE_BITS, faiss.METRIC_INNER_PRODUCT)
    )
    scan.train(sample)
    again = faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    again.train(sample[:1])
    index = faiss.IndexRefine(scan, again)
    index.add(vectors_SC)
    index.k_factor = _enough(index, vectors_SC, rng)
    return index


def num_codes(dim: int) -> int:
    """As many as divide the directions evenly, two or more to each."""
    return max(
        count for count in range(1, MAX_CODES + 1) if dim % count == 0 and (2 * count <= dim or count == 1)
    )


def _enough(index: Any, vectors_SC: np.ndarray, rng: np.random.Generator) -> int:
    """The smallest factor that reaches RECALL, for queries that lie between two stored vectors."""
    pairs = rng.choice(len(vectors_SC), (2, SAMPLE))
    queries = vectors_SC[pairs[0]] + 0.5 * vectors_SC[pairs[1]]
    truth = exact_best(vectors_SC, queries, AT)
    for factor in FACTORS[:-1]:
        index.k_factor = factor
        if recall(index.search(queries, AT)[1], truth) >= RECALL:
            return factor
    return FACTORS[-1]


def search_rows(
    index: Any, queries_QC: np.ndarray, k: int, rows: range | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(Q, k) scores and rows as `index.search` gives them, of these rows alone: FAISS looks at no other.

    `rows`: a range of step 1, or numbers. A large index looks at their fp16 vectors, since the scan of its codes
    (FAISS 1.15) cannot pass over rows; that is exact, and takes longer the more rows there are.
    """
    import faiss

    chosen = (
        faiss.IDSelectorRange(rows.start, rows.stop, True)
        if isinstance(rows, range)
        else faiss.IDSelectorBatch(np.ascontiguousarray(rows, np.int64))
    )
    vectors = index
    if isinstance(index, GpuIndex):
        vectors = index.on_cpu
    elif isinstance(index, faiss.IndexRefine):
        vectors = index.refine_index
    only = faiss.SearchParameters()
    only.sel = chosen
    scores, found = vectors.search(queries_QC, k, params=only)
    return scores, found


def exact_best(vectors_SC: np.ndarray, queries_QC: np.ndarray, k: int) -> np.ndarray:
    """(Q, k) rows with the largest inner products, best first, by looking at all."""
    import faiss

    _, rows = faiss.knn(queries_QC, vectors_SC, k, metric=faiss.METRIC_INNER_PRODUCT)
    return np.asarray(rows)


def recall(found_QK: np.ndarray, truth_QK: np.ndarray) -> float:
    """Share of the true rows that were found, mean over queries."""
    pairs = zip(found_QK, truth_QK, strict=True)
    return float(np.mean([len(np.intersect1d(found, truth)) / len(truth) for found, truth in pairs]))


def index_bytes(index: Any) -> int:
    """Bytes that the index takes when written, which is about what it holds in memory."""
    import faiss

    return int(faiss.serialize_index(index).nbytes)
