"""A server's background work on its store: a round deletes and ages what is due, another one moves it between tiers."""

from __future__ import annotations

import logging
from collections.abc import Callable

from actors.failures import describe
from actors.timing import StageClock
from streamkv.config import StoreConfig
from streamkv.errors import StoreError
from streamkv.store import SegmentStore

OnSegment = Callable[[int, int], None]

log = logging.getLogger(__name__)


class Upkeep:
    """Of the store in the process that writes the catalog."""

    def __init__(self, config: StoreConfig, store: Callable[[], SegmentStore], clock: StageClock) -> None:
        self._config = config
        self._store = store
        self._clock = clock

    def retain_and_age(self, on_segment: OnSegment) -> None:
        store = self._store()
        with self._clock.time("retain"):
            deleted = store.retain(on_segment=on_segment)
        self._clock.count("deleted_segments", sum(front.num_segments for front in deleted.values()))
        if self._config.ageing:
            for info in store.streams():
                self._age(store, info.stream_id, on_segment)

    def offload(self, on_segment: OnSegment) -> None:
        """StoreError when segments are left that cannot be uploaded."""

        def count(done: int, total: int) -> None:  # at once: a round may fail after some
            self._clock.count("uploaded_segments")
            on_segment(done, total)

        with self._clock.time("offload"):
            done = self._store().offload(count)
        self._clock.count("deleted_objects", done.num_deleted)
        if done.failed:
            raise StoreError(f"{len(done.failed)} segments cannot be uploaded, such as {done.failed[0]}")

    def _age(self, store: SegmentStore, stream_id: str, on_segment: OnSegment) -> None:
        try:
            with self._clock.time("age"):
                aged = store.age(stream_id, self._config.ageing, on_segment=on_segment)
            self._clock.count("aged_segments", aged.num_segments)
        except StoreError as exc:  # removed, or damaged: other streams are aged all the same
            log.warning("stream %s is not aged: %s", stream_id, describe(exc))
