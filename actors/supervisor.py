"""Looks after every stream: places it, follows it, and resumes it from its last commit when a worker is lost.

It keeps nothing that is not in the catalog, so that its own death costs nothing but time: a new one reads the
catalog and resumes every stream that has not come to an end.

    registered -> ingesting -> done | failed      a lost session is followed by another, with a new epoch
                   |    ^
                   v    |
                   paused      while the store has no room for the stream's next segment; others go on

A stream that is encoded again is two to the store, by their ids, and one to users, by its name
(`streamkv.store.generations`).
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
from actors.stream_settings import check_own, own_settings, stream_config
from actors.timing import StageClock, add_totals
from actors.views import GapView, NextView, PlaneState, Reencoding, StreamView
from actors.workers import CatalogKeeper, Decoder, Workers
from streamkv.config import PipelineConfig
from streamkv.errors import (
    LegalHoldError,
    StoreError,
    StoreFullError,
    StreamExistsError,
    StreamKVError,
    UnknownStreamError,
)
from streamkv.store import NEXT, StreamInfo
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
        self._whole: dict[str, str] = {}  # ids that are to take another's place, and what keeps them from it
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
        check_own(self._config, guidance)
        if any(info.name == stream_id for info in store.streams()):
            raise StreamExistsError(
                f"stream {stream_id!r} exists already; choose another id, or remove it first"
            )
        found = self._decoders[0].worker.probe(uri)
        store.add_stream(stream_id, uri, stream_config(self._config, found, guidance), tenant)
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
        return self._view(store.stream(stream_id), _next_of(store, stream_id))

    def remove_stream(self, stream_id: str) -> None:
        """Ends a stream's ingest, then takes its rows and files away; a held one goes on (LegalHoldError)."""
        store = self._ready()
        with self._changes:
            info = store.stream(stream_id)
            info.check_not_held()
            for each in (info, _next_of(store, stream_id)):
                if each is not None and (charge := self._charges.pop(each.stream_id, None)) is not None:
                    self._close(charge)
            store.remove_stream(stream_id)

    def reencode(self, stream_id: str, new: Reencoding) -> StreamView:
        """Begins to ingest a stream's source again, beside what is stored of it, which goes when the new is whole.

        One that failed makes way. What a session has begun with is in the catalog: a restart goes on with it.

        Raises:
            UnknownStreamError, ConfigError, SourceError, LegalHoldError: nothing has changed then.
            StoreError: the stream is being ingested still, or encoded again already.
        """
        store = self._ready()
        info = store.stream(stream_id)
        info.check_not_held()
        own = own_settings(self._config, info, new)
        found = self._decoders[0].worker.probe(info.uri)
        with self._changes:
            coming = _next_of(store, stream_id)
            if coming is not None and coming.state == "failed":
                store.remove_stream(coming.stream_id)
            next_id = store.begin_next(stream_id, stream_config(self._config, found, *own))
            self._charges[next_id] = Charge(next_id)
        self._wake.set()
        return self.stream(stream_id)

    def cancel_reencode(self, stream_id: str) -> StreamView:
        """Gives up what `reencode` began; the stream is as it was. StoreError when there is nothing to give up."""
        store = self._ready()
        with self._changes:
            store.stream(stream_id)
            coming = _next_of(store, stream_id)
            if coming is None:
                raise StoreError(
                    f"stream {stream_id!r}: it is not being encoded again; there is nothing to cancel"
                )
            if (charge := self._charges.pop(coming.stream_id, None)) is not None:
                self._close(charge)
            store.remove_stream(coming.stream_id)
        return self.stream(stream_id)

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
            elif info.is_next and info.state == "done":
                self._whole[info.stream_id] = ""
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
        for stream_id in list(self._whole):
            with self._changes:
                self._switch(stream_id)

    def _switch(self, stream_id: str) -> None:
        """Has a whole new memory take its stream's place, now or at a later look."""
        try:
            self._ready().switch_to(stream_id)
        except UnknownStreamError:  # given up, or removed with its stream
            self._whole.pop(stream_id, None)
        except LegalHoldError as exc:
            self._whole[stream_id] = str(exc)
        except StoreError as exc:  # of a database that is away, or of files that are left, which go later
            log.warning("stream %s is not in its place yet: %s", stream_id, describe(exc))
        else:
            self._whole.pop(stream_id, None)

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
            keep_ratio = float(info.config.get("keep_ratio", 0.0))
            prefilling.worker.open_stream(info.stream_id, epoch, info.next_segment_no, guidance, keep_ratio)
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
            if state == "done" and self._ready().stream(charge.stream_id).is_next:
                self._whole[charge.stream_id] = ""
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

    def _view(self, info: StreamInfo, coming: StreamInfo | None) -> StreamView:
        charge = self._charges.get(info.stream_id)
        position_s = charge.feed.position_s if charge is not None and charge.feed is not None else 0.0
        return StreamView(
            stream_id=info.name,
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
            keep_ratio=float(info.config.get("keep_ratio", 0.0)),
            next=None if coming is None else self._view_next(coming),
        )

    def _view_next(self, info: StreamInfo) -> NextView:
        view = self._view(info, None)
        return NextView(
            state=view.state,
            detail=self._whole.get(info.stream_id) or view.detail,
            duration_s=view.duration_s,
            position_s=view.position_s,
            num_segments=view.num_segments,
            file_bytes=view.file_bytes,
            guidance=view.guidance,
            keep_ratio=view.keep_ratio,
        )


def _next_of(store: CatalogKeeper, name: str) -> StreamInfo | None:
    """What is being made to take the stream's place."""
    try:
        return store.stream(name + NEXT)
    except UnknownStreamError:
        return None
