"""Streams come to their end whatever dies on the way, and no committed segment is lost or doubled."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stage import (
    IDENTITY,
    SOURCE,
    Footage,
    LastingWorkers,
    LocalSink,
    LocalWorkers,
    MeanEncoder,
    Mortal,
    Stage,
    states,
    wait_for_end,
    wait_until,
)
from torch import Tensor

from actors.failures import NotReadyError, SilentError, WorkerLostError
from actors.messages import SegmentMessage, StreamSpec, WorkerStatus
from actors.placement import Charge
from actors.pools import Spot
from actors.prefill import Prefill
from actors.supervisor import Supervisor
from pipeline.schemas import Stream
from pipeline.show import waiting_text
from streamkv.config import CompressConfig, MethodConfig, PoolConfig
from streamkv.errors import ConfigError, StreamExistsError, StreamIdError, UnknownStreamError
from streamkv.grid import OnGap
from streamkv.store import SegmentPlace, SegmentStore
from streamkv.types import Frame
from streamkv.watches import WatchAnswer


def test_streams_are_added_while_others_run_and_come_to_their_end(stage: Stage) -> None:
    supervisor = stage.open(LocalWorkers(stage.root, Footage(pace_s=0.002)))
    supervisor.add_stream("a", "90")
    wait_until(lambda: supervisor.stream("a").num_segments > 2)
    view = supervisor.add_stream("b", "10")
    assert (view.stream_id, view.state, view.duration_s) == ("b", "registered", 10.0)
    wait_for_end(supervisor)
    stage.check({"a": 90, "b": 10})
    totals = supervisor.stats()
    assert totals["committed_segments"] == 23 + 3
    assert {"decode_s", "encode_s", "segment_s", "prefill_s", "write_s", "commit_s"} <= set(totals)


def test_streams_are_spread_over_the_pools_and_stay_where_they_are(stage: Stage) -> None:
    workers = LocalWorkers(stage.root, Footage(pace_s=0.005))
    supervisor = stage.open(workers, encode=PoolConfig(actors=2), prefill=PoolConfig(actors=2))
    for stream_id in "abcd":
        supervisor.add_stream(stream_id, "400")
    wait_until(lambda: set(states(supervisor).values()) == {"ingesting"})
    wait_until(lambda: [len(d.instance.status().feeds) for d in workers.decoders] == [2, 2])
    wait_for_end(supervisor)
    stage.check(dict.fromkeys("abcd", 400))


def test_what_is_refused_leaves_nothing_behind(stage: Stage) -> None:
    supervisor = stage.open(LocalWorkers(stage.root, Footage()))
    supervisor.add_stream("a", "4")
    with pytest.raises(StreamExistsError):
        supervisor.add_stream("a", "8")
    with pytest.raises(StreamIdError):
        supervisor.add_stream("../a", "8")
    with pytest.raises(UnknownStreamError):
        supervisor.stream("b")
    with pytest.raises(UnknownStreamError):
        supervisor.remove_stream("b")
    assert list(states(supervisor)) == ["a"]


def test_a_removed_stream_is_gone_and_its_name_is_free(stage: Stage) -> None:
    supervisor = stage.open(LocalWorkers(stage.root, Footage(pace_s=0.002)))
    supervisor.add_stream("a", "400")
    wait_until(lambda: supervisor.stream("a").num_segments > 3)
    supervisor.remove_stream("a")
    assert supervisor.streams() == []
    assert list(stage.root.glob("streams/*/*")) == []
    supervisor.add_stream("a", "20")
    wait_for_end(supervisor)
    stage.check({"a": 20})


@pytest.mark.parametrize("who", ["decoders", "prefillers", "stores"])
@pytest.mark.parametrize("seed", range(2))
def test_workers_that_die_cost_no_segment(stage: Stage, who: str, seed: int) -> None:
    workers = LocalWorkers(stage.root, Footage(pace_s=0.002))
    supervisor = stage.open(workers)
    lengths = {"a": 300, "b": 203}
    for stream_id, count in lengths.items():
        supervisor.add_stream(stream_id, str(count))
    rng = random.Random(seed)
    for _ in range(3):
        done = sum(view.num_segments for view in supervisor.streams())
        wait_until(lambda done=done: sum(v.num_segments for v in supervisor.streams()) > done)
        time.sleep(rng.random() * 0.05)
        getattr(workers, who)[0].kill()
    wait_for_end(supervisor)
    stage.check(lengths)


def test_a_worker_that_is_away_for_a_while_is_waited_for(stage: Stage) -> None:
    workers = LocalWorkers(stage.root, Footage(pace_s=0.002))
    supervisor = stage.open(workers)
    supervisor.add_stream("a", "200")
    wait_until(lambda: supervisor.stream("a").num_segments > 2)
    workers.prefillers[0].is_away = True
    time.sleep(0.5)
    assert supervisor.stream("a").state == "ingesting"
    workers.prefillers[0].is_away = False
    wait_for_end(supervisor)
    stage.check({"a": 200})


def test_a_new_supervisor_resumes_what_the_old_one_left(stage: Stage) -> None:
    first_footage, second_footage = Footage(pace_s=0.004), Footage(pace_s=0.004)
    first = stage.open(LocalWorkers(stage.root, first_footage))
    first.add_stream("a", "300")
    first.add_stream("short", "3")
    wait_until(lambda: first.stream("a").num_segments > 5 and first.stream("short").state == "done")
    # The old one is not told: it goes on as if behind a cut network, and must not be able to commit.
    second = stage.open(LocalWorkers(stage.root, second_footage))
    wait_for_end(second)
    stage.check({"a": 300, "short": 3})
    assert second_footage.decoded["a"][0] > 10, "it does not begin at the beginning"
    assert "short" not in second_footage.decoded
    assert second.stats()["sessions"] == 1, "the two do not take it from each other by turns"
    wait_until(lambda: first.stats()["active_streams"] == 0)


def heard(workers: LocalWorkers) -> set[str]:
    """Guidance prompts by which the present prefill actor has worked."""
    return set(workers.prefillers[0].instance._started().engine.heard)


def die(supervisor: Supervisor) -> None:
    """As a process that is killed: its workers hear nothing of it."""
    supervisor._stopping.set()
    supervisor._wake.set()
    supervisor._thread.join()
    supervisor._sessions.shutdown()


def test_a_new_supervisor_finds_the_workers_of_the_old_one_at_work(stage: Stage) -> None:
    """Meanwhile they have gone on. Streams stay where they are, in processes that are the same."""
    workers = LastingWorkers(stage.root, Footage(pace_s=0.01))
    pools = {"encode": PoolConfig(actors=2), "prefill": PoolConfig(actors=2)}
    old = stage.open(workers, **pools)
    lengths = dict.fromkeys("bcde", 200)
    for stream_id in ("a", *lengths):
        old.add_stream(stream_id, "200")
    wait_until(lambda: min(view.num_segments for view in old.streams()) > 2)
    old.remove_stream("a")  # as they are now, nobody would place them
    die(old)
    where = [sorted(decoder.instance.status().feeds) for decoder in workers.decoders]
    with SegmentStore.open(stage.root, read_only=True) as store:
        before = store.stream("b").num_segments
        wait_until(lambda: store.stream("b").num_segments > before + 2)
    new = stage.open(workers, **pools)
    wait_until(lambda: all(charge.epoch for charge in new._charges.values()))
    assert [sorted(decoder.instance.status().feeds) for decoder in workers.decoders] == where
    wait_for_end(new)
    stage.check(lengths)
    everybody = [*workers.decoders, *workers.prefillers, *workers.stores]
    assert [worker.lives for worker in everybody] == [1] * 5
    assert new.stats().get("handovers", 0) == 0


def test_workers_that_the_old_supervisor_had_let_go_are_let_go(stage: Stage) -> None:
    """One that was to leave when it died is found, and leaves; new ones get names that are free."""
    workers = LastingWorkers(stage.root, Footage(pace_s=0.002))
    old = stage.open(workers, encode=PoolConfig(actors=1))
    for size in (3, 1):
        old.scale({"encode": size})
        wait_until(lambda size=size: len(workers.found("encode")) == size)
    (last,) = workers.found("encode")
    die(old)
    workers.decoder("encode-7")
    new = stage.open(workers, encode=PoolConfig(actors=1))
    wait_until(lambda: len(workers.found("encode")) == 1)
    assert set(workers.found("encode")) <= {last, "encode-7"}
    new.scale({"encode": 2})
    wait_until(lambda: len(workers.found("encode")) == 2)
    assert "encode-8" in workers.found("encode")


def test_a_streams_guidance_outlives_its_workers_and_its_supervisor(stage: Stage) -> None:
    workers = LocalWorkers(stage.root, Footage(pace_s=0.004))
    first = stage.open(workers)
    assert first.add_stream("a", "300", "  what signs say ").guidance == "what signs say"
    wait_until(lambda: first.stream("a").num_segments > 3)
    workers.prefillers[0].kill()
    before = first.stream("a").num_segments
    wait_until(lambda: first.stream("a").num_segments > before + 3)
    assert heard(workers) == {"what signs say"}
    later = LocalWorkers(stage.root, Footage(pace_s=0.001))
    second = stage.open(later)
    wait_for_end(second)
    assert heard(later) == {"what signs say"}
    assert second.stream("a").guidance == "what signs say"
    stage.check({"a": 300})


def test_guidance_that_could_change_nothing_is_refused(stage: Stage) -> None:
    keeps_all = MethodConfig(compress=CompressConfig(policy="none"))
    supervisor = stage.open(LocalWorkers(stage.root, Footage()), method=keeps_all)
    with pytest.raises(ConfigError, match="keeps every frame"):
        supervisor.add_stream("a", "8", "what signs say")
    assert supervisor.streams() == []
    supervisor.add_stream("a", "8", " ")
    wait_for_end(supervisor)
    assert supervisor.stream("a").guidance == ""


def test_a_stream_that_never_gets_on_is_set_aside(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.placement.BACKOFF_S", 0.01)
    workers = LocalWorkers(stage.root, Footage())
    supervisor = stage.open(workers)
    prefill = workers.prefillers[0].instance
    ingest = prefill.ingest

    def refuse_a(message):
        if message.stream_id == "a":
            raise RuntimeError("it kills its actor")
        return ingest(message)

    monkeypatch.setattr(prefill, "ingest", refuse_a)
    supervisor.add_stream("a", "40")
    supervisor.add_stream("b", "40")
    wait_for_end(supervisor)
    assert states(supervisor) == {"a": "failed", "b": "done"}
    assert "it kills its actor" in supervisor.stream("a").detail


def test_a_stream_that_fails_says_why(stage: Stage) -> None:
    supervisor = stage.open(LocalWorkers(stage.root, Footage(), MeanEncoder(poison=[7])))
    supervisor.add_stream("a", "40")
    wait_for_end(supervisor)
    assert supervisor.stream("a").state == "failed"
    assert "poison" in supervisor.stream("a").detail


class HeldStore(LocalWorkers):
    """Commits nothing before it is let go."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.go = threading.Event()

    def commit(self, store: Mortal) -> Callable[[SegmentPlace, Sequence[WatchAnswer]], bool]:
        send = super().commit(store)

        def commit(place: SegmentPlace, answers: Sequence[WatchAnswer]) -> bool:
            self.go.wait(30)
            return send(place, answers)

        return commit


