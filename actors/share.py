"""Work that may take a share of the time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

BURST_S = 1.0
"""What may be taken at once after a rest."""


class Share:
    """What is taken is paid from a credit, which grows by `share` seconds a second up to `BURST_S`. For any thread."""

    def __init__(self, share: float, now: Callable[[], float] = time.monotonic) -> None:
        self._share, self._now = share, now
        self._credit_s = BURST_S if share > 0 else 0.0
        self._at = now()
        self._lock = threading.Lock()

    @property
    def has_room(self) -> bool:
        with self._lock:
            self._refill()
            return self._credit_s > 0

    @contextmanager
    def spend(self) -> Iterator[None]:
        """Takes what the block takes; more than there is puts it into debt."""
        begun = self._now()
        try:
            yield
        finally:
            with self._lock:
                self._refill()
                self._credit_s -= self._now() - begun

    def _refill(self) -> None:
        now = self._now()
        self._credit_s = min(BURST_S, self._credit_s + self._share * (now - self._at))
        self._at = now
