"""The workers of one stage: made, started, asked how they are, started again, and let go. Knows nothing of streams.

starting -> up <-> away        each look asks every worker; one that is away for long loses its streams
             |
             v
          leaving              once no stream is with it any more, it ends for good
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

from actors.balance import leavers
from actors.failures import SilentError, WorkerLostError, describe
from actors.in_hand import InHands, LastWords, Place
from actors.load import BusyMeter, work_s
from actors.messages import WorkerStatus
from actors.views import PoolView, WorkerView
from actors.workers import Worker
from streamkv.config import PoolConfig

AWAY_S = 2.0
"""A worker that has not been heard of for this long loses its streams to the others. One whose process has ended does
so at once: the new one needs longer, if only to import what it runs."""
HEAR_S = 0.5
"""How long a look waits for answers; one that comes later is there at the next look."""
RETRY_S = 5.0
"""Until a worker that did not start is tried again."""
MAX_NAMED = 3
"""A worker that had more streams than this in hand when it ended says nothing about any of them."""
MAX_ASKED = 64
"""Workers that are asked at once."""

W = TypeVar("W", bound=Worker)

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Spot(Generic[W]):
    """A worker's place in its pool, and what was last heard of it."""

    name: str  # never used again
    worker: W
    status: WorkerStatus | None = None  # None: nothing was heard, for now
    asked_at: float = 0.0  # time.monotonic() when that was asked for
    lost_at: float = 0.0  # time.monotonic() when its process was last found to be away, or another one
    words: LastWords = field(default_factory=LastWords)  # of the process that was lost
    away_since: float = 0.0  # time.monotonic(); 0: it is not away
    has_died: bool = False  # it is away because its process has ended
    is_new: bool = True  # streams were not shared with it yet
    is_leaving: bool = False
    detail: str = ""  # why it does not start
    not_before: float = 0.0  # time.monotonic() of the next attempt to start it
    starting: Future[None] | None = None
    asking: Future[None] | None = None

    @property
    def named(self) -> InHands:
        """What it had in hand when it was lost, if that is little."""
        return self.words.in_hand if len(self.words.in_hand) <= MAX_NAMED else {}

    @property
    def state(self) -> Literal["starting", "up", "away", "leaving"]:
        if self.is_leaving:
            return "leaving"
        if self.status is not None:
            return "up"
        return "away" if self.away_since else "starting"

    @property
    def is_gone(self) -> bool:
        """Whether it is away, and nobody waits for it but a suspect."""
        return self.away_since > 0 and (self.has_died or self.is_long_gone)

    @property
    def is_long_gone(self) -> bool:
        return self.away_since > 0 and time.monotonic() - self.away_since > AWAY_S

    @property
    def has_place(self) -> bool:
        """Whether streams may begin here."""
        return self.status is not None and not self.is_leaving


