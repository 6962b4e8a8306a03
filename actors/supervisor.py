"""Looks after every stream: places it, follows it, and resumes it from its last commit when a worker is lost.

It keeps nothing that is not in the catalog, so that its own death costs nothing but time: a new one reads the
catalog and resumes every stream that has not come to an end.

    registered -> ingesting -> done | failed      a lost session is followed by another, with a new epoch
                   |    ^
                   v    |
                   paused      while the store has no room for the stream's next segment; others go on

One thread looks at the workers and decides. What takes a call is done in other threads, for many streams at once
and for each of them one thing at a time.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, Literal, TypeAlias

from actors.balance import spread
from actors.failures import NotReadyError, WorkerLostError, describe
from actors.load import fitting_size
from actors.messages import StreamSpec
from actors.placement import Charge, on_probation
from actors.pool_sizes import PoolSizes
from actors.pools import AnyPool, Pool, Spot
from actors.timing import StageClock, add_totals
from actors.views import GapView, PlaneState, PoolView, StreamView
from actors.workers import CatalogKeeper, Decoder, Prefiller, Workers
from streamkv.compression import make_compressor
from streamkv.config import PipelineConfig
from streamkv.errors import (
    CapacityError,
    ConfigError,
    StoreFullError,
    StreamExistsError,
    StreamKVError,
    UnknownStreamError,
)
from streamkv.store import ModelIdentity, StreamInfo
from streamkv.store.layout import check_stream_id
from streamkv.uris import redact_uri

BUSY_S, IDLE_S = 0.2, 1.0
"""Time between two looks at the workers, while streams are ingested and while none is."""
LAST_STATES = ("done", "failed", "stopped")
AT_ONCE = 32
"""Streams that are begun or ended at a time: mostly it is waited, for the store and for prefill at work."""
MOVES_AT_ONCE = 8
"""Streams that are between two workers at a time: a live one misses what is shown meanwhile."""
DRAIN_S = 60.0
"""A session that has not come to its end by then is ended where it is."""
GATHER_S = 60.0
"""How long the workers that are slow to start are waited for, once there is one of each pool."""
MAX_POOL = 10_000

log = logging.getLogger(__name__)

AnySpot: TypeAlias = Spot[Any]


def _home(charge: Charge, *, is_encode: bool) -> str:
    """The name of the worker where the stream is or goes; empty: it has none."""
    spot: AnySpot | None = (
        charge.to_decoding or charge.decoding if is_encode else charge.to_prefilling or charge.prefilling
    )
    return spot.name if spot is not None else ""


def _note_loss(charge: Charge, why: str, *, is_blamed: bool = True) -> str:
    """Returns why the stream is to be set aside; empty: it is tried again."""
    log.warning("stream %s: its session is lost: %s", charge.stream_id, why)
    charge.lose(is_blamed=is_blamed)
    if not charge.is_poisoned:
        return ""
    return f"set aside after {charge.strikes} restarts without a segment in between; the last: {why}"


class Supervisor:
    """See the module. The constructor returns at once; `state` says when it is ready."""

    def __init__(self, config: PipelineConfig, workers: Workers) -> None:
        self.clock = StageClock()
        self._config = config
        self._workers = workers
        self._encode: Pool[Decoder] = Pool(
            "encode", config.encode, workers.decoder, lambda worker: worker.start()
        )
        self._prefill: Pool[Prefiller] = Pool(
            "prefill", config.prefill, workers.prefiller, self._start_prefiller
        )
        self._pools: tuple[AnyPool, ...] = (self._encode, self._prefill)
        self._sizes = PoolSizes(Path(config.store.root))
        self._set: dict[str, int] = {}  # sizes that an operator has set
        self._identity: Future[ModelIdentity] = Future()  # of the first prefiller
        self._opened: Future[CatalogKeeper] = Future()
        self._store: CatalogKeeper | None = None
        self._state = PlaneState("starting")
        self._charges: dict[str, Charge] = {}
        self._coming = 0  # streams that are being added
        self._probation: dict[str, str] = {}  # of each decoder; as it was when this look began
        self._under_way = 0  # streams that are between two workers
        self._changes = threading.RLock()  # of which streams and sizes there are; held for no call
        self._tasks = ThreadPoolExecutor(AT_ONCE, "session")
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="supervise", daemon=True)
        self._thread.start()

    # ---- what users ask for

    def state(self) -> PlaneState:
        return self._state

    def add_stream(self, stream_id: str, uri: str, guidance: str = "", tenant: str = "") -> StreamView:
        """Registers a stream and begins to ingest it, by its own guidance prompt if one is given.

        `tenant`: whose it is; the streams of a tenant share `store.retention.tenant_bytes`.

        Raises:
            StreamIdError, StreamExistsError, SourceError, ConfigError, CapacityError: nothing is registered then.
        """
        store = self._ready()
        check_stream_id(stream_id)
        guidance = guidance.strip()
        if guidance and not make_compressor(self._config.method.compress).needs_scores:
            raise ConfigError(
                f"guidance: preset {self._config.preset!r} keeps every frame, so that there is nothing to guide; "
                "add the stream without it"
            )
        with suppress(UnknownStreamError):
            store.record(stream_id)
            raise StreamExistsError(
                f"stream {stream_id!r} exists already; choose another id, or remove it first"
            )
        self._admit()
        try:
            found = self._any_decoder().probe(uri)
            config = {
                "preset": self._config.preset,
                "sample_fps": self._config.source.sample_fps,
                "duration_s": found.duration_s,
                "width": found.width,
                "height": found.height,
                "codec": found.codec,
                "is_live": found.is_live,
                "guidance": guidance,
            }
            store.add_stream(stream_id, uri, config, tenant)
            with self._changes:
                self._charges[stream_id] = Charge(stream_id)
        finally:
            with self._changes:
                self._coming -= 1
        self._wake.set()
        return self.stream(stream_id)

    def streams(self) -> list[StreamView]:
        """All streams, by id."""
        return [self._view(info) for info in self._ready().streams()]

    def stream(self, stream_id: str) -> StreamView:
        """UnknownStreamError when there is none of that id."""
        return self._view(self._ready().stream(stream_id))

    def remove_stream(self, stream_id: str) -> None:
        """Ends a stream's ingest, then takes its rows and files away; a held one goes on (LegalHoldError)."""
        store = self._ready()
        charge = self._charges.get(stream_id)
        with charge.lock if charge is not None else nullcontext():
            store.record(stream_id).check_not_held()
            if charge is not None:
                self._let_go(charge)
                self._close(charge)
            store.remove_stream(stream_id)

    def decoder_of(self, stream_id: str) -> Decoder | None:
        """The worker that decodes the stream now; None when none does."""
        charge = self._charges.get(stream_id)
        return charge.decoding.worker if charge is not None and charge.decoding is not None else None

    def pools(self) -> list[PoolView]:
        """The workers of each stage and how many streams each has."""
        self._ready()
        return [
            pool.view(self._loads(pool), self._wished(pool), is_set=pool.name in self._set)
            for pool in self._pools
        ]

    def scale(self, sizes: Mapping[str, int]) -> list[PoolView]:
        """Sets sizes of pools, by name, also for later supervisors; 0: as the configuration and the load have it.

        Returns at once: workers start, and streams move, while it is ingested.

        Raises:
            ConfigError: there is no such pool, or no such size.
            CapacityError: the streams would not find a place in it.
        """
        self._ready()
        known = {pool.name: pool for pool in self._pools}
        for name, size in sizes.items():
            if name not in known or not 0 <= size <= MAX_POOL:
                raise ConfigError(
                    f"scale: got {name}={size}, allowed are {' and '.join(known)}, each 0 (as configured) to {MAX_POOL}"
                )
        with self._changes:
            chosen = {**self._set, **sizes}
            chosen = {name: size for name, size in chosen.items() if size}
            most = chosen.get("encode", self._config.encode.most_actors) * self._room
            if self._room and most < len(self._charges):
                raise CapacityError(
                    f"scale: {len(self._charges)} streams are ingested, and {most // self._room} decoders hold {most} "
                    f"(ingest.max_streams_per_decoder is {self._room}); remove streams, or keep more decoders"
                )
            self._sizes.write(chosen)
            self._set = chosen
        self._wake.set()
        return self.pools()

    def stats(self) -> dict[str, float]:
        """Seconds and counts of each stage since the workers started; `active_streams` are in care now."""
        totals = [self.clock.totals(), *(p.status.totals for p in self._spots() if p.status)]
        if self._store is not None:
            totals.append(self._store.totals())
        return {**add_totals(totals), "active_streams": float(len(self._charges))}

    def shutdown(self) -> None:
        """Ends all work; streams stay as the catalog has them and resume with the next supervisor."""
        self._stopping.set()
        self._wake.set()
        self._thread.join(timeout=30)
        self._tasks.shutdown(cancel_futures=True)
        for pool in self._pools:
            pool.shutdown()
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
        """Makes and starts the workers, and takes every unfinished stream into care."""
        self._set = self._sizes.read()
        for pool in self._pools:
            pool.resize(self._wished(pool), {})
        starting = [spot.starting for spot in self._spots() if spot.starting is not None]
        try:
            store: CatalogKeeper = self._workers.store(self._identity.result())
            store.start()
        except Exception as exc:
            self._opened.set_exception(exc)
            raise
        self._opened.set_result(store)
        decoders = [spot.starting for spot in self._encode.spots if spot.starting is not None]
        wait(decoders, return_when=FIRST_COMPLETED)
        done, _ = wait(starting, GATHER_S)
        for future in done:
            future.result()
        for info in sorted(store.streams(), key=lambda info: info.created_at):
            if info.state not in LAST_STATES:
                self._charges[info.stream_id] = Charge(info.stream_id)
        self._store = store
        self._hear()
        for spot in self._spots():
            spot.is_new = spot.status is None

    def _start_prefiller(self, worker: Prefiller) -> None:
        try:
            identity = worker.start()
        except Exception as exc:
            if not self._identity.done():
                self._identity.set_exception(exc)
            raise
        if not self._identity.done():
            self._identity.set_result(identity)
        worker.set_commit(self._workers.commit(self._opened.result()))

    def _look_after(self) -> None:
        self._hear()
        self._probation = on_probation(self._all())
        self._under_way = sum(charge.draining_since > 0 for charge in self._all())
        self._resize()
        self._give_places()
        for charge in self._all():
            if not charge.is_busy and charge.lock.acquire(blocking=False):
                try:
                    self._attend(charge)
                finally:
                    charge.lock.release()
        self._dismiss()

    def _hear(self) -> None:
        """Hears from all workers. What a prefiller that was lost had begun is to begin again."""
        for pool in self._pools:
            pool.hear()
            self.clock.count("polls", len(pool.spots))
        # A decoder's streams are missed one by one: it says which it has.
        for charge in self._all():
            spot = charge.prefilling
            if spot is not None and charge.epoch and not charge.is_busy and charge.begun_at < spot.lost_at:
                self._lose(charge, "its prefill actor was lost")

    # ---- pools and places

    @property
    def _room(self) -> int:
        return self._config.ingest.max_streams_per_decoder

    def _wished(self, pool: AnyPool) -> int:
        return self._set.get(pool.name) or pool.size or int(pool.config.actors)

    def _resize(self) -> None:
        for pool in self._pools:
            size = self._set.get(pool.name) or fitting_size(
                max(pool.size, 1),
                pool.config.actors,
                pool.config.most_actors,
                len(self._charges),
                pool.meter.rounds,
                room=self._room if pool is self._encode else 0,
            )
            if size != pool.size:
                log.warning("pool %s: %d actors, there were to be %d", pool.name, size, pool.size)
                pool.resize(size, self._loads(pool))

    def _give_places(self) -> None:
        """A stream without a worker gets one; when a worker is new some others move to it, as few as can be."""
        charges = self._all()
        suspects = {charge.stream_id for charge in charges if charge.is_suspect}
        waiting: dict[str, str] = {}
        for pool in self._pools:
            room = self._room if pool is self._encode else 0
            homes = {c.stream_id: _home(c, is_encode=pool is self._encode) for c in charges}
            spots = {spot.name: spot for spot in pool.spots if spot.has_place}
            away = [spot.name for spot in pool.spots if spot.state == "away" and not spot.is_gone]
            new = [spot for spot in spots.values() if spot.is_new]
            moves = spread(homes, list(spots), away=away, pinned=suspects, room=room, evenly=bool(new))
            for spot in new:
                spot.is_new = False
            for charge in charges:
                if charge.stream_id in moves:
                    self._send(charge, spots[moves[charge.stream_id]], is_encode=pool is self._encode)
                elif not homes[charge.stream_id]:
                    waiting.setdefault(charge.stream_id, self._why_not(pool, len(spots)))
        for charge in charges:
            charge.waits = waiting.get(charge.stream_id, "")

    def _send(self, charge: Charge, spot: AnySpot, *, is_encode: bool) -> None:
        """Notes where a stream is to be; its session there begins when the one before has ended."""
        if is_encode:
            charge.to_decoding = None if spot is charge.decoding else spot
        else:
            charge.to_prefilling = None if spot is charge.prefilling else spot

    def _why_not(self, pool: AnyPool, num_up: int) -> str:
        if not num_up:
            return f"waits: no actor of the pool {pool.name} is up"
        return (
            f"waits for a place: {num_up} decoders hold {self._room} streams each (ingest.max_streams_per_decoder); it "
            f"begins when another ends, or with more decoders (streamkv scale --encode {pool.size + 1})"
        )

    def _admit(self) -> None:
        """Counts a stream that is being added; CapacityError when there is no place for it."""
        most = self._set.get("encode", self._config.encode.most_actors)
        with self._changes:
            held = len(self._charges) + self._coming
            if self._room and held >= most * self._room and self._config.ingest.when_full == "refuse":
                raise CapacityError(
                    f"no place for another stream: {held} are ingested, and {most} decoders hold {most * self._room} "
                    f"(ingest.max_streams_per_decoder is {self._room}); remove a stream, add decoders (streamkv scale "
                    f"--encode {most + 1}), or have streams wait (ingest.when_full=queue)"
                )
            self._coming += 1

    def _any_decoder(self) -> Decoder:
        """The one that looks at a new source: of those that are up, the one with the fewest streams."""
        up = [spot for spot in self._encode.spots if spot.has_place]
        if not up:
            raise NotReadyError("no decoder is up; try again a little later")
        loads = self._loads(self._encode)
        return min(up, key=lambda spot: loads[spot.name]).worker

    def _loads(self, pool: AnyPool) -> Counter[str]:
        """Streams of each worker, by its name; one that moves counts where it goes."""
        return Counter(_home(charge, is_encode=pool is self._encode) for charge in self._all())

    def _dismiss(self) -> None:
        in_use: set[AnySpot] = set()
        for charge in self._all():
            for spot in (charge.decoding, charge.prefilling, charge.to_decoding, charge.to_prefilling):
                if spot is not None:
                    in_use.add(spot)
        for pool in self._pools:
            if any(spot.is_leaving for spot in pool.spots):
                pool.dismiss(in_use)

    # ---- one stream; while its lock is held

    def _attend(self, charge: Charge) -> None:
        if charge.epoch == 0:
            charge.arrive()
            self._begin_if_due(charge)
            return
        assert charge.decoding is not None
        if charge.decoding.is_gone or (charge.prefilling is not None and charge.prefilling.is_gone):
            if charge.is_moving:
                self._lose(charge, "its worker has been away for too long", is_blamed=False)
            return
        asked_at, status = charge.decoding.asked_at, charge.decoding.status
        if status is None or asked_at < charge.begun_at:
            return  # away, and when it is back it will not know the stream; or it was not asked since
        feed = status.feeds.get(charge.stream_id)
        if feed is None or feed.epoch != charge.epoch:
            suspect = self._probation.get(charge.decoding.name, charge.stream_id)
            self._lose(charge, "its decoder was restarted", is_blamed=suspect == charge.stream_id)
        elif feed.state == "running":
            charge.feed = feed
            self._move_on(charge)
        elif feed.state == "full":
            self._do(charge, lambda: self._pause(charge, feed.detail))
        elif feed.state == "lost":
            self._lose(charge, feed.detail)
        elif feed.state == "drained":
            self._do(charge, lambda: self._hand_over(charge))
        else:
            state = feed.state
            self._do(charge, lambda: self._finish(charge, state, feed.detail))

    def _begin_if_due(self, charge: Charge) -> None:
        decoding, prefilling = charge.decoding, charge.prefilling
        if decoding is None or prefilling is None or not charge.is_due:
            return
        if not (decoding.has_place and prefilling.has_place):
            return
        if charge.is_suspect:
            if decoding.name in self._probation:
                return
            self._probation[decoding.name] = charge.stream_id
        self._do(charge, lambda: self._begin(charge, decoding, prefilling))

    def _do(self, charge: Charge, work: Callable[[], None]) -> None:
        """Has it done in another thread; nothing else is done about the stream meanwhile."""

        def locked() -> None:
            try:
                with charge.lock:
                    if self._charges.get(charge.stream_id) is charge:  # else it was removed
                        work()
            except StoreFullError:  # of the catalog; the next look tries again
                pass
            except Exception as exc:  # as above; most likely the store is being restarted
                log.warning("stream %s: %s", charge.stream_id, describe(exc))
            finally:
                charge.is_busy = False

        charge.is_busy = True
        self._tasks.submit(locked)

    def _begin(self, charge: Charge, decoding: Spot[Decoder], prefilling: Spot[Prefiller]) -> None:
        """Opens a session on the stream's workers, from its last commit on; what the decoder says of it is heard at a
        later look."""
        store = self._ready()
        try:
            if charge.is_taken(store.record(charge.stream_id).epoch):
                log.warning("stream %s: another supervisor has taken it over", charge.stream_id)
                self._let_go(charge)
                return
            if why := store.room(charge.stream_id):
                self._pause(charge, why)
                return
            charge.last_epoch = 0  # should the call fail, nobody knows whether it took one
            epoch = charge.last_epoch = store.begin_writing(charge.stream_id)
            info = store.record(charge.stream_id)  # after the epoch: nobody else commits from here on
            guidance = str(info.config.get("guidance", ""))
            prefilling.worker.open_stream(info.stream_id, epoch, info.next_segment_no, guidance)
            spec = StreamSpec(
                info.stream_id,
                info.uri,
                epoch,
                start_s=info.resume_s,
                next_segment_no=info.next_segment_no,
                is_live=bool(info.config.get("is_live", False)),
                origin_s=info.created_at,
            )
            decoding.worker.add_stream(spec, self._workers.sink(prefilling.worker, store))
            if info.state != "ingesting" or info.detail:
                store.set_state(info.stream_id, "ingesting", "")
        except UnknownStreamError:  # removed behind our back
            self._let_go(charge)
        except StoreFullError as exc:  # of the catalog
            self._pause(charge, str(exc))
        except (StreamKVError, RuntimeError) as exc:
            if too_often := _note_loss(charge, describe(exc)):
                self._finish(charge, "failed", too_often)
        else:
            charge.begin(epoch, info.next_segment_no)
            charge.feed = None
            self.clock.count("sessions")

    def _move_on(self, charge: Charge) -> None:
        """A stream that is to be elsewhere is told to stop where it is, if not too many are on their way."""
        if charge.draining_since:
            if time.monotonic() - charge.draining_since > DRAIN_S:
                log.warning("stream %s: moves without its last segments being committed", charge.stream_id)
                self._do(charge, lambda: self._hand_over(charge))
            return
        if charge.is_moving and self._under_way < MOVES_AT_ONCE:
            self._under_way += 1
            charge.draining_since = time.monotonic()
            self._do(charge, lambda: self._drain(charge))

    def _drain(self, charge: Charge) -> None:
        assert charge.decoding is not None
        with suppress(WorkerLostError):
            charge.decoding.worker.drain_stream(charge.stream_id)

    def _hand_over(self, charge: Charge) -> None:
        """Ends the session where it was, and begins it where the stream moves to."""
        self._close(charge)
        charge.hand_over()
        charge.arrive()
        self.clock.count("handovers")
        decoding, prefilling = charge.decoding, charge.prefilling
        assert decoding is not None and prefilling is not None
        if decoding.has_place and prefilling.has_place and not charge.is_suspect:
            self._begin(charge, decoding, prefilling)

    def _lose(self, charge: Charge, why: str, *, is_blamed: bool = True) -> None:
        too_often = _note_loss(charge, why, is_blamed=is_blamed)
        if too_often:
            self._do(charge, lambda: self._finish(charge, "failed", too_often))

    def _pause(self, charge: Charge, why: str) -> None:
        """Until there is room: what is committed stays, what is in flight is ingested again then."""
        log.warning("stream %s: paused: %s", charge.stream_id, why)
        self._close(charge)
        charge.pause(why)
        with suppress(UnknownStreamError):
            self._ready().set_state(charge.stream_id, "paused", why)

    def _finish(self, charge: Charge, state: Literal["done", "failed"], detail: str) -> None:
        with suppress(UnknownStreamError):
            self._ready().set_state(charge.stream_id, state, detail)
        self._let_go(charge)
        self._close(charge)

    def _close(self, charge: Charge) -> None:
        """The decoder first: what it had shipped is then done with when the window closes."""
        if charge.decoding is not None:
            with suppress(WorkerLostError):
                charge.decoding.worker.remove_stream(charge.stream_id)
        if charge.prefilling is not None:
            with suppress(WorkerLostError):
                charge.prefilling.worker.close_stream(charge.stream_id)

    def _let_go(self, charge: Charge) -> None:
        with self._changes:
            if self._charges.get(charge.stream_id) is charge:
                del self._charges[charge.stream_id]

    # ---- inside

    def _all(self) -> list[Charge]:
        with self._changes:
            return list(self._charges.values())

    def _ready(self) -> CatalogKeeper:
        if self._store is None or self._state.phase != "ready":
            detail = f": {self._state.detail}" if self._state.detail else ""
            raise NotReadyError(f"the ingest plane is not ready, it is {self._state.phase}{detail}")
        return self._store

    def _spots(self) -> list[AnySpot]:
        return [spot for pool in self._pools for spot in pool.spots]

    def _view(self, info: StreamInfo) -> StreamView:
        charge = self._charges.get(info.stream_id)
        waits = charge.waits if charge is not None and not charge.paused else ""
        position_s = charge.feed.position_s if charge is not None and charge.feed is not None else 0.0
        return StreamView(
            stream_id=info.stream_id,
            uri=redact_uri(info.uri),
            # A full disk may not even take the catalog's note that the stream is paused.
            state="paused" if charge is not None and charge.paused else "registered" if waits else info.state,
            detail=(charge.paused if charge is not None else "") or waits or info.detail,
            duration_s=float(info.config.get("duration_s", 0.0)),
            position_s=max(info.as_of_s, position_s),
            as_of_s=info.as_of_s,
            num_segments=info.num_segments,
            num_frames=info.num_frames,
            num_source_frames=info.num_source_frames,
            kv_bytes=info.kv_bytes,
            file_bytes=info.file_bytes,
            restarts=charge.restarts if charge is not None else 0,
            gaps=tuple(GapView(gap.start_s, gap.end_s, gap.reason) for gap in info.gaps),
            live=charge.feed.live if charge is not None and charge.feed is not None else None,
            created_at=info.created_at,
            guidance=str(info.config.get("guidance", "")),
            tenant=info.tenant,
            legal_hold=info.legal_hold,
        )
