"""Mean keys that questions have compared lately, kept in memory: for them no segment's file need be open.

A question compares with the blocks of some hundred segments in each layer that looks, and reads those of a few. Opening
so many files takes longer than all the rest of an answer, and nobody can keep those of a stream of months open.

There are two generations. What is asked for comes into the younger one, from the older one if it is there; when the
younger is full it becomes the older, and what nobody has asked for meanwhile goes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

Key = tuple[str, int]
"""A segment's file, whose path says its content, and a layer."""
Read = Callable[[Sequence[int]], Iterable[np.ndarray]]
"""Reads the mean keys (b, G * d) float32 of those of the segments asked for that have these positions (ascending)."""

FIRST_ROWS = 1024


class MeanKeys:
    """Threads may share it."""

    def __init__(self, dim: int, num_bytes: int) -> None:
        """`dim`: G * d. `num_bytes`: of both generations together; memory is taken as it is needed."""
        self._max_rows = num_bytes // (2 * 4 * dim)
        self._dim = dim
        self._young, self._old = _Generation(dim), _Generation(dim)
        self._lock = threading.Lock()

    @property
    def num_rows(self) -> int:
        return self._young.num_rows + self._old.num_rows

    @property
    def paths(self) -> set[str]:
        """Of the files that it has something of."""
        return {path for generation in (self._young, self._old) for path, _ in generation.parts}

    def of(self, layer: int, paths: Sequence[str], read: Read) -> tuple[np.ndarray, np.ndarray]:
        """How many blocks each of these segments has in the layer, and their mean keys (b, G * d) in order.

        `read` is asked for what is not here, and raises what it raises.
        """
        keys = [(path, layer) for path in paths]
        with self._lock:
            young, old = self._young, self._old
            found = [young.parts.get(key, -1) for key in keys]
            is_all = -1 not in found
            rows, bounds = young.rows, young.bounds
            parts = [] if is_all else [_either(young.part(key), old.part(key)) for key in keys]
        if is_all:
            return _gathered(rows, bounds, found)
        away = [i for i, part in enumerate(parts) if part is None]
        if away:  # not under the lock: a file may come from far away
            for i, part in zip(away, read(away), strict=True):
                parts[i] = part
        whole = [part for part in parts if part is not None]
        with self._lock:
            self._keep(dict(zip(keys, whole, strict=True)))
        return np.array([len(part) for part in whole], np.int64), np.concatenate(whole)

    def forget(self, paths: Iterable[str]) -> None:
        """Those of files that are deleted are not found any more."""
        gone = set(paths)
        with self._lock:
            for generation in (self._young, self._old) if gone else ():
                for key in [key for key in generation.parts if key[0] in gone]:
                    del generation.parts[key]

    def _keep(self, parts: Mapping[Key, np.ndarray]) -> None:
        new = {key: part for key, part in parts.items() if key not in self._young.parts}
        if self._young.num_rows + _count(new) > self._max_rows:
            if _count(parts) > self._max_rows:
                return  # as where all of a long stream is compared: nothing of it would be left for the next one
            self._old, self._young, new = self._young, _Generation(self._dim), dict(parts)
        self._young.add(new)


class _Generation:
    """Parts one after another; those that are there never change."""

    def __init__(self, dim: int) -> None:
        self.parts: dict[Key, int] = {}
        self.rows = np.empty((FIRST_ROWS, dim), np.float32)
        self.bounds = np.zeros(FIRST_ROWS, np.int64)  # part i has the rows from the i-th to the next one
        self.num_parts = 0

    @property
    def num_rows(self) -> int:
        return int(self.bounds[self.num_parts])

    def part(self, key: Key) -> np.ndarray | None:
        i = self.parts.get(key)
        return None if i is None else self.rows[self.bounds[i] : self.bounds[i + 1]]

    def add(self, parts: Mapping[Key, np.ndarray]) -> None:
        self.rows = _with_room(self.rows, self.num_rows + _count(parts))
        self.bounds = _with_room(self.bounds, self.num_parts + len(parts) + 1)
        for key, part in parts.items():
            start, stop = self.num_rows, self.num_rows + len(part)
            self.rows[start:stop] = part
            self.parts[key] = self.num_parts
            self.num_parts += 1
            self.bounds[self.num_parts] = stop


def _either(one: np.ndarray | None, other: np.ndarray | None) -> np.ndarray | None:
    return other if one is None else one


def _gathered(rows: np.ndarray, bounds: np.ndarray, parts: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    chosen = np.array(parts, np.int64)
    starts = bounds[chosen]
    counts = bounds[chosen + 1] - starts
    shift = starts - (np.cumsum(counts) - counts)
    return counts, rows[np.repeat(shift, counts) + np.arange(counts.sum())]


def _with_room(array: np.ndarray, length: int) -> np.ndarray:
    if length <= len(array):
        return array
    grown = np.zeros((max(2 * len(array), length), *array.shape[1:]), array.dtype)
    grown[: len(array)] = array
    return grown


def _count(parts: Mapping[Key, np.ndarray]) -> int:
    return sum(len(part) for part in parts.values())
