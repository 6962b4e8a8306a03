"""One stream's committed past, read from its segment files.

`StreamReader` follows the stream; what it hands out is a `StreamSnapshot`, the `VideoMemory` of one moment.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby, pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from streamkv.errors import (
    CorruptSegmentError,
    ForeignStoreError,
    MissingFileError,
    SegmentGoneError,
    StoreError,
    UnknownStreamError,
)
from streamkv.memory import BlockTable, Ranked, SegmentInfo, VideoMemory
from streamkv.store import durable
from streamkv.store.catalog import Catalog, Progress
from streamkv.store.codecs import Codec
from streamkv.store.index import SummaryIndex, faster
from streamkv.store.mean_keys import MeanKeys
from streamkv.store.records import ModelIdentity, SegmentPlace
from streamkv.store.segment_file import SegmentFile, StoredBlocks, torch_dtype
from streamkv.store.vectors import SummaryVectors
from streamkv.types import Geometry, LayerBlocks

if TYPE_CHECKING:
    from torch import Tensor

    from streamkv.store.near import NearBlocks

_INDEX_AT_ONCE = 1024
"""Segments whose summary vectors are held twice, on their way into the index."""


FETCHES_AT_ONCE = 8
"""Files on their way from the object store for one question: each is mostly waiting."""

NOTE_S = 10.0
"""How often the use of a file is noted, where files may leave the disk."""


class SegmentFiles:
    """The files that are open: memory maps, the least recently used closed first. Threads may share it."""

    def __init__(
        self,
        root: Path,
        identity: ModelIdentity,
        max_open: int,
        mean_key_bytes: int,
        look_up: Callable[[str, int], SegmentPlace | None],
        fetch: Callable[[SegmentPlace], SegmentFile] | None,
    ) -> None:
        """`look_up` says where a segment is now, by stream and number; `fetch` brings a file that is not on the disk.

        None: all files are there.
        """
        self._root = root
        self._identity = identity
        self._max_open = max_open
        self._look_up = look_up
        self._fetch = fetch
        self.near: NearBlocks | None = None  # in front of the files, where blocks are kept in memory
        self.mean_keys = MeanKeys(identity.geometry.summary_dim, mean_key_bytes)
        self._noted: set[Path] = set()  # files whose use was noted lately
        self._noted_since = time.monotonic()
        self._lock = threading.Lock()
        self._open: OrderedDict[str, SegmentFile] = OrderedDict()
        # Outlives the maps, so that a file is checked once and not each time it is opened again. Names say
        # the content, so a path never comes to mean another file.
        self._verified: dict[str, bytearray] = {}

    def get(self, place: SegmentPlace) -> SegmentFile:
        """The place's file.

        CorruptSegmentError when it is missing, altered, or another segment's; SegmentGoneError when it was deleted;
        ObjectStoreError when it is not on the disk and cannot be fetched now.
        """
        with self._lock:
            if place.path in self._open:
                return self._used(place.path)
        # Not under the lock: a file may come from far away, and other threads read on meanwhile.
        file = self._found(place)
        with self._lock:
            self._open.setdefault(place.path, file)
            while len(self._open) > self._max_open:
                self._open.popitem(last=False)
            return self._used(place.path)

    def will_need(self, place: SegmentPlace) -> None:
        """Has the disk begin to read the place's file, if it is open."""
        with self._lock:
            file = self._open.get(place.path)
        if file is not None:
            file.will_need()

    def bring(self, places: Iterable[SegmentPlace]) -> None:
        """Fetches files that are not on the disk, several at once; raises as `get` does."""
        if self._fetch is None:
            return
        away = [p for p in places if p.path not in self._open and not (self._root / p.path).exists()]
        if len(away) > 1:
            with ThreadPoolExecutor(FETCHES_AT_ONCE, thread_name_prefix="fetch") as pool:
                for _ in pool.map(self.get, away):
                    pass

    def forget(self, *paths: str) -> None:
        """Closes the maps of files that are to go, and gives up what of them is kept in memory."""
        with self._lock:
            for path in paths:
                self._open.pop(path, None)
                self._verified.pop(path, None)
        self.forget_near(paths)

    def forget_near(self, paths: Iterable[str]) -> None:
        """Gives up what of these files is kept in memory."""
        gone = set(paths)
        self.mean_keys.forget(gone)
        if self.near is not None:
            self.near.forget(gone)

    def _found(self, place: SegmentPlace) -> SegmentFile:
        """The file, or the one that has taken its place since the caller's snapshot: the same blocks, aged."""
        try:
            return self._opened(place)
        except CorruptSegmentError as exc:
            now = self._look_up(place.stream_id, place.segment_no)
            if now is None:
                raise SegmentGoneError(
                    f"segment {place.segment_no} of stream {place.stream_id!r} was deleted after this reader had "
                    "begun; read the stream anew"
                ) from None
            if now.path != place.path:
                if now.epoch != place.epoch:
                    raise
                if now.kv_bytes != place.kv_bytes:
                    raise SegmentGoneError(
                        f"segment {place.segment_no} of stream {place.stream_id!r} lost blocks to its age after this "
                        "reader had begun; read the stream anew"
                    ) from None
                return self._found(now)
            # By what was seen, not by whether it is there now: another process may have fetched it since.
            if self._fetch is None or not isinstance(exc, MissingFileError):
                raise
        return self._checked(place, self._fetch(place))

    def _used(self, path: str) -> SegmentFile:
        """An open file, which is the last to be closed from now on."""
        self._open.move_to_end(path)
        file = self._open[path]
        if self._fetch is not None:
            self._note_use(file.path)
        return file

    def _note_use(self, path: Path) -> None:
        """For whoever chooses what leaves the disk. Now and then, so that it costs nothing."""
        if time.monotonic() - self._noted_since > NOTE_S:
            self._noted.clear()
            self._noted_since = time.monotonic()
            for left in [key for key, file in self._open.items() if not file.path.exists()]:
                del self._open[left]  # a map would keep its bytes on the disk
        if path not in self._noted:
            self._noted.add(path)
            durable.note_use(path, time.time())

    def _opened(self, place: SegmentPlace) -> SegmentFile:
        return self._checked(place, SegmentFile(self._root / place.path, self._verified.get(place.path)))

    def _checked(self, place: SegmentPlace, file: SegmentFile) -> SegmentFile:
        check_belongs(file, place, self._identity)
        self._verified[place.path] = file.verified
        return file


