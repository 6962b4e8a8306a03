"""Streams come to their end whatever dies on the way, and no committed segment is lost or doubled."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from stage import (
    IDENTITY,
    SOURCE,
    Footage,
    LastingWorkers,
    LocalWorkers,
    MeanEncoder,
    Mortal,
    Stage,
    states,
    wait_for_end,
    wait_until,
)

from actors.failures import NotReadyError
from actors.supervisor import Supervisor
from pipeline.schemas import Stream
from pipeline.show import waiting_text
from streamkv.config import CompressConfig, MethodConfig, PoolConfig
from streamkv.errors import ConfigError, StreamExistsError, StreamIdError, UnknownStreamError
from streamkv.store import SegmentPlace, SegmentStore
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
