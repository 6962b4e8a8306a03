"""A layer's summary vectors on a GPU, which looks at all of a million in a millisecond or two.

Used by itself where a large index is made, the installed FAISS has GPUs (`pip install .[gpu]`), and the process sees
one: Ray hides them from processes that asked for none. **Has not run on a GPU**; the tests hold it against FAISS on a
CPU behind the same calls.
"""

from __future__ import annotations

import threading
from functools import cache
from typing import Any

import numpy as np

MAX_FOUND = 2048
"""What a GPU index of FAISS finds at most."""
TEMP_BYTES = 256 * 2**20
"""Of the GPU's memory, for what searches put there; FAISS would take six times that."""


def has_gpu() -> bool:
    import faiss

    return bool(faiss.get_num_gpus() > 0) and hasattr(faiss, "index_cpu_to_gpu")


class GpuIndex:
    """An inner-product index of (S, G * d) float32 vectors in float16: on the GPU, and beside it on the CPU.

    The CPU's is for what the GPU cannot do: FAISS's GPU indexes pass over a selection of rows in silence (faiss#3924),
    and find no more than MAX_FOUND.
    """

    def __init__(self, vectors_SC: np.ndarray) -> None:
        import faiss

        dim = vectors_SC.shape[1]
        self.on_cpu = faiss.IndexScalarQuantizer(
            dim, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
        )
        self.on_cpu.train(vectors_SC[:1])
        self.on_cpu.add(vectors_SC)
        flat = faiss.IndexFlatIP(dim)
        flat.add(vectors_SC)
        resources, self._lock = _resources()
        options = faiss.GpuClonerOptions()
        options.useFloat16 = True
        self._on_gpu = faiss.index_cpu_to_gpu(resources, 0, flat, options)

    @property
    def ntotal(self) -> int:
        return int(self.on_cpu.ntotal)

    def reconstruct_n(self, start: int, count: int) -> np.ndarray:
        vectors: np.ndarray = self.on_cpu.reconstruct_n(start, count)
        return vectors

    def search(self, queries_QC: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """(Q, k) scores and rows, best first."""
        found: tuple[np.ndarray, np.ndarray]
        if k > MAX_FOUND:
            found = self.on_cpu.search(queries_QC, k)
        else:
            with self._lock:
                found = self._on_gpu.search(queries_QC, k)
        return found


@cache
def _resources() -> tuple[Any, threading.Lock]:
    """The process's own; one search at a time may use them."""
    import faiss

    resources = faiss.StandardGpuResources()
    resources.setTempMemory(TEMP_BYTES)
    return resources, threading.Lock()