def test_what_waits_for_the_next_stage_is_shown(stage: Stage) -> None:
    workers = HeldStore(stage.root, Footage())
    supervisor = stage.open(workers)
    supervisor.add_stream("a", "200")
    full = (SOURCE.queue_frames, 2)
    wait_until(lambda: (v := supervisor.stream("a")) and (v.queued_frames, v.waiting_segments) == full)
    stats = supervisor.stats()
    assert (stats["queued_frames"], stats["waiting_segments"]) == full
    shown = Stream.of(supervisor.stream("a")).model_dump()
    assert (
        waiting_text(shown) == f"waiting: {SOURCE.queue_frames} frames for the tower, 2 segments for prefill"
    )
    workers.go.set()
    wait_for_end(supervisor)
    view = supervisor.stream("a")
    assert (view.queued_frames, view.waiting_segments) == (0, 0)
    assert waiting_text(Stream.of(view).model_dump()) == ""


def test_credentials_are_not_listed(stage: Stage) -> None:
    supervisor = stage.open(LocalWorkers(stage.root, Footage()))
    supervisor.add_stream("a", "rtsp://bob:hunter2@cam/4")
    assert supervisor.stream("a").uri == "rtsp://***@cam/4"


def test_another_models_store_is_refused_by_name(stage: Stage) -> None:
    other = IDENTITY.__class__("another model", IDENTITY.geometry, IDENTITY.dtype)
    SegmentStore.open(stage.root, identity=other).close()
    supervisor = stage.open(LocalWorkers(stage.root, Footage()))
    assert supervisor.state().phase == "failed"
    assert "another model" in supervisor.state().detail
    with pytest.raises(NotReadyError, match="failed"):
        supervisor.streams()


