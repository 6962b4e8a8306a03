"""Questions go first on a device that they share with ingest, whose processes the operating system cannot rank there.

answers    |question          |              |question |
ingest     waits, for a while  |batch |segment| waits   |batch ...
"""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from actors.share import Share
from streamkv.config import PipelineConfig

MOST_S = 0.5
"""How long one batch or segment waits at most."""
POLL_S = 0.001


def name_of(config: PipelineConfig) -> str:
    """The same for all processes of a server that share a device; empty if its ingest gives way to nobody."""
    if not config.ingest.give_way:
        return ""
    device = config.model.device
    seen = os.environ.get("CUDA_VISIBLE_DEVICES", "") if device.startswith("cuda") else ""
    parts = (str(Path(config.store.root).resolve()), device, seen)
    return sha256("\0".join(parts).encode()).hexdigest()[:16]


class RightOfWay:
    """A lock on a file of this machine: who answers holds it shared, and the kernel lets go should the process die.

    Without a name, and where no such file can be made (a full disk), nobody has it and nobody waits.
    """

    def __init__(self, name: str = "", folder: Path | None = None) -> None:
        self._file: int | None = None
        if name:
            path = (folder or Path(tempfile.gettempdir())) / f"streamkv-way-{name}"
            with suppress(OSError):
                self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        self._has_it = False

    def take(self) -> None:
        if self._file is not None and not self._has_it:
            fcntl.flock(self._file, fcntl.LOCK_SH)
            self._has_it = True

    def give_back(self) -> None:
        if self._file is not None and self._has_it:
            fcntl.flock(self._file, fcntl.LOCK_UN)
            self._has_it = False

    @property
    def is_taken(self) -> bool:
        """By another than this."""
        if self._file is None:
            return False
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        fcntl.flock(self._file, fcntl.LOCK_UN)
        return False


class GiveWay:
    """Called before a piece of ingest's work: waits while a question is under way, `MOST_S` at a time, and no more than
    `share` of the time, so that ingest goes on under any number of questions. For one thread."""

    def __init__(self, way: RightOfWay, share: Share) -> None:
        self._way, self._share = way, share

    def __call__(self, meanwhile: Callable[[], None] | None = None) -> None:
        """`meanwhile` is called again and again: the question may have asked this process for something."""
        if not self._share.has_room:
            return
        with self._share.spend():
            end = time.monotonic() + MOST_S
            while self._way.is_taken and time.monotonic() < end:
                if meanwhile is not None:
                    meanwhile()
                time.sleep(POLL_S)


def go_on(meanwhile: Callable[[], None] | None = None) -> None:
    """Gives way to nobody."""
