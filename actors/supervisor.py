"""Looks after every stream: places it, follows it, and resumes it from its last commit when a worker is lost.

It keeps nothing that is not in the catalog, so that its own death costs nothing but time: a new one reads the
catalog and resumes every stream that has not come to an end. (Sizes that an operator set for the pools are in a file
beside the catalog.)

    registered -> ingesting -> done | failed      a lost session is followed by another, with a new epoch
                   |    ^
                   v    |
                   paused      while the store has no room for the stream's next segment; others go on

One thread looks at the workers and decides; it waits for no call about a stream.

A stream that is encoded again is two to the store, by their ids, and one to users, by its name
(`streamkv.store.generations`).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress

from actors.failures import NotReadyError, WorkerLostError, describe
from actors.in_hand import InHands
from actors.placement import Charge, on_probation, on_trial
from actors.roles import ENCODE_POOL, PREFILL_POOL
from actors.sessions import Sessions
from actors.staff import AnySpot, Staff
from actors.stream_settings import check_own, check_priority, own_settings, stream_config
from actors.stream_views import view_next, view_stream
from actors.switching import Switching
from actors.timing import StageClock, add_totals
from actors.views import PlaneState, PoolView, Reencoding, StreamView
from actors.watching import Watching
from actors.workers import CatalogKeeper, Decoder, Workers
from streamkv.config import PipelineConfig
from streamkv.errors import StoreError, StreamExistsError, StreamKVError, UnknownStreamError
from streamkv.store import ENDED, NEXT, StreamInfo, StreamRecord
from streamkv.store.layout import check_stream_id

BUSY_S, IDLE_S = 0.2, 1.0
"""Time between two looks at the workers, while streams are ingested and while none is."""
MOVES_AT_ONCE = 8
"""Streams that are between two workers at a time: a live one is read by both meanwhile, or by none."""
PREPARE_S = 10.0
"""How long a live stream stays where it is while it shows nothing where it moves to: some cameras take one client."""
DRAIN_S = 60.0
"""A session that has not come to its end by then is ended where it is."""

log = logging.getLogger(__name__)


class Supervisor:
    """See the module. The constructor returns at once; `state` says when it is ready."""

    def __init__(self, config: PipelineConfig, workers: Workers) -> None:
        self.clock = StageClock()
        self._config = config
        self._workers = workers
        self._staff = Staff(config, workers)
        self._switching = Switching()
        self._sessions = Sessions(
            workers, self.clock, has=self._has, let_go=self._let_go, on_done=self._switching.note_done
        )
        self.watching = Watching(config, self._sessions, ready=self._ready, charge_of=self._charge_of)
        self._store: CatalogKeeper | None = None
        self._state = PlaneState("starting")
        self._charges: dict[str, Charge] = {}
        self._changes = threading.Lock()  # guards the dict, not what is in it
        self._probation: dict[str, str] = {}  # of each worker; as it was when this look began
        self._trials: dict[str, str] = {}  # the same
        self._under_way = 0  # streams that are between two workers
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="supervise", daemon=True)
        self._thread.start()

    # ---- what users ask for

    def state(self) -> PlaneState:
        return self._state

    def add_stream(
        self, stream_id: str, uri: str, guidance: str = "", tenant: str = "", priority: int = 1
    ) -> StreamView:
        """Registers a stream and begins to ingest it, by its own guidance prompt if one is given.

        `tenant`: whose it is; the streams of a tenant share `store.retention.tenant_bytes`. `priority`: where there is
        more than can be done, it gets so many times what a stream with 1 gets.

        Raises:
            StreamIdError, StreamExistsError, SourceError, ConfigError, CapacityError: nothing is registered then.
        """
        store = self._ready()
        check_stream_id(stream_id)
        guidance = guidance.strip()
        check_own(self._config, guidance)
        check_priority(priority)
        with suppress(UnknownStreamError):
            store.record(stream_id)
            raise StreamExistsError(
                f"stream {stream_id!r} exists already; choose another id, or remove it first"
            )
        with self._staff.admitted(len(self._charges)):
            found = self._staff.a_decoder(self._all()).probe(uri)
            about = stream_config(self._config, found, guidance, priority=priority)
            store.add_stream(stream_id, uri, about, tenant)
            with self._changes:
                self._charges[stream_id] = Charge(stream_id)
        self._wake.set()
        return self.stream(stream_id)

    def streams(self) -> list[StreamView]:
        """All streams, by name."""
        found = {info.name: info for info in self._ready().streams()}
        return [self._view(found[n], found.get(n + NEXT)) for n in sorted(found) if not found[n].is_next]

    def stream(self, stream_id: str) -> StreamView:
        """UnknownStreamError when there is none of that name."""
        store = self._ready()
        info = store.stream(stream_id)
        coming = None
        with suppress(UnknownStreamError):
            coming = store.stream(info.name + NEXT)
        return self._view(info, coming)

    def remove_stream(self, stream_id: str) -> None:
        """Ends a stream's ingest, then takes its rows and files away; a held one goes on (LegalHoldError)."""
        store = self._ready()
        info = store.record(stream_id)
        info.check_not_held()
        self._end([info, _next_of(store, info)], lambda: store.remove_stream(stream_id))

    def _end(self, streams: Iterable[StreamRecord | None], then: Callable[[], None]) -> None:
        """Ends the sessions of streams, and does what comes then with their locks held."""
        charges = [self._charges[s.stream_id] for s in streams if s and s.stream_id in self._charges]
        with ExitStack() as locks:
            for charge in charges:
                locks.enter_context(charge.lock)
                self._let_go(charge)
                self._sessions.close(charge)
            then()

    def reencode(self, stream_id: str, new: Reencoding) -> StreamView:
        """Begins to ingest a stream's source again, beside what is stored of it, which goes when the new is whole.

        One that failed makes way. What a session has begun with is in the catalog: a restart goes on with it.

        Raises:
            UnknownStreamError, ConfigError, SourceError, LegalHoldError, CapacityError: nothing has changed then.
            StoreError: the stream is being ingested still, or encoded again already.
        """
        store = self._ready()
        info = store.record(stream_id)
        info.check_not_held()
        own, priority = own_settings(self._config, info, new), int(info.config.get("priority", 1))
        with self._staff.admitted(len(self._charges)):
            found = self._staff.a_decoder(self._all()).probe(info.uri)
            with self._switching.lock:
                coming = _next_of(store, info)
                if coming is not None and coming.state == "failed":
                    store.remove_stream(coming.stream_id)
                next_id = store.begin_next(stream_id, stream_config(self._config, found, *own, priority))
            with self._changes:
                self._charges[next_id] = Charge(next_id)
        self._wake.set()
        return self.stream(stream_id)

    def cancel_reencode(self, stream_id: str) -> StreamView:
        """Gives up what `reencode` began; the stream is as it was. StoreError when there is nothing to give up."""
        store = self._ready()
        with self._switching.lock:
            coming = _next_of(store, store.record(stream_id))
            if coming is None:
                raise StoreError(
                    f"stream {stream_id!r}: it is not being encoded again; there is nothing to cancel"
                )
            next_id = coming.stream_id
            self._end([coming], lambda: store.remove_stream(next_id))
        return self.stream(stream_id)

    def decoder_of(self, stream_id: str) -> Decoder | None:
        """The worker that decodes the stream now; None when none does."""
        charge = self._charge_of(stream_id)
        return charge.decoding.worker if charge is not None and charge.decoding is not None else None

    def pools(self) -> list[PoolView]:
        """The workers of each stage and how many streams each has."""
        self._ready()
        return self._staff.views(self._all())

    def scale(self, sizes: Mapping[str, int]) -> list[PoolView]:
        """Sets sizes of pools, by name, also for later supervisors; 0: as the configuration and the load have it.

        Returns at once: workers start and end, and streams move, while it is ingested.

        Raises:
            ConfigError: there is no such pool, or no such size.
            CapacityError: the streams would not find a place in it.
        """
        self._ready()
        self._staff.scale(sizes, len(self._charges))
        self._wake.set()
        return self.pools()

    def stats(self) -> dict[str, float]:
        """Seconds and counts of each stage since the workers started.

        Of now are `active_streams`, which are in care, their `queued_frames` and `waiting_segments`.
        """
        totals = [self.clock.totals(), *(p.status.totals for p in self._staff.spots if p.status)]
        if self._store is not None:
            totals.append(self._store.totals())
        feeds = [charge.feed for charge in self._all() if charge.feed is not None]
        return {
            **add_totals(totals),
            "active_streams": float(len(self._charges)),
            "queued_frames": float(sum(feed.queued for feed in feeds)),
            "waiting_segments": float(sum(feed.in_flight for feed in feeds)),
        }

    def shutdown(self) -> None:
        """Ends all work; streams stay as the catalog has them and resume with the next supervisor."""
        self._stopping.set()
        self._wake.set()
        self._thread.join(timeout=30)
        self._sessions.shutdown()
        self._staff.shutdown()
        if self._store is not None:
            with suppress(WorkerLostError):
                self._store.shutdown()

    # ---- life

    def _run(self) -> None:
        try:
            self._bring_up()
        except Exception as exc:
            log.exception("the ingest plane does not start")
            self._state = PlaneState("failed", str(exc) if isinstance(exc, StreamKVError) else describe(exc))
            return
        self._state = PlaneState("ready")
        while not self._stopping.is_set():
            self._wake.clear()
            try:
                with self.clock.time("supervise"):
                    self._look_after()
                self._state = PlaneState("ready")
            except Exception as exc:  # the next look may go better: most likely the store is being restarted
                log.warning("a look at the workers failed: %s", describe(exc))
                self._state = PlaneState("ready", describe(exc))
            self._wake.wait(BUSY_S if self._charges else IDLE_S)

    def _bring_up(self) -> None:
        """Makes or finds the workers, has them start, and takes every unfinished stream into care."""
        self._staff.begin()
        try:
            store: CatalogKeeper = self._workers.store(self._staff.identity.result())
            store.start()
        except Exception as exc:
            self._staff.opened.set_exception(exc)  # prefillers wait for it
            raise
        self._staff.opened.set_result(store)
        self._staff.gather()
        for info in sorted(store.streams(), key=lambda info: info.created_at):
            if info.state not in ENDED:
                self._charges[info.stream_id] = Charge(info.stream_id)
            elif info.is_next and info.state == "done":
                self._switching.note_done(info.stream_id)
        self._staff.recall(self._charges.values())
        self._sessions.open(store)
        self._store = store

    def _look_after(self) -> None:
        self._hear()
        charges = self._all()
        self._probation = on_probation(charges)
        self._under_way = sum(charge.is_under_way for charge in charges)
        self._staff.resize(charges)
        self._staff.give_places(charges)
        self._trials = on_trial(charges)
        for charge in charges:
            if not charge.is_busy and charge.lock.acquire(blocking=False):
                try:
                    if self._has(charge):
                        self._attend(charge)
                finally:
                    charge.lock.release()
        self._staff.dismiss(self._all())
        self._switching.try_all(self._ready())

    def _hear(self) -> None:
        """Hears from all workers: what one has lost is to begin again, what it has left over ends."""
        self._staff.hear()
        self.clock.count("polls", len(self._staff.spots))
        for charge in self._all():
            spots: tuple[AnySpot | None, ...] = (charge.decoding, charge.prefilling)
            for spot in spots:
                if spot is None or charge.is_busy or charge.opened_at >= spot.lost_at:
                    continue
                if positions_s := self._named(spot).get(charge.stream_id):
                    charge.note_in_hand(spot, positions_s)
                if charge.epoch == 0:
                    continue
                if spot is charge.prefilling:
                    self._lose(charge, spot, _ended_by("its prefill actor was lost", spot))
                elif charge.tried_at is spot:  # others are missed one by one: a decoder says which it has
                    why = "its decoder ended while it had the stream in hand"
                    self._lose(charge, spot, _ended_by(why, spot))
        for decoding in self._staff.encode.spots:
            if decoding.status is not None:
                running = [name for name, feed in decoding.status.feeds.items() if feed.state == "running"]
                self._forget(running, decoding, decoding.worker.remove_stream)
        for prefilling in self._staff.prefill.spots:
            if prefilling.status is not None:
                self._forget(prefilling.status.windows, prefilling, prefilling.worker.close_stream)

    def _forget(self, stream_ids: Iterable[str], spot: AnySpot, end: Callable[[str], None]) -> None:
        """A worker that was cut off goes on with streams that were given to others meanwhile, or removed."""
        for stream_id in stream_ids:
            charge = self._charges.get(stream_id)
            if charge is None or not (charge.is_busy or spot in charge.spots):
                self._sessions.forget(end, stream_id)

    # ---- one stream, with its lock held

    def _attend(self, charge: Charge) -> None:
        if charge.epoch == 0:
            charge.arrive()
            self._begin_if_due(charge)
            return
        decoding, prefilling = charge.decoding, charge.prefilling
        assert decoding is not None
        assert prefilling is not None
        if charge.is_moving and (decoding.is_gone or prefilling.is_gone):
            self._sessions.lose(charge, "its worker is away", is_blamed=False)
            return
        asked_at, status = decoding.asked_at, decoding.status
        if status is None or asked_at < charge.begun_at:
            return  # away, and when it is back it will not know the stream; or it was not asked since
        feed = status.feeds.get(charge.stream_id)
        if feed is None or feed.epoch != charge.epoch:
            self._lose(charge, decoding, "its decoder was restarted")
        elif feed.state == "running":
            charge.feed = feed
            charge.note_committed(feed.committed_s)
            self._move_on(charge)
        elif feed.state == "full":
            self._sessions.pause(charge, feed.detail)
        elif feed.state == "lost":
            self._lose(charge, prefilling, feed.detail)
        elif feed.state == "drained":
            self._hand_over(charge)
        else:
            self._sessions.finish(charge, feed.state, feed.detail)
        if charge.epoch and charge.has_untold_watches and not charge.is_busy:
            self._sessions.tell_watches(charge)

    def _lose(self, charge: Charge, spot: AnySpot, why: str) -> None:
        """What was lost with that worker is the doing of those that it had in hand. Where nobody knows who that was, it
        is that of the stream on probation there, or else it may be anyone's."""
        blamed = set(self._named(spot)) if charge.opened_at < spot.lost_at else set()
        if not blamed and (tried := self._probation.get(spot.name)):
            blamed = {tried}
        self._sessions.lose(charge, why, is_blamed=not blamed or charge.stream_id in blamed)

    def _named(self, spot: AnySpot) -> InHands:
        """Streams that the worker had in hand when it ended; of several only the one that is on probation there."""
        tried = self._probation.get(spot.name, "")
        return {tried: spot.named[tried]} if tried in spot.named else spot.named

    def _begin_if_due(self, charge: Charge) -> None:
        """Where it is to be; a suspect begins alone on its workers."""
        decoding, prefilling = charge.decoding, charge.prefilling
        if decoding is None or prefilling is None or not charge.is_due:
            return
        if not (decoding.has_place and prefilling.has_place):
            return
        if tried := self._gives_way_to(charge):
            charge.waits = f"waits while {tried} is tried alone: an actor ended with that in hand"
            return
        if charge.is_on_trial and self._has_company(charge):
            return
        if charge.is_suspect:
            spots = (decoding.name, prefilling.name)
            if any(name in self._probation for name in spots):
                return
            self._probation.update(dict.fromkeys(spots, charge.stream_id))
        self._sessions.begin(charge, decoding, prefilling)

    def _hand_over(self, charge: Charge) -> None:
        self._sessions.hand_over(charge, goes_on=not self._gives_way_to(charge))

    def _has_company(self, charge: Charge) -> bool:
        """Whether another stream is still where this one is to be tried."""
        others = [other for other in self._all() if other is not charge and (other.epoch or other.is_busy)]
        return any(charge.tried_at in (other.decoding, other.prefilling) for other in others)

    def _gives_way_to(self, charge: Charge) -> str:
        """Another stream that is to be alone where this one is, or goes to; empty: there is none."""
        tried = [self._trials.get(charge.home(pool), "") for pool in (ENCODE_POOL, PREFILL_POOL)]
        return next((stream_id for stream_id in tried if stream_id not in ("", charge.stream_id)), "")

    def _move_on(self, charge: Charge) -> None:
        """A stream that is to be elsewhere, or makes way, stops where it is, unless too many are on their way.

        A camera is read there first, if it lets two read it.
        """
        now = time.monotonic()
        if charge.draining_since:
            if now - charge.draining_since > DRAIN_S:
                log.warning("stream %s: moves before all that it sent is committed", charge.stream_id)
                self._hand_over(charge)
        elif charge.preparing_since:
            if not charge.is_moving:
                charge.stay()
            elif charge.is_prepared or now - charge.preparing_since > PREPARE_S:
                charge.draining_since = now
                self._sessions.drain(charge)
        elif (charge.is_moving or self._gives_way_to(charge)) and self._under_way < MOVES_AT_ONCE:
            self._under_way += 1
            if charge.is_shown and charge.is_moving and not charge.is_suspect:
                charge.preparing_since = now
                self._sessions.prepare(charge)
            else:
                charge.draining_since = now
                self._sessions.drain(charge)

    # ---- inside

    def _all(self) -> list[Charge]:
        with self._changes:
            return list(self._charges.values())

    def _charge_of(self, stream_id: str) -> Charge | None:
        return self._charges.get(stream_id)

    def _has(self, charge: Charge) -> bool:
        return self._charges.get(charge.stream_id) is charge

    def _let_go(self, charge: Charge) -> None:
        with self._changes:
            if self._has(charge):
                del self._charges[charge.stream_id]

    def _ready(self) -> CatalogKeeper:
        if self._store is None or self._state.phase != "ready":
            detail = f": {self._state.detail}" if self._state.detail else ""
            raise NotReadyError(f"the ingest plane is not ready, it is {self._state.phase}{detail}")
        return self._store

    def _view(self, info: StreamInfo, coming: StreamInfo | None) -> StreamView:
        made = None
        if coming is not None:
            what_keeps_it = self._switching.why_not(coming.stream_id)
            made = view_next(coming, self._charges.get(coming.stream_id), what_keeps_it)
        return view_stream(info, self._charges.get(info.stream_id), made)


def _ended_by(why: str, spot: AnySpot) -> str:
    return f"{why}: by {spot.words.cause}" if spot.words.cause else why


def _next_of(store: CatalogKeeper, info: StreamRecord) -> StreamRecord | None:
    """What is being made to take the stream's place."""
    try:
        return store.record(info.name + NEXT)
    except UnknownStreamError:
        return None
