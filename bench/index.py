"""How much faster a layer's index is than looking at every summary vector, and what it misses.

    python -m bench.index --json

One layer at the 7B geometry (4 x 128 = 512 numbers a vector); all 28 do not fit a small machine. Two kinds of vectors:

- `as_real`: spread as the demo model's summary vectors are: a mean that outweighs the rest
  in early layers and vanishes in late ones (here: as large as the spread), nearly equal lengths, the variance falling
  off exponentially over directions so that about a fifth of them count, and segments of a camera near each other.
- `uniform`: every direction alike, the worst case for any index.

A query is a stored vector plus noise of the same spread, at a cosine of about 0.7 to it. Both indexes answer one query
at a time with the same number of threads.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bench.machine import Figure, machine, report

CAMERAS = 1_000
TOP = 64
SPREADS = ("as_real", "uniform")


def make_vectors(
    spread: str, count: int, dim: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """(count, dim) vectors, and the scale of each direction (dim,)."""
    if spread == "uniform":
        return rng.standard_normal((count, dim), np.float32), np.ones(dim, np.float32)
    scale = np.exp(-np.arange(dim) / (0.2 * dim)).astype(np.float32) ** 0.5
    mean = rng.standard_normal(dim, np.float32) * scale
    cameras = rng.standard_normal((CAMERAS, dim), np.float32) * scale
    vectors = np.empty((count, dim), np.float32)
    for start in range(0, count, 50_000):  # block by block: a million of them are two gigabytes
        stop = min(count, start + 50_000)
        own = rng.standard_normal((stop - start, dim), np.float32) * scale
        vectors[start:stop] = mean + 0.7 * cameras[np.arange(start, stop) * CAMERAS // count] + 0.7 * own
    return vectors, scale


def make_queries(vectors: np.ndarray, scale: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    near = vectors[rng.choice(len(vectors), count, replace=False)]
    noise = rng.standard_normal(near.shape, np.float32) * scale
    noise *= np.linalg.norm(near, axis=1, keepdims=True) / np.linalg.norm(noise, axis=1, keepdims=True)
    return np.ascontiguousarray(near + noise)


def one_by_one(search: Callable[[np.ndarray], Any], queries: np.ndarray) -> tuple[np.ndarray, list[float]]:
    """What was found for each query, and the seconds that each took."""
    found, seconds = [], []
    search(queries[:1])
    for query in queries:
        begun = time.perf_counter()
        found.append(search(query[None])[1][0])
        seconds.append(time.perf_counter() - begun)
    return np.stack(found), seconds


def measure(spread: str, count: int, dim: int, num_queries: int, seed: int) -> list[Figure]:
    import faiss

    from streamkv.store.ann import index_bytes, make_index, recall

    rng = np.random.default_rng(seed)
    vectors, scale = make_vectors(spread, count, dim, rng)
    queries = make_queries(vectors, scale, num_queries, rng)
    flat = faiss.IndexFlatIP(dim)
    flat.add(vectors)
    _say(f"{spread}: {count} vectors made")
    begun = time.perf_counter()
    index = make_index(vectors, seed=seed)
    built_s = time.perf_counter() - begun
    factor = getattr(index, "k_factor", 0)
    _say(f"{spread}: built in {built_s:.0f} s, {factor:g} times as many scored again")
    truth, flat_s = one_by_one(lambda q: flat.search(q, TOP), queries)
    found, index_s = one_by_one(lambda q: index.search(q, TOP), queries)
    tag = f"{count // 1000}k" if count < 1_000_000 else f"{count // 1_000_000}m"
    name = f"{tag}" if spread == "as_real" else f"{tag}_{spread}"
    ratios = tuple(a / b for a, b in zip(flat_s, index_s, strict=True))
    return [
        Figure(f"search_speedup_{name}", "ratio", ratios, "flat over ours, one query at a time"),
        Figure(f"recall_at_64_{name}", "share", (recall(found, truth),)),
        Figure(f"search_ms_{name}", "ms", tuple(1000 * s for s in index_s)),
        Figure(f"index_bytes_per_segment_{name}", "bytes", (index_bytes(index) / count,), "a layer"),
        Figure(f"build_s_{name}", "s", (built_s,), "in a reader's background"),
        Figure(f"scored_again_{name}", "vectors", (float(factor * TOP),)),
    ]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.index", description=__doc__.partition("\n")[0])
    parser.add_argument("--segments", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=512, help="G * d; 512 is the 7B model's")
    parser.add_argument("--queries", type=int, default=50)
    parser.add_argument("--spread", default=",".join(SPREADS), help="as_real, uniform or both")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    import faiss

    faiss.omp_set_num_threads(given.threads)
    about = machine()
    figures = []
    for spread in given.spread.split(","):
        if spread not in SPREADS:
            parser.error(f"--spread: got {spread!r}, allowed {', '.join(SPREADS)}")
        figures += measure(spread, given.segments, given.dim, given.queries, given.seed)
    report(figures, about, as_json=given.json)


if __name__ == "__main__":
    main()
