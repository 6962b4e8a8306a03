"""Parts of a file that take no room on disk and read as zeros."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_KEEP_SIZE, _PUNCH_HOLE = 1, 2  # linux/falloc.h
_ZEROS = bytes(1 << 20)


def punch_hole(path: Path, start: int, stop: int) -> None:
    """Makes bytes from `start` up to `stop` zeros and gives their room back; the file keeps its size, maps stay good.

    Where the file system cannot give room back they become zeros all the same. FileNotFoundError without the file.
    """
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        stop = min(stop, os.fstat(fd).st_size)
        if start < stop and not _deallocate(fd, start, stop - start):
            for at in range(start, stop, len(_ZEROS)):
                os.pwrite(fd, _ZEROS[: stop - at], at)
    finally:
        os.close(fd)


def _deallocate(fd: int, start: int, count: int) -> bool:
    """By fallocate(2), which Python does not have; False where that cannot be done."""
    fallocate = getattr(ctypes.CDLL(None, use_errno=True), "fallocate64", None)
    if fallocate is None:
        return False
    offset, length = ctypes.c_int64(start), ctypes.c_int64(count)
    return bool(fallocate(fd, _KEEP_SIZE | _PUNCH_HOLE, offset, length) == 0)


def data_extents(file: BinaryIO) -> Iterator[tuple[int, int]]:
    """Where the file is no hole: (start, stop) in bytes, in order. All of it where holes are not told apart."""
    fd, at = file.fileno(), 0
    size = os.fstat(fd).st_size
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as exc:
            if exc.errno != errno.ENXIO:  # none: a hole up to the end
                raise
            return
        at = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, at
