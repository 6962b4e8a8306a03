"""A stream that ends its workers takes its neighbours down once, and one that was in hand by chance goes on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stage import (
    CRASH,
    Footage,
    LocalSink,
    LocalWorkers,
    MeanEncoder,
    Mortal,
    Stage,
    wait_for_end,
    wait_until,
)
from torch import Tensor

from actors.failures import SilentError, WorkerLostError
from actors.in_hand import LastWords
from actors.messages import SegmentMessage, StreamSpec, WorkerStatus
from actors.placement import Charge
from actors.pools import Spot
from actors.prefill import Prefill
from actors.supervisor import Supervisor
from streamkv.config import PoolConfig
from streamkv.grid import OnGap
from streamkv.types import Frame


class HeldFootage(Footage):
    """Shows `poison` to whom it ends, and the others when they are let go. Nobody says what ended it."""

    def __init__(self, held: threading.Event, poison: Callable[[], None]) -> None:
        super().__init__()
        self._held, self._poison = held, poison

    def open(self, spec: StreamSpec, on_gap: OnGap) -> Iterator[Frame]:
        if spec.stream_id == "poison":
            time.sleep(0.05)  # others have begun by then
            self._poison()
        else:
            self._held.wait(30)
        yield from super().open(spec, on_gap)


class DeadlySource(LocalWorkers):
    """The decoder ends that opens `poison`."""

    def __init__(self, root: Path, held: threading.Event) -> None:
        super().__init__(root, HeldFootage(held, self.poison))
        self.held = held

    def poison(self) -> None:
        self.decoders[0].kill()
        self.held.wait(30)  # it sends nothing after its end


class DeadlySink(LocalSink):
    """What `poison` ships ends the actor that it goes to."""

    def ship(self, message: SegmentMessage) -> Future[bool]:
        if message.stream_id == "poison":
            self.prefill.kill()
        return super().ship(message)


class DeadlySegments(DeadlySource):
    def poison(self) -> None:
        """Not yet."""

    def sink(self, prefill: Mortal, store: Mortal) -> LocalSink:
        return DeadlySink(prefill, store, self._thread)


@pytest.mark.parametrize("deadly", [DeadlySource, DeadlySegments])
def test_a_stream_that_ends_its_worker_each_time_does_not_take_slow_neighbours_with_it(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, deadly: type[DeadlySource]
) -> None:
    """The neighbours commit nothing while it is tried: they are cameras whose segments take longer than that."""
    monkeypatch.setattr("actors.feed.PATIENCE_S", 0.01)  # they keep their turns meanwhile
    monkeypatch.setattr("actors.placement.BACKOFF_S", 0.02)
    monkeypatch.setattr("actors.placement.PROBATION_S", 0.3)
    monkeypatch.setattr("actors.placement.TRIAL_S", 0.3)
    held = threading.Event()
    supervisor = stage.open(deadly(stage.root, held))
    for stream_id in ("a", "b", "poison", "c"):
        supervisor.add_stream(stream_id, "40")
    wait_until(lambda: supervisor.stream("poison").state == "failed", 60)
    assert "set aside" in supervisor.stream("poison").detail
    held.set()
    wait_for_end(supervisor)
    stage.check({"a": 40, "b": 40, "c": 40})


class SlowEncoder(MeanEncoder):
    """So that decoders wait for it, with nothing in hand."""

    def encode_frames(self, frames: Sequence[np.ndarray]) -> Tensor:
        time.sleep(0.02)
        return super().encode_frames(frames)


class PoisonedFootage(Footage):
    """Ends the decoder that decodes `poison`, each time at the same frame."""

    workers: LocalWorkers

    def __init__(self, cause: str = CRASH) -> None:
        super().__init__()
        self._cause = cause

    def open(self, spec: StreamSpec, on_gap: OnGap) -> Iterator[Frame]:
        for frame in super().open(spec, on_gap):
            if spec.stream_id == "poison" and frame.start_s == 13:
                if spec.next_segment_no:
                    time.sleep(0.7)  # what comes before is committed by then, which acquits nobody
                decoders = self.workers.decoders
                next(d for d in decoders if spec.stream_id in d.instance.status().feeds).kill(self._cause)
                return
            yield frame


class WitnessedSource(LocalWorkers):
    """A decoder ends that has `poison` in hand."""

    def __init__(self, root: Path, footage: PoisonedFootage | None = None) -> None:
        footage = footage or PoisonedFootage()
        footage.workers = self
        super().__init__(root, footage, SlowEncoder())


class WitnessedSegments(LocalWorkers):
    """A prefill actor ends while it has the fourth segment of `poison` in hand."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, Footage(), SlowEncoder())

    def prefiller(self, name: str) -> Mortal:
        made = super().prefiller(name)
        make = made._make

        def deadly() -> Prefill:
            prefill = make()
            ingest = prefill._ingest

            def ingest_or_die(message: SegmentMessage) -> bool:
                if message.stream_id == "poison" and message.segment_no == 3:
                    made.kill(CRASH)
                return bool(ingest(message))

            prefill._ingest = ingest_or_die
            return prefill

        made._make = deadly
        made.instance = deadly()
        return made