def check_belongs(file: SegmentFile, place: SegmentPlace, identity: ModelIdentity) -> None:
    """That the file is the one that the catalog means, and of the store's model."""
    header = file.header
    if header.identity != identity:
        raise ForeignStoreError(f"{file.path}: of another model: {header.identity.differences(identity)}")
    found = (header.stream_id, header.segment_no, header.epoch)
    if found != (place.stream_id, place.segment_no, place.epoch):
        raise CorruptSegmentError(
            f"{file.path}: holds segment {found[1]} of stream {found[0]!r}, epoch {found[2]}; misnamed"
        )


@dataclass(frozen=True)
class StreamSnapshot(VideoMemory):
    """A stream at one moment: never changes, and may be shared by threads.

    Files are mapped when they are first needed. SegmentGoneError when one was deleted before that, by retention or
    with its stream, or has fewer blocks now; a fresh snapshot is made of what there is.
    """

    stream_id: str
    identity: ModelIdentity
    _files: SegmentFiles
    _places: dict[int, SegmentPlace] = field(default_factory=dict)  # by segment number, in time order
    _index: SummaryIndex = field(default_factory=SummaryIndex)

    @property
    def geometry(self) -> Geometry:
        return self.identity.geometry

    @cached_property
    def as_of_s(self) -> float:
        return max((place.end_s for place in self._places.values()), default=0.0)

    @cached_property
    def segments(self) -> tuple[SegmentInfo, ...]:
        places = self._places.values()
        return tuple(SegmentInfo(p.segment_no, p.start_s, p.end_s, p.num_frames) for p in places)

    def search_each(
        self, layer: int, queries: Tensor, k: int, among: np.ndarray | None = None
    ) -> list[Ranked]:
        return self._index.search_each(layer, queries, k, among)

    def table(self, layer: int, segment_nos: np.ndarray | None = None) -> BlockTable:
        """Of the segments named, in whatever order; each counts once. Opens the files of those that were not compared
        lately."""
        import torch

        named = list(self._places) if segment_nos is None else np.unique(segment_nos).tolist()

        def read(positions: Sequence[int]) -> Iterator[np.ndarray]:
            nos = [named[i] for i in positions]
            self._files.bring(self._places[no] for no in nos)
            return (self._file(no).mean_keys(layer).numpy() for no in nos)

        paths = [self._place(no).path for no in named]
        counts, mean_keys = self._files.mean_keys.of(layer, paths, read)
        first = np.cumsum(counts) - counts
        return BlockTable(
            segment_nos=np.repeat(np.array(named, np.int64), counts),
            slots=np.arange(len(mean_keys), dtype=np.int64) - np.repeat(first, counts),
            mean_keys=torch.from_numpy(mean_keys),
        )

    def prefetch(self, segment_nos: np.ndarray) -> None:
        """Those that layers have found are open; their bytes begin to come from the disk."""
        for no in segment_nos.tolist():
            if no in self._places:
                self._files.will_need(self._places[no])

    def gather(self, layer: int, segment_nos: np.ndarray, slots: np.ndarray) -> LayerBlocks:
        """From memory what is kept there (`near.py`), else from the files."""
        near = self._files.near
        if near is None:
            return self._read(layer, segment_nos, slots)
        from streamkv.store.near import BlockKey  # loaded with what is near

        asked = zip(segment_nos.tolist(), slots.tolist(), strict=True)
        keys = [BlockKey(self._place(no).path, layer, slot) for no, slot in asked]
        return near.gather(keys, lambda at: self._read(layer, segment_nos[at], slots[at]))

    def _read(self, layer: int, segment_nos: np.ndarray, slots: np.ndarray) -> LayerBlocks:
        """One copy, from the maps into the result; none when raw blocks lie side by side in one file.

        Only these blocks are decoded, straight into the result.
        """
        import torch

        runs = list(_runs(segment_nos, slots))
        if len(runs) == 1:
            no, start, stop = runs[0]
            return self._checked(no, layer, start, stop).blocks(layer, slice(start, stop))
        g = self.geometry
        shape = (len(slots), g.frame_tokens, g.num_kv_heads, g.head_dim)
        keys_bNGd, values_bNGd = (
            torch.empty(shape, dtype=torch_dtype(self.identity.dtype)) for _ in range(2)
        )
        frame_ids: list[int] = []
        spans_s: list[tuple[float, float]] = []
        for codec, parts in self._stored(layer, runs):
            to = slice(len(frame_ids), len(frame_ids) + sum(len(part.frame_ids) for part in parts))
            codec.decode_into([part.keys for part in parts], keys_bNGd[to], keys=True)
            codec.decode_into([part.values for part in parts], values_bNGd[to], keys=False)
            for part in parts:
                frame_ids += part.frame_ids
                spans_s += part.spans_s
        return LayerBlocks(keys_bNGd, values_bNGd, tuple(frame_ids), tuple(spans_s))

    def _stored(
        self, layer: int, runs: list[tuple[int, int, int]]
    ) -> Iterator[tuple[Codec, list[StoredBlocks]]]:
        """The runs as they are stored; neighbours of one codec together."""
        files = [(self._checked(no, layer, start, stop), start, stop) for no, start, stop in runs]
        for codec, some in groupby(files, key=lambda run: run[0].codec):
            yield codec, [file.stored(layer).sliced(start, stop) for file, start, stop in some]

    def _checked(self, segment_no: int, layer: int, start: int, stop: int) -> SegmentFile:
        """The segment's file, which has those slots."""
        file = self._file(segment_no)
        total = file.header.layers[layer].num_blocks
        if not 0 <= start < stop <= total:
            raise StoreError(
                f"segment {segment_no}, layer {layer}: got slots {start} to {stop - 1}, it has {total} blocks"
            )
        return file

    def _file(self, segment_no: int) -> SegmentFile:
        return self._files.get(self._place(segment_no))

    def _place(self, segment_no: int) -> SegmentPlace:
        place = self._places.get(segment_no)
        if place is None:
            raise StoreError(f"stream {self.stream_id!r}: no segment {segment_no} among {len(self._places)}")
        return place


