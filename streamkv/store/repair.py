"""A store whose catalog is lost, from its segment files and objects alone.

Files say everything about segments, nothing about streams but their ids: a source's address may hold a password and
stands in the catalog only. So a restored stream can be asked, and is `stopped`: nobody knows where its footage goes on.

Of several whole files of one segment that of the latest epoch counts, since a writer that was taken over cannot commit
any more; of those the smallest, which is the one that was aged last.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

from streamkv.errors import CorruptSegmentError, ForeignStoreError, StoreError
from streamkv.store import durable, layout
from streamkv.store.catalog import Catalog
from streamkv.store.object_store import ObjectInfo, ObjectStore
from streamkv.store.opening import default_url, marked_id, write_marker
from streamkv.store.records import FORMAT_VERSION, Gap, ModelIdentity, SegmentPlace
from streamkv.store.rows import RestoredStream, StoredIdentity
from streamkv.store.segment_file import SegmentFile
from streamkv.store.tiers import object_marker
from streamkv.store.vectors import SummaryVectors

OnFile = Callable[[int, int], object]
"""Called with how many files are read, and of how many."""


@dataclass(frozen=True)
class _Found:
    """A whole segment file."""

    identity: ModelIdentity
    place: SegmentPlace
    written_at: float  # seconds since 1970
    uploaded_at: float = 0.0  # of an object


def rebuild_catalog(
    root: Path,
    catalog_url: str = "",
    on_file: OnFile | None = None,
    objects: ObjectStore | None = None,
) -> list[str]:
    """Makes the catalog that is missing, in one transaction; returns what was done, a line each.

    Nothing happens, and nothing is returned, when there is a catalog. Of `objects` those are read that are not on the
    disk, and stay where they are. What is damaged goes to `damaged/`. StoreError when no segment file is whole,
    ForeignStoreError when files are of two models or the objects another store's; then nothing is changed.
    """
    catalog = Catalog(catalog_url or default_url(root))
    try:
        known = bool(catalog_url) or (root / layout.CATALOG).is_file()
        if known and catalog.identity() is not None:
            return []
        paths = [path for path in sorted(layout.all_files(root)) if layout.is_segment(path)]
        store_id, away = _remote(root, objects, paths)
        found, damaged = [], []
        for i, path in enumerate([*paths, *away]):
            if objects is not None and path in away:
                whole = _read_object(objects, path, away[path])
            else:
                whole = _read(root, path)
            if whole is not None:
                found.append(whole)
            else:
                damaged.append(path)
            if on_file is not None:
                on_file(i + 1, len(paths) + len(away))
        if not found:
            raise StoreError(
                f"no store in {root}: neither a catalog nor a whole segment file; check store.root"
            )
        identity = found[0].identity
        for other in found:
            if other.identity != identity:
                raise ForeignStoreError(
                    f"{root / other.place.path}: of another model than {found[0].place.path}: "
                    f"{other.identity.differences(identity)}; move the files of one of them away"
                )
        stored = StoredIdentity(store_id or uuid.uuid4().hex, FORMAT_VERSION, identity)
        streams = _streams(found)
        durable.make_folder(root)  # objects may be all that is left
        catalog.restore(stored, streams)
        _keep_vectors(root, identity, streams)
        if marked_id(root) is None:
            write_marker(root, stored)
        aside = [
            f"{path}: damaged; it is {objects.set_aside(path)} now"
            if objects is not None and path in away
            else f"{path}: damaged; it is {layout.set_aside(root, path)} now"
            for path in damaged
        ]
        return [*(_told(stream) for stream in streams), *aside]
    finally:
        catalog.close()


def _remote(
    root: Path, objects: ObjectStore | None, local: Sequence[str]
) -> tuple[str | None, dict[str, ObjectInfo]]:
    """The store's id, if anything says it, and the objects of segments that are not on the disk."""
    mine = marked_id(root)
    if objects is None:
        return mine, {}
    theirs = object_marker(objects)
    if mine and theirs and mine != theirs:
        raise ForeignStoreError(
            f"store.remote: {objects.uri} has the objects of store {theirs}, this is {mine}"
        )
    away = {path: info for path, info in objects.listed().items() if layout.is_segment(path)}
    if away and theirs is None:
        raise ForeignStoreError(
            f"{objects.uri_of(layout.MARKER)}: missing, so nothing says whose the {len(away)} objects are; check "
            "store.remote, or put it there"
        )
    return mine or theirs, {path: away[path] for path in sorted(away.keys() - set(local))}


