"""The one process that writes the catalog. Reading processes open the store themselves."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from actors.timing import StageClock
from streamkv.store import ModelIdentity, SegmentPlace, SegmentStore, StreamInfo, StreamState


class StoreActor:
    """A `SegmentStore` behind calls that may be repeated: all but `add_stream` are idempotent."""

    def __init__(self, root: str, catalog_url: str, identity: ModelIdentity) -> None:
        self.clock = StageClock()
        self._root = root
        self._catalog_url = catalog_url
        self._identity = identity
        self._opened: SegmentStore | None = None
        self._lock = threading.Lock()

    def start(self) -> None:
        """Opens the store, or makes it; ForeignStoreError when it is another model's."""
        self._store()

    def check_health(self) -> None:
        """Raises when the catalog cannot be read."""
        self._store().streams()

    def shutdown(self) -> None:
        with self._lock:
            if self._opened is not None:
                self._opened.close()
                self._opened = None

    def add_stream(self, stream_id: str, uri: str, config: Mapping[str, Any]) -> None:
        self._store().add_stream(stream_id, uri, config)

    def remove_stream(self, stream_id: str) -> None:
        self._store().remove_stream(stream_id)

    def streams(self) -> list[StreamInfo]:
        return self._store().streams()

    def stream(self, stream_id: str) -> StreamInfo:
        return self._store().stream(stream_id)

    def set_state(self, stream_id: str, state: StreamState, detail: str) -> None:
        self._store().set_state(stream_id, state, detail)

    def add_gap(self, stream_id: str, start_s: float, end_s: float, reason: str) -> None:
        self._store().add_gap(stream_id, start_s, end_s, reason)

    def begin_writing(self, stream_id: str) -> int:
        return self._store().begin_writing(stream_id)

    def commit(self, place: SegmentPlace) -> bool:
        with self.clock.time("catalog"):
            return self._store().commit(place)

    def totals(self) -> dict[str, float]:
        return self.clock.totals()

    def _store(self) -> SegmentStore:
        # Opened by the first call, not by the constructor: its errors then reach the caller as what they are,
        # and a restarted process opens it again by itself.
        with self._lock:
            if self._opened is None:
                self._opened = SegmentStore.open(
                    self._root, catalog_url=self._catalog_url, identity=self._identity
                )
            return self._opened