def _runs(segment_nos: np.ndarray, slots: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """Neighbours in the order asked that are neighbours in a file: (segment, first slot, last slot + 1).

    Segments 0 0 0 1 and slots 4 5 7 0 are (0, 4, 6), (0, 7, 8), (1, 0, 1).
    """
    if len(segment_nos) != len(slots):
        raise ValueError(f"{len(segment_nos)} segment numbers but {len(slots)} slots")
    breaks = np.flatnonzero((np.diff(segment_nos) != 0) | (np.diff(slots) != 1)) + 1
    bounds = [0, *breaks.tolist(), len(slots)] if len(slots) else []
    for start, stop in pairwise(bounds):
        yield int(segment_nos[start]), int(slots[start]), int(slots[stop - 1]) + 1


class StreamReader:
    """Follows one stream. Opening reads every segment's row and summary vectors, and opens no segment's file.

    Threads may share one: each `refresh` returns a snapshot that is its caller's to read. One that is not
    `searchable` reads no vectors, and its snapshots find nothing.
    """

    def __init__(
        self,
        stream_id: str,
        catalog: Catalog,
        files: SegmentFiles,
        vectors: SummaryVectors,
        identity: ModelIdentity,
        *,
        searchable: bool = True,
    ) -> None:
        self.stream_id = stream_id
        self._searchable = searchable
        self._catalog = catalog
        self._files = files
        self._vectors = vectors
        self._lock = threading.Lock()
        self._snapshot = self._empty = StreamSnapshot(stream_id, identity, files)
        self._progress = Progress(born_epoch=-1, next_segment_no=0)
        self._compacting: threading.Thread | None = None
        self.refresh()

    @property
    def snapshot(self) -> StreamSnapshot:
        """As of the last `refresh`."""
        return self._snapshot

    def refresh(self) -> StreamSnapshot:
        """Picks up what was committed since the last call; one small query when that is nothing.

        A stream that was removed and added again under its name, or whose next generation took its place, is read
        anew. UnknownStreamError when gone.
        """
        with self._lock:
            try:
                progress = self._catalog.progress(self.stream_id)
            except UnknownStreamError:
                self._forget_near()
                raise
            if progress != self._progress:
                again = progress.born_epoch == self._progress.born_epoch
                if not again:
                    self._forget_near()
                before = self._snapshot if again else self._empty
                start = self._progress.next_segment_no if again else 0
                places = self._catalog.segments_between(start, progress)
                if again and progress.num_exchanged > self._progress.num_exchanged:
                    before = self._exchanged(before, self._catalog.exchanged(self._progress, progress))
                trimmed = self._trimmed(before, progress.first_segment_no)
                self._snapshot, self._progress = self._grown(trimmed, places), progress
                self._compact_in_background()
            return self._snapshot

    def _forget_near(self) -> None:
        """Of a stream that is removed or read anew: its files may go while their maps are still in use."""
        self._files.forget_near(place.path for place in self._snapshot._places.values())

    def _trimmed(self, before: StreamSnapshot, first_segment_no: int) -> StreamSnapshot:
        """Without the segments that retention took. Their maps are closed: these keep the bytes on disk."""
        gone = [place for no, place in before._places.items() if no < first_segment_no]
        if not gone:
            return before
        self._files.forget(*(place.path for place in gone))
        left = {no: place for no, place in before._places.items() if no >= first_segment_no}
        return StreamSnapshot(
            before.stream_id,
            before.identity,
            self._files,
            left,
            before._index.without_before(first_segment_no),
        )

    def _exchanged(self, before: StreamSnapshot, places: list[SegmentPlace]) -> StreamSnapshot:
        """With the files that segments have now. What they are found by is the same."""
        now = {place.segment_no: place for place in places if place.segment_no in before._places}
        self._files.forget_near(before._places[no].path for no in now)
        return replace(before, _places=before._places | now)

    def _compact_in_background(self) -> None:
        """Starts to build faster indexes of large shards, one thread at a time; questions go on meanwhile."""
        if self._snapshot._index.large_shards and not (self._compacting and self._compacting.is_alive()):
            self._compacting = threading.Thread(
                target=self._compact, name=f"compact {self.stream_id}", daemon=True
            )
            self._compacting.start()

    def _compact(self) -> None:
        large = self._snapshot._index.large_shards
        made = {id(shard): faster(shard) for shard in large}
        with self._lock:
            self._snapshot = replace(self._snapshot, _index=self._snapshot._index.replaced(made))

    def _grown(self, before: StreamSnapshot, places: list[SegmentPlace]) -> StreamSnapshot:
        index = before._index
        if places and self._searchable:
            vectors, noted = self._vectors.read(places)
            nos = np.array([place.segment_no for place in places])
            index = index.added(nos[noted], vectors if noted.all() else vectors[noted])
            missing = [place for place, is_noted in zip(places, noted, strict=True) if not is_noted]
            for i in range(0, len(missing), _INDEX_AT_ONCE):
                index = self._added_from_files(index, missing[i : i + _INDEX_AT_ONCE])
        all_places = before._places | {place.segment_no: place for place in places}
        return StreamSnapshot(before.stream_id, before.identity, self._files, all_places, index)

    def _added_from_files(self, index: SummaryIndex, places: list[SegmentPlace]) -> SummaryIndex:
        """Of segments whose vectors are not noted; they are from now on."""
        vectors = np.stack([self._files.get(place).summary_vectors() for place in places])
        for place, vectors_Lc in zip(places, vectors, strict=True):
            self._vectors.write(place, vectors_Lc)
        return index.added(np.array([place.segment_no for place in places]), vectors)
