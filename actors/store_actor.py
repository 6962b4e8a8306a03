"""The one process that writes the catalog. Reading processes open the store themselves."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from actors.messages import Beginning
from actors.rounds import Rounds
from actors.timing import StageClock
from actors.upkeep import Upkeep
from streamkv.config import StoreConfig
from streamkv.store import ModelIdentity, SegmentPlace, SegmentStore, StreamInfo, StreamRecord, StreamState


class StoreActor:
    """A `SegmentStore` behind calls that may be repeated: all but `add_stream` are idempotent."""

    def __init__(self, config: StoreConfig, identity: ModelIdentity) -> None:
        self.clock = StageClock()
        self._config = config
        self._identity = identity
        self._opened: SegmentStore | None = None
        self._rounds: list[Rounds] = []
        self._lock = threading.Lock()

    def start(self) -> None:
        """Opens the store, or makes it; ForeignStoreError when it is another model's."""
        self._store()

    def check_health(self) -> None:
        """Raises when the catalog cannot be read."""
        self._store().streams()

    def shutdown(self) -> None:
        for rounds in self._rounds:
            rounds.shutdown()
        with self._lock:
            if self._opened is not None:
                self._opened.close()
                self._opened = None

    def add_stream(self, stream_id: str, uri: str, config: Mapping[str, Any], tenant: str = "") -> None:
        self._store().add_stream(stream_id, uri, config, tenant=tenant)

    def remove_stream(self, stream_id: str) -> None:
        self._store().remove_stream(stream_id)

    def streams(self) -> list[StreamInfo]:
        return self._store().streams()

    def stream(self, stream_id: str) -> StreamInfo:
        return self._store().stream(stream_id)

    def record(self, stream_id: str) -> StreamRecord:
        """As `stream`, without the sums over its segments."""
        return self._store().record(stream_id)

    def set_state(self, stream_id: str, state: StreamState, detail: str) -> None:
        self._store().set_state(stream_id, state, detail)

    def add_gap(self, stream_id: str, start_s: float, end_s: float, reason: str) -> None:
        self._store().add_gap(stream_id, start_s, end_s, reason)

    def begin_session(self, stream_id: str) -> Beginning:
        """Gives the stream a new writer, and says who and from where on; it is `ingesting` then.

        Unless its next segment would find no room, after what the policy deletes for it. One call for all of it,
        since a supervisor that has just started makes it for every stream.
        """
        store = self._store()
        if why_not := store.room(stream_id):
            return Beginning(why_not=why_not)
        store.begin_writing(stream_id)
        record = store.record(stream_id)  # after the epoch: nobody else commits from here on
        if (record.state, record.detail) != ("ingesting", ""):
            store.set_state(stream_id, "ingesting", "")
        return Beginning(record)

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
                config = self._config
                self._opened = SegmentStore.configured(config, identity=self._identity)
                self._rounds = self._background()
                for rounds in self._rounds:
                    rounds.start()
            return self._opened

    def _background(self) -> list[Rounds]:
        """Apart from each other: ageing may take hours, and uploads wait for a bucket."""
        config, upkeep = self._config, Upkeep(self._config, self._store, self.clock)
        rounds = [Rounds("upkeep", config.upkeep_s, upkeep.retain_and_age)]
        if config.remote:
            rounds.append(Rounds("offload", config.offload_s, upkeep.offload))
        return rounds
