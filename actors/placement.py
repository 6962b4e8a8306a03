"""Which stream is with which worker, and how it fares there. Bookkeeping of the supervisor; calls nobody."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from actors.messages import FeedStatus, WorkerStatus
from actors.workers import Decoder, Prefiller

MAX_STRIKES = 5
"""Sessions that a stream may lose in a row without one segment committed; then it is set aside as failed."""
SUSPECT_STRIKES = 2
"""From so many on a stream may be what ends its worker: those of a worker begin one at a time, each on probation."""
PROBATION_S = 1.0
"""For how long the first strike puts a session on probation; each further one doubles it."""
BACKOFF_S = 0.25
PAUSE_S, MAX_PAUSE_S = 1.0, 30.0
"""Until a paused stream is looked at again, at first and at most; twice as long each time that it gets no further."""


@dataclass
class Decoding:
    """One decoder and what was last heard of it; None: nothing, for now."""

    worker: Decoder
    status: WorkerStatus | None = None


@dataclass
class Prefilling:
    """One prefiller and what was last heard of it."""

    worker: Prefiller
    status: WorkerStatus | None = None


@dataclass
class Charge:
    """A stream that is to be ingested. It stays with its workers for as long as it is one."""

    stream_id: str
    decoding: Decoding | None = None
    prefilling: Prefilling | None = None
    epoch: int = 0  # of its session; 0: it has none
    last_epoch: int = 0  # that this supervisor took for it
    feed: FeedStatus | None = None
    restarts: int = 0
    strikes: int = 0
    next_segment_no: int = 0  # when its session began
    begun_at: float = 0.0  # time.monotonic() of its session
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
        return self.strikes > MAX_STRIKES

    @property
    def is_suspect(self) -> bool:
        return self.strikes >= SUSPECT_STRIKES

    @property
    def is_on_probation(self) -> bool:
        """Whether its worker's end would be its doing: it is a suspect, and the last one that began there."""
        lasts_s = PROBATION_S * 2 ** (self.strikes - 1)
        return self.is_suspect and self.epoch > 0 and time.monotonic() - self.begun_at < lasts_s

    def begin(self, epoch: int, next_segment_no: int) -> None:
        """Notes a session; progress since the last one forgives all strikes and pauses."""
        if next_segment_no > self.next_segment_no:
            self.strikes = self.pauses = 0
        self.paused = ""
        self.has_untold_watches = False
        self.epoch, self.next_segment_no = epoch, next_segment_no
        self.begun_at = time.monotonic()

    def is_taken(self, catalog_epoch: int) -> bool:
        """Whether another supervisor has taken the stream over since."""
        return self.last_epoch not in (0, catalog_epoch)

    def lose(self, *, is_blamed: bool = True) -> None:
        """Notes that the session, or the attempt at one, is over."""
        self.epoch = 0
        self.restarts += 1
        self.strikes += is_blamed
        self.not_before = time.monotonic() + BACKOFF_S * 2 ** max(0, self.strikes - 1)

    def pause(self, why: str) -> None:
        """Notes that the session, if there was one, is over until there is room."""
        self.epoch, self.feed, self.paused = 0, None, why
        self.not_before = time.monotonic() + min(MAX_PAUSE_S, PAUSE_S * 2 ** min(self.pauses, 9))
        self.pauses += 1


def on_probation(charges: Iterable[Charge]) -> dict[int, str]:
    """Of each decoder, by its `id`, the stream that is on probation there."""
    return {id(charge.decoding): charge.stream_id for charge in charges if charge.is_on_probation}


def place(
    charge: Charge,
    charges: Iterable[Charge],
    decoders: Sequence[Decoding],
    prefillers: Sequence[Prefilling],
) -> tuple[Decoding, Prefilling]:
    """The stream's workers: the least loaded at first, from then on the same."""
    others = list(charges)
    if charge.decoding is None:
        charge.decoding = min(decoders, key=lambda d: sum(c.decoding is d for c in others))
    if charge.prefilling is None:
        charge.prefilling = min(prefillers, key=lambda p: sum(c.prefilling is p for c in others))
    return charge.decoding, charge.prefilling
