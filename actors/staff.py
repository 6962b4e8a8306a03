"""The workers of both stages: how many there are, and which stream is with whom. Begins and ends no session."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

from actors.balance import spread
from actors.failures import NotReadyError
from actors.load import fitting_size
from actors.placement import Charge
from actors.pool_sizes import PoolSizes
from actors.pools import Pool, Spot
from actors.roles import ENCODE_POOL, PREFILL_POOL
from actors.views import PoolView
from actors.workers import CatalogKeeper, Decoder, Prefiller, Workers
from streamkv.config import PipelineConfig
from streamkv.errors import CapacityError, ConfigError
from streamkv.store import ModelIdentity

GATHER_S = 60.0
"""How long the workers that are slow to start are waited for, once there is one of each pool."""
MAX_POOL = 10_000

AnyPool: TypeAlias = Pool[Any]
AnySpot: TypeAlias = Spot[Any]

log = logging.getLogger(__name__)


class Staff:
    """Users' threads may call `admitted`, `scale`, `views` and `a_decoder`; the supervisor's own calls the rest."""

    def __init__(self, config: PipelineConfig, workers: Workers) -> None:
        self.identity: Future[ModelIdentity] = Future()  # of the first prefiller
        self.opened: Future[CatalogKeeper] = Future()  # the store, once it is; prefillers wait for it
        self.encode: Pool[Decoder] = Pool(
            ENCODE_POOL, config.encode, workers.decoder, _start_decoder, workers.last_words
        )
        self.prefill: Pool[Prefiller] = Pool(
            PREFILL_POOL, config.prefill, workers.prefiller, self._start_prefiller, workers.last_words
        )
        self.pools: tuple[AnyPool, ...] = (self.encode, self.prefill)
        self._limits = config.ingest
        self._workers = workers
        self._sizes = PoolSizes(Path(config.store.root))
        self._set: dict[str, int] = {}  # sizes that an operator has set
        self._coming = 0  # streams that are being added
        self._lock = threading.Lock()  # of these two

    @property
    def spots(self) -> list[AnySpot]:
        return [spot for pool in self.pools for spot in pool.spots]

    # ---- life

    def begin(self) -> None:
        """Finds workers that are there, has others start. ConfigError when the sizes that were set cannot be read."""
        self._set = self._sizes.read()
        for pool in self.pools:
            pool.adopt(self._workers.found(pool.name))
            pool.resize(self._wished(pool), {})

    def gather(self) -> None:
        """Waits for the workers, not for ever: those that come later get their streams then.

        Raises what a worker raised that did not start.
        """
        starting = [spot.starting for spot in self.spots if spot.starting is not None]
        decoders = [spot.starting for spot in self.encode.spots if spot.starting is not None]
        wait(decoders, return_when=FIRST_COMPLETED)
        done, _ = wait(starting, GATHER_S)
        for future in done:
            future.result()
        self.hear()
        for spot in self.spots:
            spot.is_new = spot.status is None

    def hear(self) -> None:
        """Asks all workers how they are."""
        for pool in self.pools:
            pool.hear()

    def shutdown(self) -> None:
        for pool in self.pools:
            pool.shutdown()

    def _start_prefiller(self, worker: Prefiller) -> None:
        try:
            identity = worker.start()
        except Exception as exc:
            if not self.identity.done():
                self.identity.set_exception(exc)
            raise
        if not self.identity.done():
            self.identity.set_result(identity)
        store = self.opened.result()
        worker.set_commit(self._workers.commit(store), self._workers.hear_open(store))

    # ---- sizes

    def resize(self, charges: Collection[Charge]) -> None:
        """Brings each pool to the size that was set, or else that its load asks for, within its range."""
        for pool in self.pools:
            size = self._set.get(pool.name) or fitting_size(
                pool.size,
                pool.config.actors,
                pool.config.most_actors,
                len(charges),
                pool.meter.rounds,
                room=self._room(pool),
            )
            if size != pool.size:
                log.warning("pool %s: from %d to %d actors", pool.name, pool.size, size)
                pool.resize(size, _loads(pool, charges))

    def dismiss(self, charges: Collection[Charge]) -> None:
        """Ends workers that leave, once no stream is with them any more."""
        for pool in self.pools:
            if any(spot.is_leaving for spot in pool.spots):
                pool.dismiss({spot for charge in charges for spot in charge.spots})

    def scale(self, sizes: Mapping[str, int], num_streams: int) -> None:
        """See `Supervisor.scale`."""
        known = [pool.name for pool in self.pools]
        for name, size in sizes.items():
            if name not in known or not 0 <= size <= MAX_POOL:
                raise ConfigError(
                    f"scale: got {name}={size}, allowed are {' and '.join(known)}, each 0 (as configured) to "
                    f"{MAX_POOL:,}"
                )
        with self._lock:
            chosen = {name: size for name, size in {**self._set, **sizes}.items() if size}
            room, most = self._room(self.encode), chosen.get("encode", self.encode.config.most_actors)
            if room and most * room < num_streams:
                raise CapacityError(
                    f"scale: {num_streams} streams are ingested, and {most} decoders hold {most * room} "
                    f"(ingest.max_streams_per_decoder={room}); remove streams, or keep more decoders"
                )
            self._sizes.write(chosen)
            self._set = chosen

    def views(self, charges: Collection[Charge]) -> list[PoolView]:
        return [
            pool.view(_loads(pool, charges), self._wished(pool), is_set=pool.name in self._set)
            for pool in self.pools
        ]

    def _wished(self, pool: AnyPool) -> int:
        return self._set.get(pool.name) or pool.size or int(pool.config.actors)

    def _room(self, pool: AnyPool) -> int:
        return self._limits.max_streams_per_decoder if pool is self.encode else 0

    # ---- places

    @contextmanager
    def admitted(self, num_streams: int) -> Iterator[None]:
        """Keeps a place for a stream that is being added to so many; CapacityError when there is none for it."""
        room, most = self._room(self.encode), self._set.get("encode", self.encode.config.most_actors)
        with self._lock:
            held = num_streams + self._coming
            if room and held >= most * room and self._limits.when_full == "refuse":
                raise CapacityError(
                    f"no place for another stream: {held} are ingested, and {most} decoders hold {most * room} "
                    f"(ingest.max_streams_per_decoder={room}); remove a stream, add decoders (streamkv scale "
                    f"--encode {most + 1}), or have streams wait (ingest.when_full=queue)"
                )
            self._coming += 1
        try:
            yield
        finally:
            with self._lock:
                self._coming -= 1

    def a_decoder(self, charges: Collection[Charge]) -> Decoder:
        """One to look at a new source: of those that are up, the one with the fewest streams."""
        up = [spot for spot in self.encode.spots if spot.has_place]
        if not up:
            raise NotReadyError("no decoder is up; try again a little later")
        loads = _loads(self.encode, charges)
        return min(up, key=lambda spot: loads[spot.name]).worker

    def recall(self, charges: Collection[Charge]) -> None:
        """Streams stay with the workers that have them."""
        by_id = {charge.stream_id: charge for charge in charges}
        for decoding in self.encode.spots:
            for stream_id in decoding.status.feeds if decoding.status is not None else ():
                if stream_id in by_id:
                    by_id[stream_id].decoding = decoding
        for prefilling in self.prefill.spots:
            for stream_id in prefilling.status.windows if prefilling.status is not None else ():
                if stream_id in by_id:
                    by_id[stream_id].prefilling = prefilling

    def give_places(self, charges: Collection[Charge]) -> None:
        """A stream without a worker gets one; when a worker is new some others move to it, as few as can be.

        Who is on trial stays, and where there are other workers its neighbours go to those. Any other suspect waits a
        little for a worker that has ended, rather than go among the streams of another.
        """
        suspects = {charge.stream_id for charge in charges if charge.is_suspect}
        waits: dict[str, str] = {}
        for pool in self.pools:
            courts = {c.tried_at for c in charges if c.is_on_trial and c.tried_at in pool.spots}
            awaited = {spot.name for spot in pool.spots if spot.state == "away" and not spot.is_long_gone}
            homes = {
                charge.stream_id: charge.home(pool.name)
                for charge in charges
                if not (charge.is_on_trial and charge.tried_at in courts)
                and not (charge.is_suspect and charge.home(pool.name) in awaited)
            }
            up = {spot.name: spot for spot in pool.spots if spot.has_place}
            away = [spot.name for spot in pool.spots if spot.state == "away" and not spot.is_gone]
            if free := {name: spot for name, spot in up.items() if spot not in courts}:
                up, away = free, [name for name in away if name not in {spot.name for spot in courts}]
                for spot in courts:
                    spot.is_new = True  # it gets its share when the trial is over
            is_uneven = any(spot.is_new for spot in up.values())
            room = self._room(pool)
            moves = spread(homes, list(up), away=away, pinned=suspects, room=room, evenly=is_uneven)
            for spot in up.values():
                spot.is_new = False
            for charge in charges:
                if charge.stream_id in moves:
                    charge.send(pool.name, up[moves[charge.stream_id]])
                elif not homes.get(charge.stream_id, "on trial"):
                    waits.setdefault(charge.stream_id, _why_not(pool, len(up), room))
        for charge in charges:
            charge.waits = waits.get(charge.stream_id, "")


def _start_decoder(worker: Decoder) -> None:
    worker.start()


def _loads(pool: AnyPool, charges: Collection[Charge]) -> Counter[str]:
    """Streams of each worker, by its name; one that moves counts where it goes."""
    return Counter(charge.home(pool.name) for charge in charges)


def _why_not(pool: AnyPool, num_up: int, room: int) -> str:
    if not num_up:
        return f"waits: no actor of the pool {pool.name} is up"
    return (
        f"waits for a place: {num_up} decoders hold {room} streams each (ingest.max_streams_per_decoder); it begins "
        f"when another ends, or with more decoders (streamkv scale --encode {pool.size + 1})"
    )
