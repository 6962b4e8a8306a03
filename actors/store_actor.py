"""The one process that writes the catalog. Reading processes open the store themselves."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

from actors.messages import Beginning
from actors.rounds import Rounds
from actors.standing import questions_of
from actors.timing import StageClock
from actors.upkeep import Upkeep
from actors.webhooks import WebhookSender
from streamkv.config import StoreConfig, WatchConfig
from streamkv.store import (
    ModelIdentity,
    SegmentPlace,
    SegmentStore,
    StreamInfo,
    StreamRecord,
    StreamState,
    WatchRecord,
)
from streamkv.watches import OpenAnswers, Watch, WatchAnswer, WatchEvent


class StoreActor:
    """A `SegmentStore` behind calls that may be repeated: all but `add_stream`, `begin_next` and `remove_watch` are
    idempotent."""

    def __init__(
        self, config: StoreConfig, identity: ModelIdentity, watch: WatchConfig | None = None
    ) -> None:
        self.clock = StageClock()
        self._config = config
        self._watch = watch or WatchConfig()
        self._identity = identity
        self._opened: SegmentStore | None = None
        self._rounds: list[Rounds | WebhookSender] = []
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

    def begin_next(self, stream_id: str, config: Mapping[str, Any]) -> str:
        return self._store().begin_next(stream_id, config)

    def switch_to(self, stream_id: str) -> None:
        self._store().switch_to(stream_id)

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
        return Beginning(record, questions_of(store.watches.of(record.stream_id)))

    def commit(self, place: SegmentPlace, answers: Sequence[WatchAnswer] = ()) -> bool:
        with self.clock.time("catalog"):
            return self._store().commit(place, answers)

    def hear_open(self, heard: OpenAnswers) -> int:
        return self._store().watches.hear_open(heard)

    def add_watch(self, watch: Watch, limit: int) -> None:
        self._store().watches.add(watch, limit)

    def remove_watch(self, watch_id: str) -> str:
        """Returns the stream that it was of."""
        return self._store().watches.remove(watch_id)

    def watches_of(self, stream_id: str) -> list[Watch]:
        return self._store().watches.of(stream_id)

    def watch_records(self, stream_id: str | None) -> list[WatchRecord]:
        return self._store().watches.records(stream_id)

    def watch_record(self, watch_id: str) -> WatchRecord:
        return self._store().watches.record(watch_id)

    def watch_events(self, after: Sequence[tuple[str, int]], limit: int) -> list[list[WatchEvent] | None]:
        return self._store().watches.events(after, limit)

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

    def _background(self) -> list[Rounds | WebhookSender]:
        """Apart from each other: ageing may take hours, and uploads and webhooks wait for others."""
        config, upkeep = self._config, Upkeep(self._config, self._store, self.clock)
        rounds: list[Rounds | WebhookSender] = [
            Rounds("upkeep", config.upkeep_s, upkeep.retain_and_age),
            WebhookSender(self._watch, lambda: self._store().watches, self.clock),
        ]
        if config.remote:
            rounds.append(Rounds("offload", config.offload_s, upkeep.offload))
        return rounds
