"""Work that is done every so often, in a thread of its own."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from actors.failures import describe

STOP_S = 30.0

LONGEST_S = 300.0
"""Between two rounds of which the first failed, unless all of them are further apart."""

log = logging.getLogger(__name__)


class _EndedError(Exception):
    """The round is left where it is; the next one does the rest."""


class Rounds:
    """One thread. What a round cannot do is logged and tried again in the next, after twice as long each time."""

    def __init__(self, name: str, every_s: float, work: Callable[[Callable[[int, int], None]], None]) -> None:
        """`work` calls what it is given after each segment, with how many are done, and of how many."""
        self._name = name
        self._every_s = every_s
        self._work = work
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """The first round is `every_s` from now; with 0 there is none."""
        if self._every_s:
            self._thread.start()

    def shutdown(self) -> None:
        """Ends after the segment at hand."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(STOP_S)

    def _run(self) -> None:
        pause_s = self._every_s
        while not self._stopping.wait(pause_s):
            try:
                self._work(self._go_on)
                pause_s = self._every_s
            except _EndedError:
                return
            except Exception as exc:  # whatever it is, the store's other work goes on
                pause_s = min(2 * pause_s, max(self._every_s, LONGEST_S))
                log.warning("%s of the store failed, again in %g s: %s", self._name, pause_s, describe(exc))

    def _go_on(self, done: int, total: int) -> None:
        if self._stopping.is_set():
            raise _EndedError
