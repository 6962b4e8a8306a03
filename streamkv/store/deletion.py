"""Takes away what counts no more: a segment's row first, then its file and its vectors.

A stop in between leaves files that no row names. `finish` takes those away, when the store is opened for writing.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping

from streamkv.config import RetentionConfig
from streamkv.store import durable, layout
from streamkv.store.parts import Parts
from streamkv.store.retention import room_for

FIRST_BYTES = 1 << 20
"""Free bytes of a disk with room for a stream's first segment; later ones are like those before them."""


class Deletion:
    """Of one store that is open for writing."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def finish(self) -> None:
        """What deletions that were cut short have left."""
        for stream_id, epoch in self._parts.catalog.removed().items():
            self.delete_removed(stream_id, epoch)
        for stream_id, first in self._parts.catalog.trimmed().items():
            self.unlink(layout.front_files(self._parts.root, stream_id, first))
            self._parts.vectors.forget(stream_id, 0, first)

    def delete_removed(self, stream_id: str, epoch: int) -> list[str]:
        """A removed stream's files up to an epoch, then its folder if empty; returns what could not be."""
        failed = self.unlink(layout.stored_files(self._parts.root, stream_id, before_epoch=epoch + 1))
        layout.remove_if_empty(self._parts.root, stream_id)
        self._parts.vectors.remove(stream_id)
        return failed

    def delete_fronts(
        self, firsts: Mapping[str, int], on_segment: Callable[[int], object] | None = None
    ) -> None:
        """Each stream's segments before its first one; tells how many are done."""
        done = 0
        for stream_id, first in firsts.items():
            for place in self._parts.catalog.delete_front(stream_id, first):
                self.unlink([place.path])
                done += 1
                if on_segment is not None:
                    on_segment(done)
            self._parts.vectors.forget(stream_id, 0, first)

    def make_room(self, policy: RetentionConfig, stream_id: str, num_bytes: int) -> None:
        """Deletes the oldest until the limits allow the stream so many bytes more, and twice as many are free on disk.

        Twice: for the next segment, too. To meet a full disk costs the stream its session.
        """
        self._free_disk(_on_disk(num_bytes))
        disk_bytes = _on_disk(num_bytes) - self._free_bytes()
        if disk_bytes > 0 or self._parts.catalog.why_full(stream_id, num_bytes, policy):
            self.delete_fronts(room_for(self._parts.catalog, policy, stream_id, num_bytes, disk_bytes))

    def why_full(self, policy: RetentionConfig, stream_id: str, num_bytes: int) -> str:
        """Why a segment of so many bytes, 0 when nobody knows, would find no room; empty when it would."""
        if problem := self._parts.catalog.why_full(stream_id, num_bytes or 1, policy):
            return problem
        self._free_disk(_on_disk(num_bytes))
        free, needed = self._free_bytes(), _on_disk(num_bytes)
        return "" if free >= needed else f"disk full: {free:,} bytes are free, {needed:,} are needed"

    def unlink(self, paths: Iterable[str]) -> list[str]:
        """Removes files and returns those that could not be, each with the reason."""
        failed = []
        for path in paths:
            self._parts.files.forget(path)
            try:
                durable.remove(self._parts.root / path)
            except OSError as exc:
                failed.append(f"{path} ({exc.strerror})")
        return failed

    def _free_disk(self, num_bytes: int) -> None:
        """What is in the object store leaves the disk before anything is deleted or paused for it."""
        if self._parts.tiers is not None and (lacking := num_bytes - self._free_bytes()) > 0:
            self._parts.tiers.disk.free(lacking)

    def _free_bytes(self) -> int:
        return shutil.disk_usage(self._parts.root).free


def _on_disk(num_bytes: int) -> int:
    return 2 * num_bytes or FIRST_BYTES
