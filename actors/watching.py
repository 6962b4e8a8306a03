"""Standing questions as users add, see and remove them, while their streams go on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext

from actors.placement import Charge
from actors.sessions import Sessions
from actors.standing import make_watch, view_event, view_watch
from actors.views import NewWatch, WatchEventView, WatchView
from actors.workers import CatalogKeeper
from streamkv.config import PipelineConfig
from streamkv.errors import WatchLimitError
from streamkv.store import ENDED


class Watching:
    """A part of the supervisor. `ready`: the store, once open; `charge_of`: a stream by its id, if in care."""

    def __init__(
        self,
        config: PipelineConfig,
        sessions: Sessions,
        *,
        ready: Callable[[], CatalogKeeper],
        charge_of: Callable[[str], Charge | None],
    ) -> None:
        self._config = config
        self._sessions = sessions
        self._ready = ready
        self._charge_of = charge_of

    def add(self, new: NewWatch) -> tuple[WatchView, str]:
        """Registers a standing question. Asked of all segments whose prefill ends from then on.

        Returns the secret that was made for its webhook, too; empty when none was.

        Raises:
            UnknownStreamError, QuestionError, WatchError, WatchLimitError: nothing is registered then.
        """
        store = self._ready()
        watch = make_watch(new, self._config)
        charge = self._charge_of(store.record(watch.stream_id).stream_id)
        with charge.lock if charge is not None else nullcontext():
            state = store.record(watch.stream_id).state  # again: with the lock it stays so
            if state in ENDED:
                raise WatchLimitError(
                    f"stream {watch.stream_id!r} is {state}: it will show nothing new; ask it a question instead"
                )
            store.add_watch(watch, self._config.watch.max_per_stream)
            if charge is not None:
                self._sessions.tell_watches_now(charge)
        return self.one(watch.id), "" if new.secret else watch.secret

    def all(self, stream_id: str | None = None) -> list[WatchView]:
        """All watches, the oldest first, or those of one stream."""
        return [view_watch(record) for record in self._ready().watch_records(stream_id)]

    def one(self, watch_id: str) -> WatchView:
        """UnknownWatchError when there is none of that id."""
        return view_watch(self._ready().watch_record(watch_id))

    def remove(self, watch_id: str) -> None:
        """Takes a watch and its events away; what is on its way to its webhook is not sent any more."""
        charge = self._charge_of(self._ready().remove_watch(watch_id))
        if charge is not None:
            with charge.lock:
                self._sessions.tell_watches_now(charge)

    def events(self, after: Sequence[tuple[str, int]], limit: int) -> list[list[WatchEventView] | None]:
        """For each watch and segment number: up to `limit` events of later segments; None: there is no such watch."""
        found = self._ready().watch_events(after, limit)
        return [None if events is None else [view_event(event) for event in events] for events in found]
