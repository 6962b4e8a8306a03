"""Whose data each thread of a worker has in hand, on a page that outlives the process.

A process that a damaged stream ends says nothing any more. What it had in hand then is still on its page: a file that
is mapped into memory, which the kernel keeps. A mark is a copy of some bytes, and no system call.

    slot 0   the encoding loop    lobby 61.5 7f01
    slot 1   decode-lobby                            it waits for room
    slot 2   decode-gate          gate 17.0 7f02     it ended in `gate` at 17 s, or in `lobby` at 61.5 s
    trace    Fatal Python error: Segmentation fault ... Current thread 0x7f02: so it was `gate`

What follows the slots is for `faulthandler`, which writes there what a crash was, and in which thread. Who is killed
writes nothing: the kernel counts what it kills for want of memory, and any other kill comes from outside.
"""

from __future__ import annotations

import faulthandler
import mmap
import os
import re
import socket
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

SLOT_BYTES, NUM_SLOTS = 128, 1024
"""A stream's id has at most 64 characters and those of an epoch; threads beyond the last slot leave no mark."""
TRACE_BYTES = 1 << 14
"""Kept free for the trace of a crash, so that a full disk does not cost its beginning."""
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
    oom_kills: int = 0  # of the node, when the process last said where its page is

    @property
    def is_here(self) -> bool:
        return self.host == socket.gethostname()


@dataclass(frozen=True)
class LastWords:
    """What is known of a process that has ended."""

    in_hand: InHands = field(default_factory=dict)  # of a thread that crashed only what that one had
    cause: str = ""  # "a crash (Segmentation fault)"; empty: it was killed from outside
    trace: str = ""  # of a crash


class Slot:
    """One thread's mark. `with slot.of(stream_id):` around the work, `with slot.aside():` around a wait within it."""

    def __init__(self, page: InHand | None = None, number: int | None = None) -> None:
        self._page = page
        self._number = number
        self._mark = b""

    @contextmanager
    def of(self, stream_id: str, position_s: float = 0.0) -> Iterator[None]:
        """`position_s`: stream time up to which the thread has come with it."""
        self._write(f"{stream_id} {position_s:.3f} {threading.get_ident():x}".encode())
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
    """A worker's page. Where none can be made (a full disk), nothing is marked, and `place` is None."""

    def __init__(self, folder: Path | None = None, *, hears_crashes: bool = False) -> None:
        """`hears_crashes`: this process is the worker's own, and its crash is noted."""
        self._memory: mmap.mmap | None = None
        self._free = deque(range(NUM_SLOTS))
        self._path = ""
        folder = folder or Path(tempfile.gettempdir())
        with suppress(OSError):
            _sweep(folder)
            handle, path = tempfile.mkstemp(prefix=f"{PREFIX}{os.getpid()}-", dir=folder)
            try:
                # Now: later a full disk would end the process, by a write to the map.
                os.posix_fallocate(handle, 0, SLOT_BYTES * NUM_SLOTS + TRACE_BYTES)
                self._memory = mmap.mmap(handle, SLOT_BYTES * NUM_SLOTS)
            except OSError:
                os.close(handle)
                os.unlink(path)
                return
            self._path = path
            if hears_crashes:
                os.lseek(handle, SLOT_BYTES * NUM_SLOTS, os.SEEK_SET)
                faulthandler.disable()  # Ray's own, which writes elsewhere
                faulthandler.enable(handle, all_threads=True)  # and keeps it open
            else:
                os.close(handle)

    @property
    def place(self) -> Place | None:
        return Place(socket.gethostname(), self._path, count_oom_kills()) if self._path else None

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
        if self._path:
            Path(self._path).unlink(missing_ok=True)


def count_oom_kills() -> int:
    """Processes that the kernel has killed for want of memory, in all its control groups; 0 where it does not say."""
    with suppress(OSError, StopIteration):
        lines = Path("/proc/vmstat").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("oom_kill ")).split()[1])
    return 0


def last_words(place: Place) -> LastWords:
    """Of a process that may have ended, read on its node: the streams that it had in hand, how far each of its threads
    had come with them, and what ended it. Nothing when there is no such page here."""
    try:
        page = Path(place.path).read_bytes()
    except OSError:
        return LastWords()
    slots, trace = page[: SLOT_BYTES * NUM_SLOTS], _text(page[SLOT_BYTES * NUM_SLOTS :])
    marks = []
    for at in range(0, len(slots), SLOT_BYTES):
        with suppress(ValueError):  # an empty slot, or one that was cut off while it was written
            stream_id, position, thread = _text(slots[at : at + SLOT_BYTES]).split(" ")
            marks.append((stream_id, float(position), int(thread, 16)))
    if crashed := re.search(r"^Current thread 0x([0-9a-f]+)", trace, re.MULTILINE):
        marks = [mark for mark in marks if mark[2] == int(crashed[1], 16)] or marks
    found: InHands = {}
    for stream_id, position_s, _ in marks:
        found[stream_id] = (*found.get(stream_id, ()), position_s)
    cause = "want of memory" if count_oom_kills() != place.oom_kills else ""
    if trace:
        cause = f"a crash ({trace.splitlines()[0].removeprefix('Fatal Python error: ')})"
    return LastWords(found, cause, trace)


def _text(padded: bytes) -> str:
    return padded.rstrip(b"\0").decode(errors="replace")


def _sweep(folder: Path) -> None:
    """Removes pages of processes that are gone."""
    for page in folder.glob(f"{PREFIX}*"):
        pid = page.name.removeprefix(PREFIX).partition("-")[0]
        with suppress(OSError):
            if not Path("/proc", pid).exists() and time.time() - page.stat().st_mtime > OLD_S:
                page.unlink()
