"""Which stream is with which worker, and how it fares there. Bookkeeping of the supervisor; calls nobody."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from actors.messages import FeedStatus
from actors.pools import Spot
from actors.workers import Decoder, Prefiller

Decoding: TypeAlias = Spot[Decoder]
Prefilling: TypeAlias = Spot[Prefiller]

MAX_STRIKES = 5
"""Sessions that a stream may lose in a row without one segment committed; then it is set aside as failed."""
SUSPECT_STRIKES = 2
"""From so many on a stream may be what ends its worker: those of a worker begin one at a time, each on probation."""
PROBATION_S = 1.0
"""For how long the first strike puts a session on probation; each further one doubles it."""
MAX_ENDED = 2
"""Workers that may end in a row with a stream in hand at the same place of it; at the next one it is set aside, too."""
TRIAL_S, LIVE_TRIAL_S = 30.0, 2.0
"""For how long others wait while a stream is tried alone. An archive is acquitted before, when it has come further than
it had; a camera shows nothing twice."""
COURT_S = 30.0
"""For how long a stream that is to be tried waits for its worker to come back, before it goes to another."""
BACKOFF_S = 0.25
PAUSE_S, MAX_PAUSE_S = 1.0, 30.0
"""Until a paused stream is looked at again, at first and at most; twice as long each time that it gets no further."""


@dataclass(eq=False)
class Charge:
    """A stream that is to be ingested. It stays with its workers unless a pool grows, shrinks or loses one."""

    stream_id: str
    decoding: Decoding | None = None
    prefilling: Prefilling | None = None
    to_decoding: Decoding | None = None  # where it moves to; None: it stays
    to_prefilling: Prefilling | None = None
    preparing_since: float = 0.0  # time.monotonic(); 0: where it moves to nobody reads it yet
    draining_since: float = 0.0  # time.monotonic(); 0: its session is not told to stop
    is_busy: bool = False  # a call about it is under way; only the supervisor's own thread makes it so
    waits: str = ""  # why there is no place for it; empty: there is, or it was not looked for
    lock: threading.RLock = field(default_factory=threading.RLock, repr=False)
    """Held by whoever begins, ends or removes the stream."""
    epoch: int = 0  # of its session; 0: it has none
    last_epoch: int = 0  # that this supervisor took for it
    feed: FeedStatus | None = None
    restarts: int = 0
    strikes: int = 0
    places_s: frozenset[float] = frozenset()  # stream times that a worker's threads had come to when it ended
    num_ended: int = 0  # workers that ended there, in a row
    ended_at: float = 0.0  # `Spot.lost_at` of the last one
    tried_at: Spot[Any] | None = None  # that one, where the stream is to be tried; None: it is not suspected
    tried_from: float = 0.0  # time.monotonic() when its first session since then had begun; 0: it has not
    is_live: bool = False
    next_segment_no: int = 0  # when its session began
    opened_at: float = 0.0  # time.monotonic() when its session was about to begin
    begun_at: float = 0.0  # time.monotonic() when its session had begun
    lost_at: float = 0.0  # time.monotonic() when a session was last lost
    not_before: float = 0.0  # time.monotonic() of the next attempt
    paused: str = ""  # why there is no room for its next segment; empty: it is not paused
    pauses: int = 0  # in a row, without one segment committed
    has_untold_watches: bool = False  # its prefiller asks what its watches were before

    @property
    def is_due(self) -> bool:
        return self.epoch == 0 and time.monotonic() >= self.not_before

    @property
    def is_poisoned(self) -> bool:
        """Whether it only ever loses its sessions, which takes its neighbours' workers down with it."""
        return self.strikes > MAX_STRIKES or self.num_ended > MAX_ENDED

    @property
    def is_suspect(self) -> bool:
        return self.tried_at is not None or self.strikes >= SUSPECT_STRIKES

    @property
    def is_on_trial(self) -> bool:
        """Whether nobody else is to be where it is, or is to begin: the worker there ended with it in hand."""
        if self.tried_at is None or self.tried_at.is_leaving:
            return False
        is_awaited = not self.tried_from and time.monotonic() - self.lost_at < COURT_S
        return (is_awaited and self.epoch == 0) or self.is_on_probation

    @property
    def is_on_probation(self) -> bool:
        """Whether its worker's end would be its doing: it is a suspect, and the last one that began there."""
        if self.tried_at is None:
            from_s, lasts_s = self.begun_at, PROBATION_S * 2 ** (self.strikes - 1)
        else:
            from_s, lasts_s = self.tried_from, LIVE_TRIAL_S if self.is_live else TRIAL_S
        has_begun = self.epoch > 0 and time.monotonic() - from_s < lasts_s
        return self.is_suspect and (has_begun or (self.is_busy and self.epoch == 0))

    @property
    def is_shown(self) -> bool:
        """Whether it is a live stream that is not away."""
        live = self.feed.live if self.feed is not None else None
        return live is not None and not live.outage

    @property
    def is_under_way(self) -> bool:
        return self.preparing_since > 0 or self.draining_since > 0

    @property
    def is_prepared(self) -> bool:
        """Whether where it is all is encoded up to what is read already where it will be: nothing lies between."""
        there = self.to_decoding or self.decoding
        if there is None or there.status is None or self.feed is None:
            return False
        return self.feed.position_s >= there.status.prepared.get(self.stream_id, math.inf)

    @property
    def is_moving(self) -> bool:
        return self.to_decoding is not None or self.to_prefilling is not None

    def begin(self, epoch: int, next_segment_no: int) -> None:
        """Notes a session; progress since the last one forgives all strikes and pauses."""
        if next_segment_no > self.next_segment_no:
            self.strikes = self.pauses = 0
        self.paused = ""
        self.has_untold_watches = False
        self.epoch, self.next_segment_no = epoch, next_segment_no
        self.begun_at = time.monotonic()
        self.tried_from = self.tried_from or self.begun_at

    def note_in_hand(self, spot: Spot[Any], positions_s: Iterable[float]) -> None:
        """Notes that the worker there ended with the stream in hand, having come so far with it; once for each end.

        What ends its worker does so at the same place each time; elsewhere it was in hand by chance. A camera has no
        places. Where the worker was killed from outside, the stream is suspected only if one ended there before.
        """
        if self.ended_at == spot.lost_at:
            return
        self.ended_at = spot.lost_at
        places_s = frozenset(positions_s)
        again = places_s & self.places_s
        has_again = bool(self.places_s) and (bool(again) or self.is_live)
        if has_again:
            self.num_ended, self.places_s = self.num_ended + 1, again or places_s
        elif max(places_s) > max(self.places_s, default=-1.0):
            self.num_ended, self.places_s = 1, places_s
        if spot.words.cause or has_again or self.tried_at is not None:
            self.tried_at, self.tried_from = spot, 0.0

    def note_committed(self, end_s: float) -> None:
        """Notes up to where its session's segments are durable: a stream that has come further is beyond suspicion."""
        if end_s > max(self.places_s, default=0.0):
            self.strikes = self.num_ended = 0
            self.tried_at, self.places_s = None, frozenset()

    @property
    def spots(self) -> list[Decoding | Prefilling]:
        """All workers that it is with, or goes to."""
        spots = (self.decoding, self.prefilling, self.to_decoding, self.to_prefilling)
        return [spot for spot in spots if spot is not None]

    def home(self, pool: str) -> str:
        """The name of its worker of that pool, where it moves to if it does; empty: it has none."""
        spot: Decoding | Prefilling | None
        spot = (
            self.to_decoding or self.decoding if pool == "encode" else self.to_prefilling or self.prefilling
        )
        return spot.name if spot is not None else ""

    def send(self, pool: str, spot: Spot[Any]) -> None:
        """Notes where it is to be; its session there begins when the one before has ended."""
        if pool == "encode":
            self.to_decoding = None if spot is self.decoding else spot
        else:
            self.to_prefilling = None if spot is self.prefilling else spot

    def stay(self) -> None:
        """Notes that it is not on its way."""
        self.preparing_since = self.draining_since = 0.0

    def arrive(self) -> None:
        """Notes that its next session begins where it moves to."""
        self.decoding, self.to_decoding = self.to_decoding or self.decoding, None
        self.prefilling, self.to_prefilling = self.to_prefilling or self.prefilling, None

    def hand_over(self) -> None:
        """Notes that its session has ended in good order, and the next one is due at once."""
        self.arrive()
        self.epoch, self.feed, self.not_before = 0, None, 0.0
        self.stay()

    def is_taken(self, catalog_epoch: int) -> bool:
        """Whether another supervisor has taken the stream over since."""
        return self.last_epoch not in (0, catalog_epoch)

    def lose(self, *, is_blamed: bool = True) -> None:
        """Notes that the session, or the attempt at one, is over."""
        self.epoch = 0
        self.stay()
        self.lost_at = time.monotonic()
        self.restarts += 1
        self.strikes += is_blamed
        self.not_before = time.monotonic() + BACKOFF_S * 2 ** max(0, self.strikes - 1)

    def pause(self, why: str) -> None:
        """Notes that the session, if there was one, is over until there is room."""
        self.epoch, self.feed, self.paused = 0, None, why
        self.stay()
        self.not_before = time.monotonic() + min(MAX_PAUSE_S, PAUSE_S * 2 ** min(self.pauses, 9))
        self.pauses += 1


def on_trial(charges: Iterable[Charge]) -> dict[str, str]:
    """Of each worker, by its name, the stream that is to be alone there, or the first of them."""
    tried: dict[str, str] = {}
    for charge in charges:
        if charge.is_on_trial and charge.tried_at is not None:
            tried.setdefault(charge.tried_at.name, charge.stream_id)
    return tried


def on_probation(charges: Iterable[Charge]) -> dict[str, str]:
    """Of each worker, by its name, the stream that is on probation there."""
    return {
        spot.name: charge.stream_id
        for charge in charges
        if charge.is_on_probation
        for spot in (charge.decoding, charge.prefilling)
        if spot is not None
    }
