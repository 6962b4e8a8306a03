"""Deletes and ages what is due, every so often, in the process that writes the catalog."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from actors.failures import describe
from actors.timing import StageClock
from streamkv.config import StoreConfig
from streamkv.errors import StoreError
from streamkv.store import SegmentStore

STOP_S = 30.0

log = logging.getLogger(__name__)


class _EndedError(Exception):
    """The round is left where it is; the next one does the rest."""


class Upkeep:
    """One thread. What a round cannot do is logged, and tried again in the next."""

    def __init__(self, config: StoreConfig, store: Callable[[], SegmentStore], clock: StageClock) -> None:
        self._config = config
        self._store = store
        self._clock = clock
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="upkeep", daemon=True)

    def start(self) -> None:
        """The first round is `store.upkeep_s` from now; with 0 there is none."""
        if self._config.upkeep_s:
            self._thread.start()

    def shutdown(self) -> None:
        """Ends after the segment at hand."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(STOP_S)

    def _run(self) -> None:
        while not self._stopping.wait(self._config.upkeep_s):
            try:
                self._round()
            except _EndedError:
                return
            except Exception as exc:  # whatever it is, the store's other work goes on
                log.warning("upkeep of the store failed: %s", describe(exc))

    def _round(self) -> None:
        store = self._store()
        with self._clock.time("retain"):
            deleted = store.retain(on_segment=self._go_on)
        self._clock.count("deleted_segments", sum(front.num_segments for front in deleted.values()))
        if self._config.ageing:
            for info in store.streams():
                self._age(store, info.stream_id)

    def _age(self, store: SegmentStore, stream_id: str) -> None:
        try:
            with self._clock.time("age"):
                aged = store.age(stream_id, self._config.ageing, on_segment=self._go_on)
            self._clock.count("aged_segments", aged.num_segments)
        except StoreError as exc:  # removed, or damaged: other streams are aged all the same
            log.warning("stream %s is not aged: %s", stream_id, describe(exc))

    def _go_on(self, done: int, total: int) -> None:
        if self._stopping.is_set():
            raise _EndedError
