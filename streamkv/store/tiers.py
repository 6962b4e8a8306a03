"""Between the local disk and the object store: segments are uploaded after their commit, leave the disk when it has too
many bytes, and come back when they are read.

1. A committed file is read and checked, uploaded, and read back; only then the catalog says that it is uploaded.
2. Above `store.local_bytes` the least recently used of the uploaded files leave the disk. With `store.remote_codec`
   they are written anew in that first, and uploaded so.
3. A reader that misses a file fetches it under a temporary name, checks every byte, and gives it its name.
4. The object of a segment that is deleted, or aged, is noted in the transaction that does so, and goes afterwards.

Doing any of it twice, in whatever process, is harmless: a path says its content. A stop between upload and note has it
uploaded again; one after a deletion leaves an object that no row names, which `verify` finds.
"""

from __future__ import annotations

import json
import threading
import zlib
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa

from streamkv.errors import (
    CorruptSegmentError,
    ForeignStoreError,
    MissingFileError,
    ObjectStoreError,
    StoreError,
)
from streamkv.store import durable, layout
from streamkv.store.catalog import Catalog
from streamkv.store.local_disk import LocalDisk
from streamkv.store.object_store import ObjectStore
from streamkv.store.opening import marked_id
from streamkv.store.records import SegmentPlace, Uploads
from streamkv.store.segment_file import SegmentFile

_AT_ONCE = 256
"""Segments whose places are looked up together."""


def object_marker(objects: ObjectStore) -> str | None:
    """The id of the store whose objects these are; None when nothing says so. StoreError for a damaged marker."""
    found = objects.read(layout.MARKER)
    try:
        return None if found is None else str(json.loads(found)["store_id"])
    except (ValueError, KeyError, TypeError) as exc:
        raise StoreError(
            f"{objects.uri_of(layout.MARKER)}: not a store's marker ({exc}); restore it"
        ) from exc


@dataclass(frozen=True)
class Offloaded:
    """What one round did."""

    num_uploaded: int = 0
    uploaded_bytes: int = 0
    num_deleted: int = 0  # objects
    failed: tuple[str, ...] = field(default=())  # segments that cannot be uploaded, and why


@dataclass(frozen=True)
class TierState:
    """What lies where."""

    uri: str
    num_local: int  # files on the local disk
    local_bytes: int
    budget: int  # bytes; 0: none
    uploads: Uploads
    unreachable: str  # why the object store cannot be reached; empty: it can


