"""A stream's frames to batches of the vision tower, in a way that depends on the footage alone.

What a frame's features are to the last bit may depend on how many frames go through the tower with it. So a batch has
the frames of one stretch of sampling times, `size` of them, which begin at multiples of `size` wherever reading begins:

    sampling times   0 1 2 3 | 4 5 6 7 | 8 9 10 11 |          size 4
    whole            0 1 2 3 | 4     7 | 8 9 10               5 and 6 are missing
    from 6 on                  4     7 | 8 9 10               begins to read at 4

Large pictures make more than one batch of a stretch, cut at the same places each time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from streamkv.config import SourceConfig
from streamkv.types import Frame

MAX_BATCH_BYTES = 48_000_000
"""Pictures of one batch; a 1080p frame takes 6 MB."""


class FrameBatches:
    """Collects frames, in order, and hands out each batch when it is complete."""

    def __init__(self, sample_fps: float, size: int, *, max_bytes: int = MAX_BATCH_BYTES) -> None:
        self._sample_fps = sample_fps
        self._size = size
        self._max_bytes = max_bytes
        self._batch: list[Frame] = []
        self._stretch = 0  # of the frames in it

    @classmethod
    def configured(cls, source: SourceConfig) -> FrameBatches:
        return cls(source.sample_fps, source.batch_frames)

    def first_s(self, start_s: float) -> float:
        """Stream time from which to read so that the frame at `start_s` is in the batch that it always is in."""
        first = self._index(start_s) // self._size * self._size
        return max(0.0, (first - 0.5) / self._sample_fps)  # a folder's videos begin between sampling times

    def add(self, frame: Frame) -> list[list[Frame]]:
        """The batches that are complete with this frame: none, one, or two."""
        index = self._index(frame.start_s)
        complete = []
        if self._batch and index // self._size != self._stretch:
            complete.append(self.rest())
        self._stretch = index // self._size
        self._batch.append(frame)
        is_last = (index + 1) % self._size == 0 or len(self._batch) == self._size
        if is_last or sum(f.rgb.nbytes for f in self._batch) + frame.rgb.nbytes > self._max_bytes:
            complete.append(self.rest())
        return complete

    def rest(self) -> list[Frame]:
        """What was collected since the last batch; empty when that was the last frame."""
        batch, self._batch = self._batch, []
        return batch

    def of(self, frames: Iterable[Frame]) -> Iterator[list[Frame]]:
        """All batches of a source."""
        for frame in frames:
            yield from self.add(frame)
        if batch := self.rest():
            yield batch

    def _index(self, start_s: float) -> int:
        return math.floor(start_s * self._sample_fps + 0.5)