def _read_object(objects: ObjectStore, path: str, info: ObjectInfo) -> _Found | None:
    """As `_read`; nothing stays on the disk."""
    with TemporaryDirectory(prefix="streamkv-") as folder:
        copy = Path(folder) / path
        copy.parent.mkdir(parents=True)
        with copy.open("wb") as file:
            objects.get(path, file)
        found = _read(Path(folder), path)
    return found and replace(found, written_at=info.written_at, uploaded_at=info.written_at)


def _read(root: Path, path: str) -> _Found | None:
    """A file of which every byte is as it was written; None when it is not."""
    try:
        file = SegmentFile(root / path)
        header, checksum = file.header, layout.checksum_of(path)
        if layout.segment_path(header.stream_id, header.segment_no, header.epoch, checksum) != path:
            return None
        file.verify(checksum)
    except CorruptSegmentError:
        return None
    return _Found(header.identity, file.place(checksum), (root / path).stat().st_mtime)


def _streams(found: Sequence[_Found]) -> list[RestoredStream]:
    best: dict[tuple[str, int], _Found] = {}
    for one in sorted(found, key=lambda f: (f.place.epoch, -f.place.file_bytes)):
        best[one.place.stream_id, one.place.segment_no] = one
    streams = []
    names = _names({f.place.stream_id: f.place for f in sorted(best.values(), key=lambda f: f.place.end_s)})
    for stream_id in sorted(names):
        kept = [best[key] for key in sorted(best) if key[0] == stream_id]
        places = tuple(one.place for one in kept)
        streams.append(
            RestoredStream(
                stream_id,
                names[stream_id],
                places,
                tuple(one.written_at for one in kept),
                tuple(one.uploaded_at for one in kept),
                tuple(_gaps(places)),
                _DETAIL,
            )
        )
    return streams


def _names(last: Mapping[str, SegmentPlace]) -> dict[str, str]:
    """Of streams by id, from the last segment of each.

    Of several generations of one stream nobody knows which was asked. It is taken to be the one that goes furthest, of
    those the latest; each other one is a stream of its own, to be looked at and removed.
    """
    best: dict[str, str] = {}
    for stream_id in sorted(last, key=lambda stream_id: (last[stream_id].end_s, last[stream_id].epoch)):
        best[layout.name_of(stream_id)] = stream_id
    names = {stream_id: name for name, stream_id in best.items()}
    others = {s: s if layout.is_later_id(s) else f"{s}@old" for s in last if s not in names}
    return names | others


_DETAIL = "the catalog was made again from the files, which do not say what the stream's source is"


def _keep_vectors(root: Path, identity: ModelIdentity, streams: Sequence[RestoredStream]) -> None:
    """Only those of segments that are in the catalog again."""
    known = {stream.stream_id: {place.segment_no for place in stream.places} for stream in streams}
    vectors = SummaryVectors(root, identity, read_only=False)
    for stream_id in layout.vectors_files(root):
        vectors.keep_only(stream_id, known.get(stream_id, ()))


def _gaps(places: Sequence[SegmentPlace]) -> list[Gap]:
    """Where numbers are missing."""
    first = places[0]
    gaps = [Gap(0.0, first.start_s, _lost(0, first.segment_no))] if first.segment_no else []
    for earlier, later in pairwise(places):
        if later.segment_no > earlier.segment_no + 1:
            gaps.append(
                Gap(
                    min(earlier.end_s, later.start_s),
                    later.start_s,
                    _lost(earlier.segment_no + 1, later.segment_no),
                )
            )
    return gaps


def _lost(start: int, stop: int) -> str:
    return f"segment {start} is lost" if stop == start + 1 else f"segments {start} to {stop - 1} are lost"


def _told(stream: RestoredStream) -> str:
    lost = "".join(f"; {gap.reason}" for gap in stream.gaps)
    return f"{stream.stream_id}: {len(stream.places)} segments are in the catalog again{lost}"