class Tiers:
    """Of one store. Threads and processes may share them."""

    def __init__(
        self,
        root: Path,
        catalog: Catalog,
        objects: ObjectStore,
        local_bytes: int,
        leave_as: Collection[str] = (),
    ) -> None:
        """`leave_as`: codecs of which a file has to be to leave the disk; empty: of any."""
        self.objects = objects
        self._root = root
        self._catalog = catalog
        self._budget = local_bytes
        self._claimed = False
        uploaded = catalog.objects.uploaded
        self.disk = LocalDisk(root, local_bytes, uploaded, partial(uploaded, codecs=leave_as))
        self._fetching: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._lock = threading.Lock()

    def state(self) -> TierState:
        unreachable = ""
        try:
            self.are_mine()
        except ObjectStoreError as exc:
            unreachable = str(exc)
        num_local, local_bytes = self.disk.counts()
        uploads = self._catalog.objects.uploads()
        return TierState(self.objects.uri, num_local, local_bytes, self._budget, uploads, unreachable)

    def are_mine(self) -> bool:
        """Whether the objects are this store's; False when they are nobody's, and nothing was uploaded.

        ForeignStoreError when they are another's, or nobody's although segments were uploaded. Without this a wrong
        prefix would make every segment look lost, and every object an orphan.
        """
        theirs, mine = object_marker(self.objects), marked_id(self._root)
        if theirs is not None and theirs != mine:
            raise ForeignStoreError(
                f"store.remote: {self.objects.uri} has the objects of store {theirs}, this is {mine}; "
                "choose another prefix"
            )
        if theirs is None and self._catalog.objects.uploads().num_uploaded:
            raise ForeignStoreError(
                f"{self.objects.uri_of(layout.MARKER)}: missing, though segments were uploaded; check store.remote, or "
                f"copy {self._root / layout.MARKER} there if its objects were deleted"
            )
        return theirs is not None

    def _claim(self) -> None:
        """Once: makes the objects this store's when they are nobody's."""
        if not self._claimed:
            if not self.are_mine():
                marker = {"store_id": marked_id(self._root)}
                self.objects.put(layout.MARKER, json.dumps(marker).encode())
            self._claimed = True

    # ---- up

    def offload(self, on_segment: Callable[[int, int], object] | None = None) -> Offloaded:
        """Deletes objects that are to go, uploads what waits, and has files leave the disk.

        `on_segment` is called with how many are uploaded, and of how many. ObjectStoreError when the object store
        fails; what was done before that stays done.
        """
        num_uploaded = uploaded_bytes = num_deleted = 0
        failed: list[str] = []
        try:
            self._claim()
            for path in self._catalog.objects.removed():
                self.objects.delete(path)
                self._catalog.objects.is_gone(path)
                num_deleted += 1
            total = self._catalog.objects.num_waiting()
            while places := self._catalog.objects.waiting(len(failed) + _AT_ONCE)[len(failed) :]:
                for place in places:
                    try:
                        self._upload(place)
                    except CorruptSegmentError as exc:
                        if self._catalog.segment(place.stream_id, place.segment_no) == place:
                            failed.append(str(exc))
                        continue
                    num_uploaded, uploaded_bytes = num_uploaded + 1, uploaded_bytes + place.file_bytes
                    self.disk.make_room()
                    if on_segment is not None:
                        on_segment(num_uploaded, total)
        finally:
            self.disk.make_room()
        return Offloaded(num_uploaded, uploaded_bytes, num_deleted, tuple(failed))

    def _upload(self, place: SegmentPlace) -> None:
        path = self._root / place.path
        with durable.use_not_noted(path):
            # What is damaged here must not replace what is whole there.
            SegmentFile(path).verify(place.checksum)
            with pa.memory_map(str(path)) as file:
                data = file.read_buffer()
        self.objects.put(place.path, data)
        if self.objects.crc32(place.path) != zlib.crc32(data):
            raise ObjectStoreError(f"{self.objects.uri_of(place.path)}: reads otherwise than it was written")
        self._catalog.objects.note_uploaded(place)

    # ---- down

    def fetch(self, place: SegmentPlace) -> SegmentFile:
        """The segment's file, which is not on the local disk, and is then.

        Raises:
            MissingObjectError, CorruptSegmentError: the object is lost or damaged; nothing is changed.
            ObjectStoreError: the object store cannot be reached.
            StoreError: the local disk does not take it.
        """
        with self._one_at_a_time(place.path):
            with suppress(MissingFileError):  # not missing: another thread or process was first
                return SegmentFile(self._root / place.path)
            return self.restore(place)

    def restore(self, place: SegmentPlace) -> SegmentFile:
        """As `fetch`; replaces a file that is there."""
        path = self._root / place.path
        temp = path.with_name(layout.fetch_name(place.segment_no, place.epoch))
        name = temp.relative_to(self._root).as_posix()
        self.disk.make_room(place.file_bytes)
        self.disk.added(name, place.file_bytes)
        try:
            with durable.removed_on_error(temp, otherwise="the segment was not fetched"):
                durable.make_folder(path.parent)
                durable.write_temp(temp, lambda file: self.objects.get(place.path, file))
                file = self._checked(temp, place)
                durable.publish(temp, path)
        finally:
            self.disk.dropped(name)
        self.disk.added(place.path, place.file_bytes)
        file.path = path  # its map is of the file, whatever the name
        now = self._catalog.segment(place.stream_id, place.segment_no)
        # A segment may have been deleted before this name was there to be deleted with it.
        if now is None or now.path != place.path:
            durable.remove(path)
            self.disk.dropped(place.path)
        return file

    def check(self, place: SegmentPlace) -> None:
        """Reads a segment's object; raises as `fetch` does, and keeps nothing."""
        with TemporaryDirectory(prefix="streamkv-") as folder:
            temp = Path(folder) / "object"
            with temp.open("wb") as file:
                self.objects.get(place.path, file)
            self._checked(temp, place)

    def _checked(self, temp: Path, place: SegmentPlace) -> SegmentFile:
        try:
            file = SegmentFile(temp)
            file.verify(place.checksum)
        except CorruptSegmentError as exc:
            detail = str(exc).removeprefix(f"{temp}: ")
            raise CorruptSegmentError(f"{self.objects.uri_of(place.path)}: damaged object: {detail}") from exc
        return file

    @contextmanager
    def _one_at_a_time(self, path: str) -> Iterator[None]:
        """Threads that want the same file wait for the one that fetches it."""
        with self._lock:
            lock = self._fetching[path]
        try:
            with lock:
                yield
        finally:
            with self._lock:
                self._fetching.pop(path, None)
