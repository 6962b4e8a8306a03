"""A stream's summary vectors side by side in one file: opening a stream then opens none of its segments.

Nothing is lost with it. It is made from segment files that count, a record a segment at the place of its number, and a
record that is missing, torn, or not of the segment that the catalog names is made again from that segment's file. So
it is written without fsync and without a lock.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Container, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from streamkv.store import layout
from streamkv.store.holes import data_extents, punch_hole
from streamkv.store.records import ModelIdentity, SegmentPlace


class SummaryVectors:
    """The vectors' files of one store. Threads and processes may share them."""

    def __init__(self, root: Path, identity: ModelIdentity, *, read_only: bool) -> None:
        self._root = root
        self._read_only = read_only
        shape = (identity.geometry.num_layers, identity.geometry.summary_dim)
        self._record = np.dtype(
            [
                ("segment_no", "<i8"),
                ("epoch", "<i8"),
                ("file_crc32", "<u4"),  # the file's checksum, as in its name
                ("crc32", "<u4"),  # of the vectors
                ("vectors", "<f4", shape),
            ]
        )

    def read(self, places: Sequence[SegmentPlace]) -> tuple[np.ndarray, np.ndarray]:
        """(S, L, G * d) float32 vectors, in the map where the places follow each other; and (S,) which are true.

        All places are of one stream.
        """
        nos = np.array([place.segment_no for place in places], np.int64)
        records = self._mapped(places[0].stream_id, int(nos.max()) + 1)
        there = nos < len(records)
        if there.all() and (np.diff(nos) == 1).all():
            found = records[nos[0] : nos[0] + len(nos)]
        else:
            found = np.zeros(len(nos), self._record)
            found[there] = records[nos[there]]
        true = there & (found["segment_no"] == nos)
        true &= found["epoch"] == [place.epoch for place in places]
        true &= found["file_crc32"] == [int(place.checksum, 16) for place in places]
        for i in np.flatnonzero(true).tolist():
            true[i] = zlib.crc32(found["vectors"][i]) == found["crc32"][i]
        return found["vectors"], true

    def write(self, place: SegmentPlace, vectors_Lc: np.ndarray) -> None:
        """Notes a committed segment's vectors. What the disk does not take is read from the segment's file."""
        if self._read_only:
            return
        record = np.zeros((), self._record)
        record["segment_no"], record["epoch"] = place.segment_no, place.epoch
        record["file_crc32"], record["vectors"] = int(place.checksum, 16), vectors_Lc
        record["crc32"] = zlib.crc32(record["vectors"].tobytes())
        path = layout.vectors_path(self._root, place.stream_id)
        with suppress(OSError):
            path.parent.mkdir(exist_ok=True)
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                os.pwrite(fd, record.tobytes(), place.segment_no * self._record.itemsize)
            finally:
                os.close(fd)

    def remove(self, stream_id: str) -> None:
        """Of a stream that is gone. Maps of it stay as they are."""
        with suppress(OSError):
            layout.vectors_path(self._root, stream_id).unlink(missing_ok=True)

    def forget(self, stream_id: str, start: int, stop: int) -> None:
        """Takes away the vectors of segments from number `start` up to `stop`, and their room on disk."""
        size = self._record.itemsize
        with suppress(FileNotFoundError):
            punch_hole(layout.vectors_path(self._root, stream_id), start * size, stop * size)

    def keep_only(self, stream_id: str, known: Container[int]) -> None:
        """Takes away the vectors of all segments but the known ones."""
        for no in self.noted(stream_id):
            if no not in known:
                self.forget(stream_id, no, no + 1)

    def noted(self, stream_id: str) -> list[int]:
        """Numbers of the segments that have any byte here."""
        size, found = self._record.itemsize, set()
        with suppress(FileNotFoundError), layout.vectors_path(self._root, stream_id).open("rb") as file:
            for start, stop in data_extents(file):
                for no in range(start // size, -(-stop // size)):
                    if no not in found and any(os.pread(file.fileno(), size, no * size)):
                        found.add(no)
        return sorted(found)

    def _mapped(self, stream_id: str, at_most: int) -> np.ndarray:
        """The stream's records so far, at most so many; those never written are zeros."""
        path = layout.vectors_path(self._root, stream_id)
        try:
            count = min(at_most, path.stat().st_size // self._record.itemsize)
            if count:
                return np.memmap(path, self._record, mode="r", shape=(count,))
        except OSError:
            pass
        return np.zeros(0, self._record)
