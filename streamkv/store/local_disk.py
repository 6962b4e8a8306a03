"""The local disk as a tier: how many bytes the segment files there have, and which of them leave it first.

A file's time of last access says when it was last used. Readers set it, at most once in a while (`reader.py`); it
needs no catalog, so processes that only read have their say.
"""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from streamkv.store import durable, layout

SCAN_S = 60.0
"""How old the list of files may be: other processes fetch, too."""

ABANDONED_S = 3600.0
"""After which a file that is still on its way from the object store is what a crash left."""

Which = Callable[[Iterable[str]], set[str]]

_AT_ONCE = 256
_NEWS = 10_000


class _Local(NamedTuple):
    used_at: float  # seconds since 1970
    num_bytes: int


class LocalDisk:
    """Segment files under a root, within a budget. Threads and processes may share it."""

    def __init__(self, root: Path, budget: int, elsewhere: Which, may_leave: Which) -> None:
        """`budget` in bytes, 0 for none. `elsewhere` says which of some files are not only here, `may_leave` which of
        those are elsewhere as they are to be."""
        self._root = root
        self._budget = budget
        self._elsewhere = elsewhere
        self._may_leave = may_leave
        self._lock = threading.Lock()
        # What came, by path and bytes; 0: what went. What does not fit, the next scan finds.
        self._news: deque[tuple[str, int]] = deque(maxlen=_NEWS)
        self._files: OrderedDict[str, _Local] = OrderedDict()  # by path, the least recently used first
        self._bytes = 0
        self._scanned_at = -SCAN_S

    def counts(self) -> tuple[int, int]:
        """Files and bytes, looked up now."""
        with self._lock:
            self._scan()
            return len(self._files), self._bytes

    def added(self, path: str, num_bytes: int) -> None:
        """A file that is there now, or will be. Waits for nobody: a commit calls it."""
        self._news.append((path, num_bytes))

    def dropped(self, path: str) -> None:
        """A file that is not there after all."""
        self._news.append((path, 0))

    def make_room(self, num_bytes: int = 0) -> None:
        """Has files leave, the least recently used first, until the budget has room for so many bytes more.

        Files that are nowhere else stay, and the budget is exceeded then.
        """
        if self._budget:
            self._reduce_to(self._budget - num_bytes, self._may_leave)

    def free(self, num_bytes: int) -> None:
        """Has files of so many bytes leave, whatever the budget, and as whatever they are elsewhere."""
        with self._lock:
            self._scan()
            wanted = self._bytes - num_bytes
        self._reduce_to(wanted, self._elsewhere)

    def unready(self) -> list[str]:
        """Files that the budget would have leave, the least recently used first, if only they might."""
        found: list[str] = []
        with self._lock:
            self._refresh()
            left = self._bytes - self._budget if self._budget else 0
            for some in self._in_turn():
                elsewhere, ready = self._elsewhere(some), self._may_leave(some)
                for path in some:
                    if left <= 0:
                        return found
                    if path in elsewhere:
                        left -= self._files[path].num_bytes
                        found += [path] if path not in ready else []
        return found

    # ---- inside

    def _refresh(self) -> None:
        if time.monotonic() - self._scanned_at >= SCAN_S:
            self._scan()
        self._take_news()

    def _in_turn(self) -> Iterator[list[str]]:
        """Segment files, the least recently used first, some at once."""
        known = [path for path in self._files if layout.is_segment(path)]
        for i in range(0, len(known), _AT_ONCE):
            yield known[i : i + _AT_ONCE]

    def _reduce_to(self, wanted: int, which: Which) -> None:
        with self._lock:
            self._refresh()
            self._let_leave(wanted, which)
            self._let_leave(wanted, which)  # again: those that had been used since they were listed

    def _let_leave(self, wanted: int, which: Which) -> None:
        for some in self._in_turn() if self._bytes > wanted else ():
            leaving = which(some)
            for path in some:
                if self._bytes <= wanted:
                    return
                if path in leaving:
                    self._leave(path)

    def _leave(self, path: str) -> None:
        file = self._root / path
        with suppress(FileNotFoundError):
            used_at = file.stat().st_atime
            if used_at > self._files[path].used_at:  # others go first
                self._files[path] = self._files[path]._replace(used_at=used_at)
                self._files.move_to_end(path)
                return
        durable.remove(file)
        self._drop(path)

    def _take_news(self) -> None:
        while self._news:
            path, num_bytes = self._news.popleft()
            self._drop(path)
            if num_bytes:
                self._files[path] = _Local(time.time(), num_bytes)
                self._bytes += num_bytes

    def _drop(self, path: str) -> None:
        found = self._files.pop(path, None)
        self._bytes -= found.num_bytes if found else 0

    def _scan(self) -> None:
        """Lists what is there now; removes what fetches that were cut off have left."""
        found = {}
        for path in layout.all_files(self._root):
            with suppress(OSError):  # gone meanwhile
                status = os.stat(self._root / path)
                if layout.is_fetch(path) and time.time() - status.st_mtime > ABANDONED_S:
                    durable.remove(self._root / path)
                    continue
                found[path] = _Local(status.st_atime, status.st_size)
        self._files = OrderedDict(sorted(found.items(), key=lambda item: (item[1].used_at, item[0])))
        self._bytes = sum(file.num_bytes for file in found.values())
        self._scanned_at = time.monotonic()
