"""Writing so that what was acknowledged survives a crash: write, fsync, rename, fsync of the folder.

Each step is a function of its own: the crash tests stop the process at any of them.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from streamkv.errors import StoreError, StoreFullError

_FULL = (errno.ENOSPC, errno.EDQUOT)


def write_temp(temp: Path, write: Callable[[BinaryIO], object]) -> None:
    """Fills a new file by `write` and brings its bytes to disk; its name is not durable yet."""
    with temp.open("xb") as file:
        write(file)
        file.flush()
        sync_file(file)


def publish(temp: Path, final: Path) -> None:
    """Gives a written file its name, durably. Replaces a file of that name."""
    rename(temp, final)
    sync_folder(final.parent)


def make_folder(folder: Path) -> None:
    """Creates a folder and what is above it; the new names are on disk when it returns."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def sync_file(file: BinaryIO) -> None:
    os.fsync(file.fileno())


def rename(temp: Path, final: Path) -> None:
    os.replace(temp, final)


def remove(path: Path) -> None:
    """Takes a file's name away; maps of it stay as they are. None is needed: it may be gone already."""
    path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def note_use(path: Path, at_s: float) -> None:
    """Sets when a file was last read, seconds since 1970: what leaves the local disk is chosen by it."""
    with suppress(OSError):  # a disk for reading only, or a file that has just left it
        os.utime(path, ns=(int(at_s * 1e9), path.stat().st_mtime_ns))


@contextmanager
def use_not_noted(path: Path) -> Iterator[None]:
    """Reading within the block does not count as use."""
    before = None
    with suppress(FileNotFoundError):
        before = path.stat().st_atime
    yield
    if before is not None:
        note_use(path, before)


@contextmanager
def removed_on_error(temp: Path, otherwise: str = "the segment was not stored") -> Iterator[None]:
    """Takes the temporary file away when the body fails, and says what to do about the disk, and what was not done.

    StoreFullError when that has no room, StoreError for anything else of it.
    """
    try:
        yield
    except OSError as exc:
        _take_away(temp)
        kind = StoreFullError if exc.errno in _FULL else StoreError
        raise kind(_advice(temp, exc, otherwise)) from exc
    except Exception:
        _take_away(temp)
        raise


def _take_away(temp: Path) -> None:
    with suppress(OSError):  # what remains is collected when the stream's next writer begins
        temp.unlink()


def _advice(path: Path, exc: OSError, otherwise: str) -> str:
    if exc.errno not in _FULL:
        return f"cannot write {path}: {exc.strerror or exc}; {otherwise}"
    return (
        f"disk full while writing {path} ({_free_bytes(path):,} bytes free): {otherwise}; "
        "free space, remove a stream, set store.retention, or move store.root to a larger disk"
    )


def _free_bytes(path: Path) -> int:
    try:
        return shutil.disk_usage(path.parent).free
    except OSError:
        return 0
