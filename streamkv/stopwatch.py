"""Where an answer's time goes."""

from __future__ import annotations

import time


class Stopwatch:
    """Milliseconds by phase: laps add up, marks are taken from the start."""

    def __init__(self) -> None:
        self._start = self._last = time.perf_counter()
        self._ms = dict.fromkeys(("query", "search", "fetch", "prefill", "first_token", "total"), 0.0)

    def copy(self) -> Stopwatch:
        """One that goes on by itself: several questions that were read together took the same time up to here."""
        other = Stopwatch()
        other._start, other._last, other._ms = self._start, self._last, dict(self._ms)
        return other

    def lap(self, phase: str) -> None:
        now = time.perf_counter()
        self._ms[phase] += (now - self._last) * 1000
        self._last = now

    def mark(self, name: str) -> None:
        self._ms[name] = (time.perf_counter() - self._start) * 1000

    def finish(self) -> dict[str, float]:
        self.mark("total")
        return self._ms
