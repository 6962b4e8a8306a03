"""Seconds and counts for each stage, so that a run can say where its time went."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager


class StageClock:
    """Adds up `<stage>_s`, `<stage>_cpu_s` and counts. Threads may share one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._totals: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def time(self, stage: str) -> Iterator[None]:
        """Adds the block's wall time to `<stage>_s` and its thread's own to `<stage>_cpu_s`, also when it raises.

        Wall time counts waiting for a core or for Python's lock as well; what other threads do for it counts nowhere.
        """
        start, cpu_start = time.perf_counter(), time.thread_time()
        try:
            yield
        finally:
            self.count(f"{stage}_s", time.perf_counter() - start)
            self.count(f"{stage}_cpu_s", time.thread_time() - cpu_start)

    def count(self, name: str, amount: float = 1) -> None:
        with self._lock:
            self._totals[name] += amount

    def totals(self) -> dict[str, float]:
        with self._lock:
            return dict(self._totals)


def add_totals(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Sums totals of several clocks, name by name."""
    total: dict[str, float] = {}
    for part in parts:
        for name, value in part.items():
            total[name] = total.get(name, 0) + value
    return total
