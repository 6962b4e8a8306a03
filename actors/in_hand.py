"""Whose data each thread of a worker has in hand, on a page that outlives the process.

A process that a damaged stream ends says nothing any more. What it had in hand then is still on its page: a file that
is mapped into memory, which the kernel keeps. A mark is a copy of some bytes, and no system call.

    slot 0   the encoding loop    lobby 61.5
    slot 1   decode-lobby                       it waits for room
    slot 2   decode-gate          gate 17.0     here the decoder crashed: `gate` or `lobby` ended it, `gate` at 17 s
"""

from __future__ import annotations

import mmap
import os
import socket
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

SLOT_BYTES, NUM_SLOTS = 128, 1024
"""A stream's id has at most 64 characters and those of an epoch; threads beyond the last slot leave no mark."""
PREFIX = "streamkv-in-hand-"
OLD_S = 60.0
"""A page is read within seconds of its process's end; after that any later worker may remove it."""

InHands = dict[str, tuple[float, ...]]
"""Positions in seconds of stream time, by stream."""


@dataclass(frozen=True)
class Place:
    """Where a page is."""

    host: str
    path: str

    @property
    def is_here(self) -> bool:
        return self.host == socket.gethostname()


class Slot:
    """One thread's mark. `with slot.of(stream_id):` around the work, `with slot.aside():` around a wait within it."""

    def __init__(self, page: InHand | None = None, number: int | None = None) -> None:
        self._page = page
        self._number = number
        self._mark = b""

    @contextmanager
    def of(self, stream_id: str, position_s: float = 0.0) -> Iterator[None]:
        """`position_s`: stream time up to which the thread has come with it."""
        self._write(f"{stream_id} {position_s:.3f}".encode())
        try:
            yield
        finally:
            self._write(b"")

    @contextmanager
    def aside(self) -> Iterator[None]:
        mark = self._mark
        self._write(b"")
        try:
            yield
        finally:
            self._write(mark)

    def release(self) -> None:
        self._write(b"")
        if self._page is not None and self._number is not None:
            self._page.take_back(self._number)
            self._number = None

    def _write(self, mark: bytes) -> None:
        self._mark = mark
        if self._page is not None and self._number is not None:
            self._page.write(self._number, mark)


class InHand:
    """This process's page. Where none can be made (a full disk), nothing is marked, and `place` is None."""

    def __init__(self, folder: Path | None = None) -> None:
        self._memory: mmap.mmap | None = None
        self._free = deque(range(NUM_SLOTS))
        self.place: Place | None = None
        folder = folder or Path(tempfile.gettempdir())
        with suppress(OSError):
            _sweep(folder)
            handle, path = tempfile.mkstemp(prefix=f"{PREFIX}{os.getpid()}-", dir=folder)
            try:
                os.posix_fallocate(handle, 0, SLOT_BYTES * NUM_SLOTS)  # else a write to a full disk ends us
                self._memory = mmap.mmap(handle, SLOT_BYTES * NUM_SLOTS)
                self.place = Place(socket.gethostname(), path)
            except OSError:
                os.unlink(path)
            finally:
                os.close(handle)

    def slot(self) -> Slot:
        """For one thread, until it is released."""
        return Slot(self, self._free.popleft() if self._free else None)

    def take_back(self, number: int) -> None:
        self._free.append(number)

    def write(self, number: int, mark: bytes) -> None:
        at = number * SLOT_BYTES
        if self._memory is not None:
            self._memory[at : at + SLOT_BYTES] = mark[:SLOT_BYTES].ljust(SLOT_BYTES, b"\0")

    def remove(self) -> None:
        """At an end in good order, of which nobody will ask why."""
        if self.place is not None:
            Path(self.place.path).unlink(missing_ok=True)


def read_page(path: str) -> InHands:
    """Streams that a process had in hand, which may have ended, and how far each of its threads had come with them;
    empty when there is no such page here."""
    try:
        page = Path(path).read_bytes()
    except OSError:
        return {}
    found: dict[str, tuple[float, ...]] = {}
    for at in range(0, len(page), SLOT_BYTES):
        mark = page[at : at + SLOT_BYTES].rstrip(b"\0").decode(errors="replace")
        stream_id, _, position_s = mark.partition(" ")
        with suppress(ValueError):  # an empty slot, or one that was cut off while it was written
            found[stream_id] = (*found.get(stream_id, ()), float(position_s))
    return found


def _sweep(folder: Path) -> None:
    """Removes pages of processes that are gone."""
    for page in folder.glob(f"{PREFIX}*"):
        pid = page.name.removeprefix(PREFIX).partition("-")[0]
        with suppress(OSError):
            if not Path("/proc", pid).exists() and time.time() - page.stat().st_mtime > OLD_S:
                page.unlink()
