"""Pools that grow and shrink while it is ingested: streams move, and nothing of them is lost or committed twice."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
from segment_contents import segment_contents
from stage import CountingEngine, Footage, LocalWorkers, Mortal, Stage, states, wait_for_end, wait_until

from actors.failures import SilentError, WorkerLostError
from actors.messages import StreamSpec
from actors.supervisor import Supervisor
from actors.views import PoolView
from streamkv.config import IngestConfig, PoolConfig
from streamkv.errors import CapacityError, ConfigError
from streamkv.grid import OnGap
from streamkv.store import SegmentStore
from streamkv.types import Frame


class Reel(Footage):
    """Stops before frame 12 until it may go on: by then a stream has three segments."""

    def __init__(self) -> None:
        super().__init__()
        self.goes_on = threading.Event()

    def open(self, spec: StreamSpec, on_gap: OnGap) -> Iterator[Frame]:
        for frame in super().open(spec, on_gap):
            if frame.start_s >= 12:
                assert self.goes_on.wait(60)
            yield frame


def pool_of(supervisor: Supervisor, name: str) -> PoolView:
    return next(pool for pool in supervisor.pools() if pool.name == name)


def loads(supervisor: Supervisor, name: str = "encode") -> list[int]:
    """Streams of each worker that is up."""
    return sorted(w.streams for w in pool_of(supervisor, name).workers if w.state == "up")


def feeds(workers: list[Mortal]) -> list[int]:
    """Sessions that each worker that was not dismissed says it has."""
    return sorted(len(w.instance.status().feeds) for w in workers if not w.is_dismissed)


def engine_of(prefiller: Mortal) -> CountingEngine:
    engine = prefiller.instance._started().engine
    assert isinstance(engine, CountingEngine)
    return engine


def add_all(supervisor: Supervisor, lengths: dict[str, int]) -> None:
    for stream_id, count in lengths.items():
        supervisor.add_stream(stream_id, str(count))
    wait_until(lambda: all(view.num_segments > 1 for view in supervisor.streams()))


def settled(supervisor: Supervisor) -> bool:
    """Whether every stream is where it is to be, and every worker that is there is to stay."""
    sizes = all(len(pool.workers) == pool.size for pool in supervisor.pools())
    is_shared = not any(spot.is_new for pool in supervisor._staff.pools for spot in pool.spots)
    charges = supervisor._charges.values()
    return sizes and is_shared and all(c.epoch and not c.is_moving and not c.is_busy for c in charges)


@pytest.mark.parametrize("pool", ["encode", "prefill"])
def test_a_newcomer_gets_its_share_by_the_fewest_moves(stage: Stage, pool: str) -> None:
    reel = Reel()
    workers = LocalWorkers(stage.root, reel)
    supervisor = stage.open(workers)
    lengths = dict.fromkeys("abcde", 30)
    add_all(supervisor, lengths)
    supervisor.scale({pool: 2})
    wait_until(lambda: loads(supervisor, pool) == [2, 3] and settled(supervisor))
    totals = supervisor.stats()
    assert (totals["handovers"], totals["sessions"]) == (2, 5 + 2), "the others stay as they are"
    opened = Counter(engine_of(worker).opened for worker in workers.prefillers)
    assert opened == ({5: 1, 2: 1} if pool == "prefill" else {5: 1}), "a window stays where it is"
    assert {view.restarts for view in supervisor.streams()} == {0}
    reel.goes_on.set()
    wait_for_end(supervisor)
    stage.check(lengths)


def test_leaving_workers_hand_their_streams_over_and_end(stage: Stage) -> None:
    reel = Reel()
    workers = LocalWorkers(stage.root, reel)
    supervisor = stage.open(workers, encode=PoolConfig(actors=3), prefill=PoolConfig(actors=2))
    lengths = dict.fromkeys("abcdef", 30)
    add_all(supervisor, lengths)
    assert feeds(workers.decoders) == [2, 2, 2]
    supervisor.scale({"encode": 1, "prefill": 1})
    wait_until(lambda: sorted(w.is_dismissed for w in workers.decoders) == [False, True, True])
    wait_until(lambda: sorted(w.is_dismissed for w in workers.prefillers) == [False, True])
    wait_until(lambda: settled(supervisor))
    assert feeds(workers.decoders) == [6]
    assert {view.restarts for view in supervisor.streams()} == {0}
    reel.goes_on.set()
    wait_for_end(supervisor)
    stage.check(lengths)


def test_moved_streams_have_the_files_of_unmoved_ones(stage: Stage) -> None:
    """Each stream is moved to and fro while it runs; its bytes are those of one that was left alone."""
    workers = LocalWorkers(stage.root, Footage(pace_s=0.04))
    supervisor = stage.open(workers)
    add_all(supervisor, dict.fromkeys("abc", 80))
    for encode, prefill in ((2, 1), (1, 2)):
        supervisor.scale({"encode": encode, "prefill": prefill})
        wait_until(lambda e=encode: pool_of(supervisor, "encode").size == e and settled(supervisor))
    wait_for_end(supervisor)
    assert supervisor.stats()["handovers"] >= 2
    workers.footage.pace_s = 0
    supervisor.add_stream("unmoved", "80")
    wait_for_end(supervisor)
    stage.check(dict.fromkeys([*"abc", "unmoved"], 80))
    with SegmentStore.open(stage.root, read_only=True) as store:
        unmoved = segment_contents(store, "unmoved")
        assert all(segment_contents(store, stream_id) == unmoved for stream_id in "abc")


@pytest.mark.parametrize("seed", range(2))
def test_workers_that_die_while_streams_move_cost_no_segment(stage: Stage, seed: int) -> None:
    workers = LocalWorkers(stage.root, Footage(pace_s=0.02))
    supervisor = stage.open(workers, encode=PoolConfig(actors=2))
    lengths = dict.fromkeys("abcd", 80)
    add_all(supervisor, lengths)
    rng = np.random.default_rng(seed)
    for encode, prefill in ((3, 2), (1, 1), (2, 2)):
        supervisor.scale({"encode": encode, "prefill": prefill})
        time.sleep(rng.random() * 0.3)  # anywhere within the handover
        victims = [w for w in (*workers.decoders, *workers.prefillers) if not w.is_dismissed]
        victims[rng.integers(len(victims))].kill()
    wait_for_end(supervisor)
    stage.check(lengths)


def test_a_size_that_was_set_is_that_of_the_next_supervisor(stage: Stage) -> None:
    first = stage.open(LocalWorkers(stage.root, Footage()))
    assert [(p.size, p.is_set) for p in first.scale({"encode": 2})] == [(2, True), (1, False)]
    first.shutdown()
    second = stage.open(LocalWorkers(stage.root, Footage()))
    assert [len(p.workers) for p in second.pools()] == [2, 1]
    second.scale({"encode": 0})
    wait_until(lambda: len(pool_of(second, "encode").workers) == 1)
    assert not pool_of(second, "encode").is_set


@pytest.mark.parametrize("sizes", [{"encode": -1}, {"decode": 2}, {"encode": 1_000_000}])
def test_a_size_that_cannot_be_is_refused(stage: Stage, sizes: dict[str, int]) -> None:
    supervisor = stage.open(LocalWorkers(stage.root, Footage()))
    with pytest.raises(ConfigError, match="allowed are encode and prefill"):
        supervisor.scale(sizes)
    assert [p.size for p in supervisor.pools()] == [1, 1]


def test_a_worker_that_does_not_start_says_why_and_joins_when_it_does(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actors.pools.RETRY_S", 0.05)
    reel = Reel()
    workers = LocalWorkers(stage.root, reel)
    supervisor = stage.open(workers)
    add_all(supervisor, {"a": 20, "b": 20})
    make, is_broken = workers.decoder, threading.Event()
    is_broken.set()

    def decoder(name: str) -> Mortal:
        mortal = make(name)
        load = mortal.instance._load

        def refuse() -> object:
            if is_broken.is_set():
                raise RuntimeError("no GPU here")
            return load()

        mortal.instance._load = refuse
        return mortal

    supervisor._staff.encode._make = decoder
    supervisor.scale({"encode": 2})
    wait_until(lambda: any("no GPU here" in w.detail for w in pool_of(supervisor, "encode").workers))
    assert loads(supervisor) == [2], "nobody waits for it"
    is_broken.clear()
    wait_until(lambda: loads(supervisor) == [1, 1])
    reel.goes_on.set()
    wait_for_end(supervisor)
    stage.check({"a": 20, "b": 20})


# ---------------------------------------------------------------- workers that are lost for good


@pytest.mark.parametrize(("failure", "away_s"), [(SilentError, 0.3), (WorkerLostError, 600.0)])
def test_streams_of_a_worker_that_stays_away_go_to_the_others_and_are_shared_when_it_is_back(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, failure: type[WorkerLostError], away_s: float
) -> None:
    """At once where its process has ended."""
    monkeypatch.setattr("actors.pools.AWAY_S", away_s)
    reel = Reel()
    workers = LocalWorkers(stage.root, reel)
    supervisor = stage.open(workers, encode=PoolConfig(actors=2), prefill=PoolConfig(actors=2))
    lengths = dict.fromkeys("abcd", 40)
    add_all(supervisor, lengths)
    lost = (workers.decoders[0], workers.prefillers[1])
    for worker in lost:
        worker.failure, worker.is_away = failure, True
    wait_until(lambda: loads(supervisor) == loads(supervisor, "prefill") == [4])
    wait_until(lambda: all(charge.epoch for charge in supervisor._charges.values()))
    assert feeds(workers.decoders[1:]) == [4]
    for worker in lost:
        worker.is_away = False
    wait_until(lambda: loads(supervisor) == loads(supervisor, "prefill") == [2, 2])
    wait_until(lambda: settled(supervisor))
    wait_until(lambda: feeds(workers.decoders) == [2, 2])  # what it had and has no more, it has forgotten
    wait_until(lambda: sorted(len(w.instance.status().windows) for w in workers.prefillers) == [2, 2])
    reel.goes_on.set()
    wait_for_end(supervisor)
    stage.check(lengths)


# ---------------------------------------------------------------- by load


def test_a_pool_with_a_range_grows_while_it_is_busy_and_shrinks_when_it_is_not(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy = [1.0]
    monkeypatch.setattr("actors.load.ROUND_S", 0.05)
    monkeypatch.setattr("actors.pools.work_s", lambda totals, cpus: busy[0] * time.monotonic())
    reel = Reel()
    supervisor = stage.open(LocalWorkers(stage.root, reel), encode=PoolConfig(actors=1, max_actors=2))
    lengths = dict.fromkeys("abc", 20)
    add_all(supervisor, lengths)
    wait_until(lambda: loads(supervisor) == [1, 2])
    assert pool_of(supervisor, "prefill").size == 1, "it has no range"
    busy[0] = 0.0
    wait_until(lambda: len(pool_of(supervisor, "encode").workers) == 1)
    reel.goes_on.set()
    wait_for_end(supervisor)
    stage.check(lengths)


# ---------------------------------------------------------------- admission


def test_a_stream_that_does_not_fit_is_refused_with_the_figures(stage: Stage) -> None:
    reel = Reel()
    supervisor = stage.open(LocalWorkers(stage.root, reel), ingest=IngestConfig(max_streams_per_decoder=2))
    supervisor.add_stream("a", "20")
    supervisor.add_stream("b", "4")
    with pytest.raises(CapacityError, match=r"2 are ingested, and 1 decoders hold 2 .*--encode 2"):
        supervisor.add_stream("c", "40")
    assert sorted(states(supervisor)) == ["a", "b"]
    wait_until(lambda: supervisor.stream("b").state == "done")
    supervisor.add_stream("c", "20")
    supervisor.scale({"encode": 2})
    supervisor.add_stream("d", "20")
    with pytest.raises(CapacityError, match="3 streams are ingested, and 1 decoders hold 2"):
        supervisor.scale({"encode": 1})
    assert pool_of(supervisor, "encode").size == 2
    reel.goes_on.set()
    wait_for_end(supervisor)
    stage.check({"a": 20, "b": 4, "c": 20, "d": 20})


def test_a_refused_source_takes_no_place(stage: Stage) -> None:
    supervisor = stage.open(
        LocalWorkers(stage.root, Footage()), ingest=IngestConfig(max_streams_per_decoder=1)
    )
    for _ in range(3):
        with pytest.raises(ValueError, match="invalid literal"):
            supervisor.add_stream("a", "no number")
    supervisor.add_stream("a", "4")


def test_streams_that_do_not_fit_wait_in_turn_and_say_why(stage: Stage) -> None:
    held = threading.Event()

    class Held(Footage):
        def open(self, spec: StreamSpec, on_gap: OnGap) -> Iterator[Frame]:
            assert spec.stream_id == "a" or held.wait(30)
            yield from super().open(spec, on_gap)

    footage = Held(pace_s=0.001)
    queue = IngestConfig(max_streams_per_decoder=2, when_full="queue")
    supervisor = stage.open(LocalWorkers(stage.root, footage), ingest=queue)
    lengths = {"a": 40, "b": 40, "c": 8, "d": 8}
    for stream_id, count in lengths.items():
        supervisor.add_stream(stream_id, str(count))
    wait_until(lambda: "waits for a place" in supervisor.stream("d").detail)
    assert supervisor.stream("d").state == "registered"
    assert "1 decoders hold 2 streams each" in supervisor.stream("d").detail
    wait_until(lambda: states(supervisor)["c"] == "ingesting")
    assert states(supervisor)["d"] == "registered", "a is done, and c was first"
    supervisor.scale({"encode": 2})
    wait_until(lambda: states(supervisor)["d"] == "ingesting")
    held.set()
    wait_for_end(supervisor)
    stage.check(lengths)


def test_a_plane_that_is_too_small_for_its_streams_takes_them_in_turn(stage: Stage) -> None:
    """As after a restart with a smaller limit: nothing is refused that was taken in."""
    first = stage.open(LocalWorkers(stage.root, Footage(pace_s=0.01)))
    lengths = dict.fromkeys("abc", 60)
    add_all(first, lengths)
    first.shutdown()
    footage = Footage(pace_s=0.001)
    second = stage.open(LocalWorkers(stage.root, footage), ingest=IngestConfig(max_streams_per_decoder=1))
    wait_until(lambda: "waits for a place" in second.stream("c").detail or second.stream("c").state == "done")
    wait_for_end(second)
    stage.check(lengths)


# ---------------------------------------------------------------- poison


def test_a_stream_that_ends_its_decoder_is_not_moved_to_another_ones_neighbours(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pool grows while it is on trial: the newcomer gets others, and only the old decoder dies of it."""
    monkeypatch.setattr("actors.placement.BACKOFF_S", 0.02)
    monkeypatch.setattr("actors.placement.PROBATION_S", 0.1)
    monkeypatch.setattr("actors.placement.TRIAL_S", 0.1)
    held = threading.Event()

    class Deadly(Footage):
        def open(self, spec: StreamSpec, on_gap: OnGap) -> Iterator[Frame]:
            if spec.stream_id == "poison":
                time.sleep(0.05)
                workers.decoders[0].kill()
            held.wait(30)
            yield from super().open(spec, on_gap)

    workers = LocalWorkers(stage.root, Deadly())
    supervisor = stage.open(workers)
    for stream_id in ("a", "b", "poison", "c"):
        supervisor.add_stream(stream_id, "40")
    wait_until(lambda: supervisor._charges["poison"].is_suspect)
    supervisor.scale({"encode": 2})
    wait_until(lambda: supervisor.stream("poison").state == "failed", 60)
    assert "set aside" in supervisor.stream("poison").detail
    assert [d.lives for d in workers.decoders] == [workers.decoders[0].lives, 1]
    held.set()
    wait_for_end(supervisor)
    stage.check({"a": 40, "b": 40, "c": 40})
