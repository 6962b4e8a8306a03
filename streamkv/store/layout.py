"""Where things lie under a store's root, and what their names say.

    <root>/store.json                                          which store this is
    <root>/catalog.sqlite                                      the catalog, unless a URL names another
    <root>/streams/<stream id>/<segment no>.e<epoch>.<checksum>.arrow
    <root>/streams/<stream id>/.<segment no>.e<epoch>.<nonce>.tmp
    <root>/streams/<stream id>/.<segment no>.e<epoch>.<nonce>.fetch   on its way from the object store
    <root>/vectors/<stream id>.bin                             its summary vectors once more, to open it fast

The epoch in a name keeps a stale writer from another's files; the checksum keeps a writer that repeats a
segment with other bytes from replacing the file that a row already names.
"""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

from streamkv.errors import StreamIdError

STREAMS = "streams"
VECTORS = "vectors"
DAMAGED = "damaged"
MARKER = "store.json"
CATALOG = "catalog.sqlite"

_STREAM_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_LATER = re.compile(rf"{_STREAM_ID.pattern}@\d+")
_SEGMENT = re.compile(r"(?P<no>\d{8,})\.e(?P<epoch>\d{6,})\.(?P<checksum>[0-9a-f]{8})\.arrow")
_TEMP = re.compile(r"\.(?P<no>\d{8,})\.e(?P<epoch>\d{6,})\.[0-9a-f]{32}\.tmp")
_FETCHED = re.compile(r"\.(?P<no>\d{8,})\.e(?P<epoch>\d{6,})\.[0-9a-f]{32}\.fetch")


def check_stream_id(stream_id: str) -> str:
    """The id itself; StreamIdError when it is not a safe file name."""
    if not _STREAM_ID.fullmatch(stream_id) or ".." in stream_id:
        raise StreamIdError(
            f"stream id: got {stream_id[:80]!r}, allowed 1 to 64 of A-Z a-z 0-9 . _ -, "
            "the first a letter or digit, and no '..'"
        )
    return stream_id


def later_id(name: str, epoch: int) -> str:
    """The id of another generation of a stream; nobody can name a stream so."""
    return f"{name}@{epoch}"


def is_later_id(stream_id: str) -> bool:
    return _LATER.fullmatch(stream_id) is not None


def name_of(stream_id: str) -> str:
    """The name of the stream that it is a generation of."""
    return stream_id.partition("@")[0]


def _checked(stream_id: str) -> str:
    """The id of a stream or of a later generation of one."""
    return stream_id if is_later_id(stream_id) and ".." not in stream_id else check_stream_id(stream_id)


def stream_folder(root: Path, stream_id: str) -> Path:
    return root / STREAMS / _checked(stream_id)


def vectors_path(root: Path, stream_id: str) -> Path:
    return root / VECTORS / f"{_checked(stream_id)}.bin"


def segment_path(stream_id: str, segment_no: int, epoch: int, checksum: str) -> str:
    """Relative to the root: the one name that a file of this content, made by this writer, can have."""
    name = f"{segment_no:08d}.e{epoch:06d}.{checksum}.arrow"
    return str(PurePosixPath(STREAMS, _checked(stream_id), name))


def temp_name(segment_no: int, epoch: int) -> str:
    return f".{segment_no:08d}.e{epoch:06d}.{uuid.uuid4().hex}.tmp"


def fetch_name(segment_no: int, epoch: int) -> str:
    """Not `temp_name`: the stream's next writer removes those of earlier epochs, and readers fetch meanwhile."""
    return f".{segment_no:08d}.e{epoch:06d}.{uuid.uuid4().hex}.fetch"


def stored_files(root: Path, stream_id: str, *, before_epoch: int) -> Iterator[str]:
    """A stream's segment and temporary files of writers before an epoch; relative to the root, by name.

    Files of any other name are not the store's, and are never touched.
    """
    folder = stream_folder(root, stream_id)
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        match = _SEGMENT.fullmatch(path.name) or _TEMP.fullmatch(path.name)
        if match and int(match["epoch"]) < before_epoch:
            yield path.relative_to(root).as_posix()


def passed_files(root: Path, stream_id: str, epoch: int, next_segment_no: int) -> Iterator[str]:
    """A stream's segment files of a writer's epoch whose number has been committed; relative to the root."""
    folder = stream_folder(root, stream_id)
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        match = _SEGMENT.fullmatch(path.name)
        if match and int(match["epoch"]) == epoch and int(match["no"]) < next_segment_no:
            yield path.relative_to(root).as_posix()


def front_files(root: Path, stream_id: str, stop: int) -> Iterator[str]:
    """A stream's segment files of whatever writer whose number is before `stop`; relative to the root."""
    folder = stream_folder(root, stream_id)
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        match = _SEGMENT.fullmatch(path.name)
        if match and int(match["no"]) < stop:
            yield path.relative_to(root).as_posix()


def is_segment(path: str) -> bool:
    """Whether a path relative to the root is one that a segment's file can have."""
    folder, _, name = path.rpartition("/")
    return folder.count("/") == 1 and _SEGMENT.fullmatch(name) is not None


def is_temporary(path: str) -> bool:
    return _TEMP.fullmatch(path.rpartition("/")[2]) is not None


def is_fetch(path: str) -> bool:
    return _FETCHED.fullmatch(path.rpartition("/")[2]) is not None


def segment_of(path: str) -> tuple[str, int]:
    """Stream and number of a path that `is_segment`."""
    _, stream_id, name = path.split("/")
    return stream_id, int(name.partition(".")[0])


def checksum_of(path: str) -> str:
    """The checksum in a segment file's name."""
    return path.rsplit(".", 2)[1]


def all_files(root: Path, stream_id: str | None = None) -> set[str]:
    """Every file under the streams' folder, or one stream's, whatever its name; relative to the root.

    A folder may be removed meanwhile.
    """
    folder = root / STREAMS if stream_id is None else stream_folder(root, stream_id)
    return {
        (Path(parent) / name).relative_to(root).as_posix()
        for parent, _, names in os.walk(folder)
        for name in names
    }


def vectors_files(root: Path, stream_id: str | None = None) -> dict[str, str]:
    """Files of summary vectors, or one stream's, by the stream that each is named for; relative to the root."""
    names = "*.bin" if stream_id is None else vectors_path(root, stream_id).name
    return {path.stem: path.relative_to(root).as_posix() for path in sorted((root / VECTORS).glob(names))}


def is_vectors(path: str) -> bool:
    """Whether a path relative to the root is that of a file of summary vectors."""
    return path.startswith(f"{VECTORS}/")


def set_aside(root: Path, path: str) -> str:
    """Moves a damaged file out of the way; its new path relative to the root, empty when it is not there."""
    to = root / DAMAGED / path.partition("/")[2].replace("/", ".")
    try:
        to.parent.mkdir(exist_ok=True)
        (root / path).replace(to)
    except OSError:
        return ""
    return to.relative_to(root).as_posix()


def remove_if_empty(root: Path, stream_id: str) -> None:
    with suppress(OSError):  # not empty, or not there
        stream_folder(root, stream_id).rmdir()


def holds_segments(root: Path) -> bool:
    """Whether any stream's folder has a segment file."""
    return any(_SEGMENT.fullmatch(path.name) for path in (root / STREAMS).glob("*/*.arrow"))
