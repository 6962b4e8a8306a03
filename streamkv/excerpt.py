"""A part of a stream's past, read as if there were no more of it."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from streamkv.errors import QuestionError
from streamkv.memory import BlockTable, MemoryView, Ranked, SegmentInfo, VideoMemory

if TYPE_CHECKING:
    from torch import Tensor


class Span(NamedTuple):
    """From `start_s` up to and without `end_s`, in stream time; infinite where a side is open."""

    start_s: float = -math.inf
    end_s: float = math.inf

    def __str__(self) -> str:
        if self.start_s == -math.inf:
            return f"before {clock(self.end_s)}"
        if self.end_s == math.inf:
            return f"from {clock(self.start_s)} on"
        return f"between {clock(self.start_s)} and {clock(self.end_s)}"


class Excerpt(MemoryView):
    """Some of another memory's segments: all of its searches look at these alone. It is as of when the whole is."""

    def __init__(self, memory: VideoMemory, segments: Sequence[SegmentInfo]) -> None:
        """`segments`: of `memory`, in time order."""
        super().__init__(memory)
        self._segments = tuple(segments)
        self._nos = np.array([s.segment_no for s in segments], np.int64)

    @property
    def segments(self) -> tuple[SegmentInfo, ...]:
        return self._segments

    def search_each(
        self, layer: int, queries: Tensor, k: int, among: np.ndarray | None = None
    ) -> list[Ranked]:
        return self._memory.search_each(layer, queries, k, self._here(among))

    def table(self, layer: int, segment_nos: np.ndarray | None = None) -> BlockTable:
        return self._memory.table(layer, self._here(segment_nos))

    def _here(self, segment_nos: np.ndarray | None) -> np.ndarray:
        if segment_nos is None:
            return self._nos
        named = np.unique(segment_nos)  # few, as a rule, among a hundred thousand
        at = np.searchsorted(self._nos, named)
        is_here = at < len(self._nos)
        is_here[is_here] = self._nos[at[is_here]] == named[is_here]
        here: np.ndarray = named[is_here]
        return here


def between(memory: VideoMemory, span: Span) -> VideoMemory:
    """The segments that overlap the span.

    Raises:
        QuestionError: the span ends before it begins, or none does.
    """
    if not span.start_s < span.end_s:
        raise QuestionError(
            f"span: got from {clock(span.start_s)} to {clock(span.end_s)}; it must end after it begins"
        )
    segments = memory.segments  # neither their starts nor their ends ever fall
    first = bisect_right(segments, span.start_s, key=lambda s: s.end_s)
    stop = bisect_left(segments, span.end_s, key=lambda s: s.start_s)
    if first >= stop and segments:
        raise QuestionError(
            f"nothing of this stream is {span}; its footage spans {clock(segments[0].start_s)} to "
            f"{clock(memory.as_of_s)} of its time (h:mm:ss); ask about a time within, and not within a gap"
        )
    return memory if stop - first == len(segments) else Excerpt(memory, segments[first:stop])


def clock(seconds: float) -> str:
    """`0:04:07`; `-0:00:10` is before the start."""
    sign = "-" if seconds < 0 else ""
    minutes, rest = divmod(int(abs(seconds)), 60)
    return f"{sign}{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