class Pool(Generic[W]):
    """All is called by the supervisor's own thread, but for `view`."""

    def __init__(
        self,
        name: str,
        config: PoolConfig,
        make: Callable[[str], W],
        start: Callable[[W], object],
        last_words: Callable[[Place], LastWords],
    ) -> None:
        """`make` finds the worker of that name, or makes it. `start` loads what it needs; once more changes nothing.
        `last_words`: see `Workers`."""
        self.name = name
        self.config = config
        self.size = 0
        self.meter = BusyMeter(time.monotonic())
        self.spots: list[Spot[W]] = []
        self._make = make
        self._start = start
        self._last_words = last_words
        self._made = 0
        self._asking = ThreadPoolExecutor(MAX_ASKED, f"ask-{name}")

    def adopt(self, names: Iterable[str]) -> None:
        """Takes workers that an earlier supervisor has left, and that may be at work."""
        numbers = sorted(int(name.rpartition("-")[2]) for name in names)
        self._made, self.size = max(numbers, default=-1) + 1, len(numbers)
        for number in numbers:
            self._add(number)

    def resize(self, size: int, loads: Mapping[str, int]) -> None:
        """Makes workers, or has some leave; `loads`: the streams of each, by name. Returns at once."""
        if size != self.size:
            self.meter.begin_anew()
        self.size = size
        staying = [spot for spot in self.spots if not spot.is_leaving]
        for spot in [spot for spot in self.spots if spot.is_leaving][: max(0, size - len(staying))]:
            spot.is_leaving, spot.is_new = False, True
            staying.append(spot)
        for _ in range(size - len(staying)):
            self._add(self._made)
            self._made += 1
        if size < len(staying):
            idle = [spot.name for spot in staying if spot.status is None]
            names = leavers({s.name: loads.get(s.name, 0) for s in staying}, len(staying) - size, idle=idle)
            for spot in staying:
                spot.is_leaving = spot.name in names

    def _add(self, number: int) -> None:
        name = f"{self.name}-{number}"
        spot = Spot(name, self._make(name))
        self._begin_to_start(spot)
        self.spots = [*self.spots, spot]

    def dismiss(self, in_use: Collection[Spot[W]]) -> None:
        """Ends the workers that leave and have no stream."""
        for spot in [spot for spot in self.spots if spot.is_leaving and spot not in in_use]:
            log.info("worker %s ends: its pool has shrunk", spot.name)
            self.spots = [other for other in self.spots if other is not spot]
            threading.Thread(target=_end, args=(spot,), name=f"end-{spot.name}", daemon=True).start()

    def hear(self) -> None:
        """Asks every worker how it is, all at once."""
        for spot in self.spots:
            if spot.asking is None or spot.asking.done():
                spot.asking = self._asking.submit(self._ask, spot)
        wait([spot.asking for spot in self.spots if spot.asking is not None], HEAR_S)
        heard = [spot.status for spot in self.spots if spot.status is not None]
        self.meter.tell(
            {status.incarnation: work_s(status.totals, self.config.cpus) for status in heard},
            time.monotonic(),
        )

    def view(self, loads: Mapping[str, int], size: int, *, is_set: bool) -> PoolView:
        rounds = self.meter.rounds
        return PoolView(
            name=self.name,
            size=size,
            lowest=self.config.actors,
            highest=self.config.most_actors,
            is_set=is_set,
            busy=sum(rounds) / len(rounds) if rounds else None,
            workers=tuple(
                WorkerView(spot.name, spot.state, loads.get(spot.name, 0), spot.detail) for spot in self.spots
            ),
        )

    def shutdown(self) -> None:
        for spot in self.spots:
            with suppress(WorkerLostError):
                spot.worker.shutdown()
        self._asking.shutdown(wait=False, cancel_futures=True)

    # ---- one worker; in a thread that asks, which is one at a time for each

    def _ask(self, spot: Spot[W]) -> None:
        if spot.starting is not None:
            if not spot.starting.done():
                return
            exc, spot.starting = spot.starting.exception(), None
            spot.detail = describe(exc) if exc is not None else ""
            if exc is not None:
                log.warning("worker %s does not start: %s", spot.name, spot.detail)
                spot.not_before = time.monotonic() + RETRY_S
        asked_at, has_died = time.monotonic(), True
        try:
            status: WorkerStatus | None = spot.worker.status()
        except SilentError:
            status, has_died = None, False
        except WorkerLostError:
            status = None
        except Exception as exc:
            log.warning("worker %s does not say how it is: %s", spot.name, describe(exc))
            status = None
        if status is not None and status.failure:
            log.warning("worker %s is replaced: %s", spot.name, status.failure)
            spot.worker.kill()
            status, has_died = None, False
        elif status is not None and not status.started:
            status = None
            if asked_at >= spot.not_before:
                self._begin_to_start(spot)
        self._note(spot, status, asked_at, has_died=has_died)

    def _note(self, spot: Spot[W], status: WorkerStatus | None, asked_at: float, *, has_died: bool) -> None:
        before = spot.status
        if before is not None and (status is None or status.incarnation != before.incarnation):
            spot.words = self._hear_last_words(spot.name, before) if has_died else LastWords()
            spot.has_died = has_died
            spot.lost_at = spot.away_since = time.monotonic()
        if status is not None:
            spot.is_new = spot.is_new or spot.is_gone
            spot.away_since = 0.0
        spot.status = status
        spot.asked_at = asked_at  # last: whoever reads it first reads a status that is no older

    def _hear_last_words(self, name: str, last: WorkerStatus) -> LastWords:
        if last.in_hand is None:
            return LastWords()
        try:
            words = self._last_words(last.in_hand)
        except Exception as exc:
            log.warning("worker %s died, and nobody can say what it had in hand: %s", name, describe(exc))
            return LastWords()
        log.warning(
            "worker %s has ended: %s%s",
            name,
            words.cause or "it was killed, or nobody can say",
            f"\n{words.trace}".rstrip(),
        )
        return words

    def _begin_to_start(self, spot: Spot[W]) -> None:
        """In a thread of its own: a large model loads for minutes, and a worker may wait for a node as long."""
        spot.starting = started = Future[None]()

        def start() -> None:
            try:
                self._start(spot.worker)
                started.set_result(None)
            except Exception as exc:
                started.set_exception(exc)

        threading.Thread(target=start, name=f"start-{spot.name}", daemon=True).start()


def _end(spot: Spot[W]) -> None:
    with suppress(WorkerLostError):
        if spot.status is not None:
            spot.worker.shutdown()
    with suppress(WorkerLostError):
        spot.worker.dismiss()
