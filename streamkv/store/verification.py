"""What is wrong with a store: every committed byte is read, and rows are compared with files and vectors."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from streamkv.errors import CorruptSegmentError, ForeignStoreError
from streamkv.store import layout
from streamkv.store.catalog import Catalog
from streamkv.store.reader import check_belongs
from streamkv.store.records import ModelIdentity, Problem, SegmentPlace
from streamkv.store.segment_file import SegmentFile
from streamkv.store.vectors import SummaryVectors

_SHOWN = 8


def find_problems(
    root: Path,
    catalog: Catalog,
    vectors: SummaryVectors,
    identity: ModelIdentity,
    stream_id: str | None,
    on_file: Callable[[int, int], object] | None,
) -> list[Problem]:
    """See `SegmentStore.verify`."""
    # Files and vectors before rows: what is committed in between is then known.
    present = layout.all_files(root, stream_id)
    noted = {name: vectors.noted(name) for name in layout.vectors_files(root, stream_id)}
    places = catalog.all_segments(stream_id)
    broken = []
    for i, place in enumerate(places):
        if problem := _problem(root, identity, place):
            broken.append(problem)
        if on_file is not None:
            on_file(i + 1, len(places))
    extra = sorted(present - {place.path for place in places})
    return [
        *broken,
        *(Problem("extra", path, _why_extra(path)) for path in extra),
        *_stray_vectors(root, noted, places),
    ]


def _problem(root: Path, identity: ModelIdentity, place: SegmentPlace) -> Problem | None:
    path = root / place.path
    try:
        file = SegmentFile(path)
        check_belongs(file, place, identity)
        file.verify(place.checksum)
    except (CorruptSegmentError, ForeignStoreError) as exc:
        return Problem("corrupt" if path.exists() else "missing", place.path, str(exc), place.stream_id)
    return None


def _why_extra(path: str) -> str:
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