def test_threads_are_gone_after_shutdown(stage: Stage) -> None:
    supervisor = stage.open(LocalWorkers(stage.root, Footage(pace_s=0.01)))
    supervisor.add_stream("leaves-no-thread", "1000")
    wait_until(lambda: supervisor.stream("leaves-no-thread").num_segments > 0)
    supervisor.shutdown()
    wait_until(lambda: not any("leaves-no-thread" in t.name for t in threading.enumerate()))


class HeldFootage(Footage):
    """Shows `poison` to whom it ends, and the others when they are let go."""

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


class WitnessedSource(LocalWorkers):
    """A decoder ends while `poison` is decoded, each time at the same frame."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, Footage(), SlowEncoder())
        self.footage.open = self._open  # type: ignore[method-assign]

    def _open(self, spec: StreamSpec, on_gap: OnGap) -> Iterator[Frame]:
        for frame in Footage.open(self.footage, spec, on_gap):
            if spec.stream_id == "poison" and frame.start_s == 13:
                if spec.next_segment_no:
                    time.sleep(0.7)  # what comes before is committed by then, which acquits nobody
                next(d for d in self.decoders if spec.stream_id in d.instance.status().feeds).kill()
                return
            yield frame


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
                    made.kill()
                return bool(ingest(message))

            prefill._ingest = ingest_or_die
            return prefill

        made._make = deadly
        made.instance = deadly()
        return made


@pytest.fixture
def suspected(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Streams that are suspected as time goes by."""
    found: set[str] = set()
    suspect = Charge.suspect

    def note(charge: Charge, spot: Spot[Any], positions_s: Iterable[float]) -> None:
        found.add(charge.stream_id)
        suspect(charge, spot, positions_s)

    monkeypatch.setattr(Charge, "suspect", note)
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
    for stream_id in ("a", "b", "c", "d", "e", "poison"):
        supervisor.add_stream(stream_id, "120")
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


