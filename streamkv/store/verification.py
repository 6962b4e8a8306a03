"""What is wrong with a store: every committed byte is read, and rows are compared with files and vectors."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from streamkv.errors import CorruptSegmentError, ForeignStoreError, MissingFileError, MissingObjectError
from streamkv.store import durable, layout
from streamkv.store.object_store import ObjectInfo
from streamkv.store.parts import Parts
from streamkv.store.reader import check_belongs
from streamkv.store.records import ModelIdentity, Problem, SegmentPlace
from streamkv.store.segment_file import SegmentFile
from streamkv.store.tiers import Tiers

_SHOWN = 8


def find_problems(
    parts: Parts,
    stream_id: str | None,
    on_file: Callable[[int, int], object] | None,
    *,
    read_objects: bool,
) -> list[Problem]:
    """See `SegmentStore.verify`."""
    root, catalog, vectors, tiers = parts.root, parts.catalog, parts.vectors, parts.tiers
    # Files, objects and vectors before rows: what is committed in between is then known.
    present = layout.all_files(root, stream_id)
    objects = tiers.objects.listed(stream_id) if tiers is not None and tiers.are_mine() else {}
    noted = {name: vectors.noted(name) for name in layout.vectors_files(root, stream_id)}
    uploaded, places = catalog.objects.all_uploaded(stream_id), catalog.all_segments(stream_id)
    removed = set(catalog.objects.removed())
    broken: list[Problem] = []
    for i, place in enumerate(places):
        is_uploaded = place.path in uploaded
        problem = _problem(root, parts.identity, place)
        if problem is not None and problem.kind == "missing" and is_uploaded:  # it has left the disk
            advice = f"{problem.detail}; it was uploaded: set store.remote"
            problem = replace(problem, detail=advice) if tiers is None else None
        broken += [problem] if problem is not None else []
        if tiers is not None and is_uploaded:
            broken += _object_problem(tiers, place, objects.get(place.path), read=read_objects)
        if on_file is not None:
            on_file(i + 1, len(places))
    named = {place.path for place in places}
    return [
        *broken,
        *(Problem("extra", path, _why_extra(path)) for path in sorted(present - named)),
        *(_extra_object(tiers, path) for path in sorted(objects.keys() - named - removed) if tiers),
        *_stray_vectors(root, noted, places),
    ]


def _problem(root: Path, identity: ModelIdentity, place: SegmentPlace) -> Problem | None:
    """Of the file on the local disk."""
    path = root / place.path
    try:
        with durable.use_not_noted(path):
            file = SegmentFile(path)
            check_belongs(file, place, identity)
            file.verify(place.checksum)
    except MissingFileError as exc:
        return Problem("missing", place.path, str(exc), place.stream_id)
    except (CorruptSegmentError, ForeignStoreError) as exc:
        return Problem("corrupt", place.path, str(exc), place.stream_id)
    return None


def _object_problem(
    tiers: Tiers, place: SegmentPlace, found: ObjectInfo | None, *, read: bool
) -> Iterator[Problem]:
    uri = tiers.objects.uri_of(place.path)
    if found is None:
        yield Problem("missing", place.path, f"{uri}: the object is missing", place.stream_id, "objects")
    elif found.num_bytes != place.file_bytes:
        detail = f"{uri}: {found.num_bytes} bytes, {place.file_bytes} were uploaded"
        yield Problem("corrupt", place.path, detail, place.stream_id, "objects")
    elif read:
        try:
            tiers.check(place)
        except MissingObjectError as exc:
            yield Problem("missing", place.path, str(exc), place.stream_id, "objects")
        except CorruptSegmentError as exc:
            yield Problem("corrupt", place.path, str(exc), place.stream_id, "objects")


def _extra_object(tiers: Tiers, path: str) -> Problem:
    """Of a path that no row names, nor the list of objects that are to go."""
    detail = f"{tiers.objects.uri_of(path)}: no row of the catalog names it; --repair removes it"
    return Problem("extra", path, detail, tier="objects")


def _why_extra(path: str) -> str:
    if layout.is_fetch(path):
        return "on its way from the object store; a server removes what is older than an hour"
    if layout.is_temporary(path):
        return "half-written; the stream's next writer removes it"
    if layout.is_segment(path):
        return "no row of the catalog names it; the stream's next writer removes it"
    return "no row of the catalog names it, and it is none of the store's names; move it away"


def _stray_vectors(
    root: Path, noted: Mapping[str, Sequence[int]], places: Sequence[SegmentPlace]
) -> Iterator[Problem]:
    """Vectors of segments that are not in the catalog, one problem a file."""
    known = defaultdict(set)
    for place in places:
        known[place.stream_id].add(place.segment_no)
    for stream_id, path in layout.vectors_files(root).items():
        strays = [no for no in noted.get(stream_id, ()) if no not in known[stream_id]]
        if strays:
            shown = ", ".join(map(str, strays[:_SHOWN])) + (" ..." if len(strays) > _SHOWN else "")
            detail = f"vectors of {len(strays)} segments that are not in the catalog: {shown}; --repair removes them"
            yield Problem("extra", path, detail, stream_id)