def add_poison_to(supervisor: Supervisor, company: Sequence[str], uri: str) -> None:
    """Once the others are under way."""
    for stream_id in company:
        supervisor.add_stream(stream_id, uri)
    wait_until(lambda: all(charge.epoch for charge in supervisor._all()))
    supervisor.add_stream("poison", uri)


@pytest.fixture
def suspected(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Streams that are suspected as time goes by."""
    found: set[str] = set()
    note_in_hand = Charge.note_in_hand

    def note(charge: Charge, spot: Spot[Any], positions_s: Iterable[float]) -> None:
        note_in_hand(charge, spot, positions_s)
        if charge.tried_at is not None:
            found.add(charge.stream_id)

    monkeypatch.setattr(Charge, "note_in_hand", note)
    return found


@pytest.mark.parametrize("num_actors", [1, 2])
@pytest.mark.parametrize("deadly", [WitnessedSource, WitnessedSegments])
def test_a_stream_that_ends_its_worker_takes_nobody_down_twice(
    stage: Stage,
    caplog: pytest.LogCaptureFixture,
    suspected: set[str],
    deadly: type[LocalWorkers],
    num_actors: int,
) -> None:
    """Its neighbours lose one session, when it does so first; after that it is tried alone, and set aside."""
    pools = PoolConfig(actors=num_actors)
    workers = deadly(stage.root)
    supervisor = stage.open(workers, encode=pools, prefill=pools)
    add_poison_to(supervisor, "abcde", "120")
    waited: set[str] = set()

    def is_set_aside() -> bool:
        waited.update(view.stream_id for view in supervisor.streams() if "is tried alone" in view.detail)
        return supervisor.stream("poison").state == "failed"

    wait_until(is_set_aside, 60)
    if num_actors == 1:
        assert waited
    else:
        assert waited <= suspected, "there was another worker to go to"
    assert "set aside after 3 restarts without getting further" in supervisor.stream("poison").detail
    wait_for_end(supervisor)
    stage.check(dict.fromkeys("abcde", 120))
    lost = [caplog.text.count(f"stream {stream_id}: its session is lost") for stream_id in "abcde"]
    assert set(lost) <= {0, 1}, lost
    assert sum(lost) >= 2, "neighbours were there"
    mortals = workers.decoders if deadly is WitnessedSource else workers.prefillers
    assert sum(mortal.lives for mortal in mortals) == num_actors + 3, "it had three sessions, on one of them"


@pytest.mark.parametrize("num_actors", [1, 2])
def test_a_stream_that_ends_its_worker_without_a_word_is_tried_from_the_second_time_on(
    stage: Stage, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, num_actors: int
) -> None:
    """As a library does that calls `_exit`: at first it looks like a kill from outside, which is nobody's doing."""
    monkeypatch.setattr("actors.pools.MAX_NAMED", 4)  # however slow the machine is
    pools = PoolConfig(actors=num_actors)
    workers = WitnessedSource(stage.root, PoisonedFootage(cause=""))
    supervisor = stage.open(workers, encode=pools, prefill=pools)
    add_poison_to(supervisor, "abc", "120")
    wait_until(lambda: supervisor.stream("poison").state == "failed", 60)
    assert "set aside after 3 restarts without getting further" in supervisor.stream("poison").detail
    wait_for_end(supervisor)
    stage.check(dict.fromkeys("abc", 120))
    lost = [caplog.text.count(f"stream {stream_id}: its session is lost") for stream_id in "abc"]
    assert set(lost) <= {0, 1, 2}, lost
    assert sum(mortal.lives for mortal in workers.decoders) == num_actors + 3


@pytest.mark.parametrize("cause", ["", "want of memory"])
def test_a_stream_that_was_in_hand_by_chance_goes_on_as_the_others_do(
    stage: Stage, suspected: set[str], cause: str
) -> None:
    """Whoever is killed from outside is not even suspected; else it is acquitted, and gets company again."""
    held = threading.Event()

    class Once(Footage):
        def open(self, spec: StreamSpec, on_gap: OnGap) -> Iterator[Frame]:
            for frame in super().open(spec, on_gap):
                if spec.stream_id == "b" and frame.start_s == 13 and not held.is_set():
                    held.set()
                    workers.decoders[0].kill(cause)
                    return
                yield frame

    workers = LocalWorkers(stage.root, Once(), SlowEncoder())
    supervisor = stage.open(workers)
    for stream_id in ("a", "b", "c"):
        supervisor.add_stream(stream_id, "120")
    charge = supervisor._charges["b"]
    wait_until(lambda: charge.ended_at > 0)
    if cause:
        wait_until(lambda: charge.tried_at is not None)
        assert charge.is_on_trial
        wait_until(lambda: charge.tried_at is None)
    wait_for_end(supervisor)
    assert ("b" in suspected) == bool(cause)
    stage.check({"a": 120, "b": 120, "c": 120})


def test_of_several_that_were_in_hand_each_is_tried_alone_and_who_was_tried_makes_way(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    """`a` is decoded while the decoder ends that `poison` ends, and comes first; it is acquitted, and lost once."""
    a_is_in_hand, is_over = threading.Event(), threading.Event()

    class Both(PoisonedFootage):
        def open(self, spec: StreamSpec, on_gap: OnGap) -> Iterator[Frame]:
            for frame in super().open(spec, on_gap):
                if spec.stream_id == "a" and frame.start_s == 13 and not a_is_in_hand.is_set():
                    a_is_in_hand.set()
                    assert is_over.wait(30)
                    return
                if spec.stream_id == "poison" and frame.start_s == 12:
                    assert a_is_in_hand.wait(30)
                yield frame
            if spec.stream_id == "poison":
                is_over.set()  # its decoder has ended

    supervisor = stage.open(WitnessedSource(stage.root, Both("want of memory")))
    add_poison_to(supervisor, "ab", "400")
    wait_until(lambda: {supervisor._charges[s].tried_at is not None for s in ("a", "poison")} == {True})
    wait_until(lambda: supervisor.stream("poison").state == "failed", 60)
    wait_for_end(supervisor)
    stage.check({"a": 400, "b": 400})
    lost = [
        caplog.text.count(f"stream {stream_id}: its session is lost") for stream_id in ("a", "poison", "b")
    ]
    assert lost == [1, 3, 1]
    assert supervisor.stats()["handovers"] >= 1, "one that was running made way"


@pytest.mark.parametrize(("failure", "is_named"), [(WorkerLostError, True), (SilentError, False)])
def test_who_does_not_answer_in_time_is_at_work_and_names_nobody(
    stage: Stage,
    monkeypatch: pytest.MonkeyPatch,
    suspected: set[str],
    failure: type[WorkerLostError],
    is_named: bool,
) -> None:
    workers = LocalWorkers(stage.root, Footage(pace_s=0.01))
    monkeypatch.setattr(workers, "last_words", lambda place: LastWords({"a": (0.0,)}, CRASH))
    supervisor = stage.open(workers)
    supervisor.add_stream("a", "100")
    wait_until(lambda: supervisor.stream("a").num_segments > 1)
    (prefiller,) = workers.prefillers
    status, calls = prefiller.status, []

    def away_once() -> WorkerStatus:
        calls.append(0)
        if len(calls) == 1:
            raise failure("away")
        answer: WorkerStatus = status()
        return answer

    monkeypatch.setattr(prefiller, "status", away_once, raising=False)
    wait_until(lambda: len(calls) > 2)
    wait_for_end(supervisor)
    stage.check({"a": 100})
    assert suspected == ({"a"} if is_named else set())


def charge_that_ended(*places_s: tuple[float, ...], cause: str = CRASH, is_live: bool = False) -> Charge:
    """A stream that workers had in hand there when they ended, one after the other."""
    charge = Charge("a", is_live=is_live)
    for number, positions_s in enumerate(places_s):
        spot: Spot[Any] = Spot("encode-0", None, lost_at=1.0 + number, words=LastWords(cause=cause))
        charge.note_in_hand(spot, positions_s)
    return charge


@pytest.mark.parametrize("cause", [CRASH, ""])
@pytest.mark.parametrize(
    ("places_s", "is_poisoned"),
    [
        ([(13.0,)] * 3, True),
        ([(13.0,)] * 2, False),
        ([(13.0, 17.0), (13.0,), (13.0, 15.0)], True),  # its other thread was somewhere else each time
        ([(13.0, 17.0), (13.0,), (17.0,)], False),
        ([(13.0,), (14.0,), (15.0,)], False),  # it got further each time
        ([(13.0,), (9.0,), (13.0,)], False),
        ([(13.0,), (9.0,), (13.0,), (13.0,)], True),
    ],
)
def test_a_stream_is_set_aside_when_workers_end_at_the_same_place_of_it(
    places_s: list[tuple[float, ...]], is_poisoned: bool, cause: str
) -> None:
    assert charge_that_ended(*places_s, cause=cause).is_poisoned == is_poisoned


@pytest.mark.parametrize(
    ("places_s", "is_live", "is_suspect"),
    [
        ([(13.0,)], False, False),
        ([(13.0,), (14.0,)], False, False),
        ([(13.0,), (13.0, 15.0)], False, True),
        ([(13.0,)], True, False),
        ([(13.0,), (14.0,)], True, True),  # nothing of it is committed since, and a camera has no places
    ],
)
def test_a_kill_from_outside_makes_a_suspect_only_of_who_was_in_hand_there_before(
    places_s: list[tuple[float, ...]], is_live: bool, is_suspect: bool
) -> None:
    assert charge_that_ended(*places_s, is_live=is_live, cause="").is_suspect == is_suspect
    assert charge_that_ended(*places_s, is_live=is_live).is_suspect


def test_a_stream_is_acquitted_when_it_has_come_further() -> None:
    charge = charge_that_ended((13.0, 17.0), (13.0,))
    charge.note_committed(13.0)
    assert charge.tried_at is not None
    charge.note_committed(14.0)
    assert (charge.tried_at, charge.num_ended, charge.places_s) == (None, 0, frozenset())