def test_a_stream_that_was_in_hand_by_chance_is_acquitted_and_gets_company_again(stage: Stage) -> None:
    """Whoever kills a worker from outside finds a stream in hand; that one goes on as the others do."""
    held = threading.Event()

    class Once(Footage):
        def open(self, spec: StreamSpec, on_gap: OnGap) -> Iterator[Frame]:
            for frame in super().open(spec, on_gap):
                if spec.stream_id == "b" and frame.start_s == 13 and not held.is_set():
                    held.set()
                    workers.decoders[0].kill()
                    return
                yield frame

    workers = LocalWorkers(stage.root, Once(), SlowEncoder())
    supervisor = stage.open(workers)
    for stream_id in ("a", "b", "c"):
        supervisor.add_stream(stream_id, "120")
    wait_until(lambda: supervisor._charges["b"].tried_at is not None)
    assert supervisor._charges["b"].is_on_trial
    wait_until(lambda: supervisor._charges["b"].tried_at is None)
    wait_for_end(supervisor)
    stage.check({"a": 120, "b": 120, "c": 120})


def test_of_several_that_were_in_hand_each_is_tried_alone_and_who_was_tried_makes_way(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    """`a` is decoded while the decoder ends that `poison` ends, and comes first; it is acquitted, and lost once."""
    a_is_in_hand = threading.Event()

    class Both(WitnessedSource):
        def _open(self, spec: StreamSpec, on_gap: OnGap) -> Iterator[Frame]:
            for frame in super()._open(spec, on_gap):
                if spec.stream_id == "a" and frame.start_s == 13 and not a_is_in_hand.is_set():
                    a_is_in_hand.set()
                    time.sleep(3.0)  # until its process is gone
                    return
                if spec.stream_id == "poison" and frame.start_s == 12:
                    assert a_is_in_hand.wait(30)
                yield frame

    supervisor = stage.open(Both(stage.root))
    for stream_id in ("a", "poison", "b"):
        supervisor.add_stream(stream_id, "400")
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
    monkeypatch.setattr(workers, "in_hand", lambda place: {"a": (0.0,)})
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


def charge_that_ended(*places_s: tuple[float, ...]) -> Charge:
    """A stream that workers had in hand there when they ended, one after the other."""
    charge = Charge("a")
    for number, positions_s in enumerate(places_s):
        charge.suspect(Spot("encode-0", None, lost_at=1.0 + number), positions_s)
    return charge


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
    places_s: list[tuple[float, ...]], is_poisoned: bool
) -> None:
    assert charge_that_ended(*places_s).is_poisoned == is_poisoned


def test_a_stream_is_acquitted_when_it_has_come_further() -> None:
    charge = charge_that_ended((13.0, 17.0), (13.0,))
    charge.note_committed(13.0)
    assert charge.tried_at is not None
    charge.note_committed(14.0)
    assert (charge.tried_at, charge.num_ended) == (None, 0)
