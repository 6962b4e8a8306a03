"""Looks after every stream: places it, follows it, and resumes it from its last commit when a worker is lost.

It keeps nothing that is not in the catalog, so that its own death costs nothing but time: a new one reads the
catalog and resumes every stream that has not come to an end.

    registered -> ingesting -> done | failed      a lost session is followed by another, with a new epoch
                   |    ^
                   v    |
                   paused      while the store has no room for the stream's next segment; others go on
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Literal

from actors.failures import NotReadyError, WorkerLostError, describe
from actors.messages import StreamSpec
from actors.placement import Charge, Decoding, Prefilling, on_probation, place
from actors.standing import make_watch, questions_of, view_event, view_watch
from actors.timing import StageClock, add_totals
from actors.views import GapView, NewWatch, PlaneState, StreamView, WatchEventView, WatchView
from actors.workers import CatalogKeeper, Decoder, Workers
from streamkv.compression import make_compressor
from streamkv.config import PipelineConfig
from streamkv.errors import (
    ConfigError,
    StoreFullError,
    StreamExistsError,
    StreamKVError,
    UnknownStreamError,
    WatchLimitError,
)
from streamkv.store import StreamInfo
from streamkv.store.layout import check_stream_id
from streamkv.uris import redact_uri

BUSY_S, IDLE_S = 0.2, 1.0
"""Time between two looks at the workers, while streams are ingested and while none is."""
LAST_STATES = ("done", "failed", "stopped")

log = logging.getLogger(__name__)


class Supervisor:
    """See the module. The constructor returns at once; `state` says when it is ready."""

    def __init__(self, config: PipelineConfig, workers: Workers) -> None:
        self.clock = StageClock()
        self._config = config
        self._workers = workers
        self._decoders: list[Decoding] = []
        self._prefillers: list[Prefilling] = []
        self._store: CatalogKeeper | None = None
        self._state = PlaneState("starting")
        self._charges: dict[str, Charge] = {}
        self._probation: dict[int, str] = {}  # of each decoder; as it was when this look began
        self._changes = threading.RLock()  # one begins, ends or removes a stream at a time
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
            StreamIdError, StreamExistsError, SourceError, ConfigError: nothing is registered then.
        """
        store = self._ready()
        check_stream_id(stream_id)
        guidance = guidance.strip()
        if guidance and not make_compressor(self._config.method.compress).needs_scores:
            raise ConfigError(
                f"guidance: preset {self._config.preset!r} keeps every frame, so that there is nothing to guide; "
                "add the stream without it"
            )
        if any(info.stream_id == stream_id for info in store.streams()):
            raise StreamExistsError(
                f"stream {stream_id!r} exists already; choose another id, or remove it first"
            )
        found = self._decoders[0].worker.probe(uri)
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
        with self._changes:
            store.stream(stream_id).check_not_held()
            charge = self._charges.pop(stream_id, None)
            if charge is not None:
                self._close(charge)
            store.remove_stream(stream_id)

    def add_watch(self, new: NewWatch) -> tuple[WatchView, str]:
        """Registers a standing question. Asked of all segments whose prefill ends from then on.

        Returns the secret that was made for its webhook, too; empty when none was.

        Raises:
            UnknownStreamError, QuestionError, WatchError, WatchLimitError: nothing is registered then.
        """
        store = self._ready()
        watch = make_watch(new, self._config)
        with self._changes:
            state = store.stream(watch.stream_id).state
            if state in LAST_STATES:
                raise WatchLimitError(
                    f"stream {watch.stream_id!r} is {state}: it will show nothing new; ask it a question instead"
                )
            store.add_watch(watch, self._config.watch.max_per_stream)
            self._tell_watches(watch.stream_id)
        return self.watch(watch.id), "" if new.secret else watch.secret

    def watches(self, stream_id: str | None = None) -> list[WatchView]:
        """All watches, the oldest first, or those of one stream."""
        return [view_watch(record) for record in self._ready().watch_records(stream_id)]

    def watch(self, watch_id: str) -> WatchView:
        """UnknownWatchError when there is none of that id."""
        return view_watch(self._ready().watch_record(watch_id))

    def remove_watch(self, watch_id: str) -> None:
        """Takes a watch and its events away; what is on its way to its webhook is not sent any more."""
        store = self._ready()
        with self._changes:
            self._tell_watches(store.remove_watch(watch_id))

    def watch_events(self, after: Sequence[tuple[str, int]], limit: int) -> list[list[WatchEventView] | None]:
        """For each watch and segment number: up to `limit` events of later segments; None: there is no such watch."""
        found = self._ready().watch_events(after, limit)
        return [None if events is None else [view_event(event) for event in events] for events in found]

    def decoder_of(self, stream_id: str) -> Decoder | None:
        """The worker that decodes the stream now; None when none does."""
        charge = self._charges.get(stream_id)
        return charge.decoding.worker if charge is not None and charge.decoding is not None else None

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
        for worker in [p.worker for p in self._spots()]:
            with suppress(WorkerLostError):
                worker.shutdown()
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
        config, workers = self._config, self._workers
        self._decoders = [Decoding(workers.decoder()) for _ in range(config.encode.actors)]
        self._prefillers = [Prefilling(workers.prefiller()) for _ in range(config.prefill.actors)]
        with ThreadPoolExecutor() as together:
            decoders = [together.submit(d.worker.start) for d in self._decoders]
            identities = [together.submit(p.worker.start) for p in self._prefillers]
            store: CatalogKeeper = workers.store(identities[0].result())
            store.start()
            for identity in identities:
                identity.result()
            for decoder in decoders:
                decoder.result()
        for prefilling in self._prefillers:
            prefilling.worker.set_commit(workers.commit(store))
        for info in store.streams():
            if info.state not in LAST_STATES:
                self._charges[info.stream_id] = Charge(info.stream_id)
        self._store = store

    def _look_after(self) -> None:
        for each in self._spots():
            self._poll(each)
        with self._changes:
            self._probation = on_probation(self._charges.values())
        for charge in list(self._charges.values()):
            with self._changes:
                if self._charges.get(charge.stream_id) is charge:
                    with suppress(StoreFullError):  # of the catalog; the next look tries again, others go on
                        self._attend(charge)

    def _poll(self, spot: Decoding | Prefilling) -> None:
        """Hears from a worker. One whose process is new is started; the streams that it had begin again."""
        before = spot.status
        try:
            spot.status = spot.worker.status()
            if spot.status.failure:
                log.warning("a worker is replaced: %s", spot.status.failure)
                spot.worker.kill()
                spot.status = None
            elif not spot.status.started:
                self._revive(spot)
                spot.status = spot.worker.status()
        except WorkerLostError:
            spot.status = None
        self.clock.count("polls")
        is_same = before is None or (
            spot.status is not None and before.incarnation == spot.status.incarnation
        )
        if not is_same and isinstance(spot, Prefilling):  # a decoder's streams are missed one by one
            with self._changes:
                for charge in list(self._charges.values()):
                    if charge.prefilling is spot and charge.epoch:
                        self._lose(charge, "its prefill actor was lost")

    def _revive(self, spot: Decoding | Prefilling) -> None:
        spot.worker.start()
        if isinstance(spot, Prefilling) and self._store is not None:
            spot.worker.set_commit(self._workers.commit(self._store))

    # ---- one stream; all under `_changes`

    def _attend(self, charge: Charge) -> None:
        if charge.epoch == 0:
            if charge.is_due and not (charge.is_suspect and id(charge.decoding) in self._probation):
                self._begin(charge)  # what the decoder says of it is heard at the next look
            return
        assert charge.decoding is not None
        if charge.decoding.status is None:
            return  # away; when it is back it will not know the stream
        feed = charge.decoding.status.feeds.get(charge.stream_id)
        if feed is None or feed.epoch != charge.epoch:
            suspect = self._probation.get(id(charge.decoding), charge.stream_id)
            self._lose(charge, "its decoder was restarted", is_blamed=suspect == charge.stream_id)
        elif feed.state == "running":
            charge.feed = feed
        elif feed.state == "full":
            self._pause(charge, feed.detail)
        elif feed.state == "lost":
            self._lose(charge, feed.detail)
        else:
            self._finish(charge, feed.state, feed.detail)
        if charge.epoch and charge.has_untold_watches:
            self._tell_watches(charge.stream_id)

    def _tell_watches(self, stream_id: str) -> None:
        """Tells the stream's prefiller what to ask, now, or when that fails at each look until it knows.

        A stream without a session has a prefiller that hears of them when the next one begins.
        """
        charge = self._charges.get(stream_id)
        if charge is None or not charge.epoch or charge.prefilling is None:
            return
        charge.has_untold_watches = True
        with suppress(WorkerLostError, UnknownStreamError):
            questions = questions_of(self._ready().watches_of(stream_id))
            charge.prefilling.worker.set_watches(stream_id, questions)
            charge.has_untold_watches = False

    def _begin(self, charge: Charge) -> None:
        """Opens a session on the stream's workers, from its last commit on."""
        store = self._ready()
        decoding, prefilling = place(charge, self._charges.values(), self._decoders, self._prefillers)
        if decoding.status is None or prefilling.status is None:
            return
        try:
            if charge.is_taken(store.stream(charge.stream_id).epoch):
                log.warning("stream %s: another supervisor has taken it over", charge.stream_id)
                self._charges.pop(charge.stream_id, None)
                return
            if why := store.room(charge.stream_id):
                self._pause(charge, why)
                return
            charge.last_epoch = 0  # should the call fail, nobody knows whether it took one
            epoch = charge.last_epoch = store.begin_writing(charge.stream_id)
            info = store.stream(charge.stream_id)  # after the epoch: nobody else commits from here on
            guidance = str(info.config.get("guidance", ""))
            watches = questions_of(store.watches_of(info.stream_id))
            prefilling.worker.open_stream(info.stream_id, epoch, info.next_segment_no, guidance, watches)
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
            store.set_state(info.stream_id, "ingesting", "")
        except UnknownStreamError:  # removed behind our back
            self._charges.pop(charge.stream_id, None)
        except StoreFullError as exc:  # of the catalog
            self._pause(charge, str(exc))
        except (StreamKVError, RuntimeError) as exc:
            self._lose(charge, describe(exc))
        else:
            charge.begin(epoch, info.next_segment_no)
            if charge.is_on_probation:
                self._probation[id(decoding)] = charge.stream_id
            charge.feed = None
            self.clock.count("sessions")

    def _lose(self, charge: Charge, why: str, *, is_blamed: bool = True) -> None:
        log.warning("stream %s: its session is lost: %s", charge.stream_id, why)
        charge.lose(is_blamed=is_blamed)
        if charge.is_poisoned:
            why = f"set aside after {charge.strikes} restarts without a segment in between; the last: {why}"
            self._finish(charge, "failed", why)

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
        self._charges.pop(charge.stream_id, None)
        self._close(charge)

    def _close(self, charge: Charge) -> None:
        """The decoder first: what it had shipped is then done with when the window closes."""
        if charge.decoding is not None:
            with suppress(WorkerLostError):
                charge.decoding.worker.remove_stream(charge.stream_id)
        if charge.prefilling is not None:
            with suppress(WorkerLostError):
                charge.prefilling.worker.close_stream(charge.stream_id)

    # ---- inside

    def _ready(self) -> CatalogKeeper:
        if self._store is None or self._state.phase != "ready":
            detail = f": {self._state.detail}" if self._state.detail else ""
            raise NotReadyError(f"the ingest plane is not ready, it is {self._state.phase}{detail}")
        return self._store

    def _spots(self) -> Sequence[Decoding | Prefilling]:
        return [*self._decoders, *self._prefillers]

    def _view(self, info: StreamInfo) -> StreamView:
        charge = self._charges.get(info.stream_id)
        position_s = charge.feed.position_s if charge is not None and charge.feed is not None else 0.0
        return StreamView(
            stream_id=info.stream_id,
            uri=redact_uri(info.uri),
            # A full disk may not even take the catalog's note that the stream is paused.
            state="paused" if charge is not None and charge.paused else info.state,
            detail=charge.paused if charge is not None and charge.paused else info.detail,
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
