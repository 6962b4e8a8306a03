"""Streams for which there is no room: they pause, others go on, and they resume when there is some."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_disk import leave_free, small_disk
from stage import Footage, LocalWorkers, Stage, states, wait_for_end, wait_until

from actors.supervisor import Supervisor
from streamkv.config import AgeingStep, RetentionConfig
from streamkv.errors import LegalHoldError
from streamkv.store import SegmentStore

SEGMENT_BYTES = 4_000
"""More than a segment of the stage takes."""


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.placement.PAUSE_S", 0.05)
    monkeypatch.setattr("actors.placement.MAX_PAUSE_S", 0.2)


def bytes_of(supervisor: Supervisor, *stream_ids: str) -> int:
    return sum(supervisor.stream(stream_id).file_bytes for stream_id in stream_ids)


def test_stream_pauses_at_its_tenants_limit_and_resumes(stage: Stage) -> None:
    limit = RetentionConfig(tenant_bytes=30 * SEGMENT_BYTES)
    supervisor = stage.open(LocalWorkers(stage.root, Footage(), retention=limit))
    supervisor.add_stream("a", "40", tenant="acme")
    wait_for_end(supervisor)
    supervisor.add_stream("b", "1000", tenant="acme")
    supervisor.add_stream("c", "40", tenant="else")
    wait_until(lambda: states(supervisor) == {"a": "done", "b": "paused", "c": "done"})
    view = supervisor.stream("b")
    assert "tenant 'acme' has" in view.detail
    assert view.num_segments > 0
    assert bytes_of(supervisor, "a", "b") <= limit.tenant_bytes
    before, sessions = view.num_segments, supervisor.stats()["sessions"]
    wait_until(lambda: supervisor._charges["b"].pauses > 3)
    assert supervisor.stats()["sessions"] == sessions  # it is not decoded again and again in vain
    supervisor.remove_stream("a")
    wait_until(lambda: supervisor.stream("b").num_segments > before)
    assert view.restarts == supervisor.stream("b").restarts == 0  # no strike: it does not fail in the end
    stage.check({"c": 40})
    with SegmentStore.open(stage.root, read_only=True) as store:
        assert [problem for problem in store.verify() if problem.kind != "extra"] == []


def test_paused_stream_is_resumed_by_the_next_supervisor(stage: Stage) -> None:
    tight = RetentionConfig(stream_bytes=5 * SEGMENT_BYTES)
    first = stage.open(LocalWorkers(stage.root, Footage(), retention=tight))
    first.add_stream("a", "80")
    wait_until(lambda: states(first) == {"a": "paused"})
    first.shutdown()
    second = stage.open(LocalWorkers(stage.root, Footage()))
    wait_for_end(second)
    stage.check({"a": 80})


def test_oldest_go_while_a_stream_goes_on(stage: Stage) -> None:
    limit = RetentionConfig(stream_bytes=5 * SEGMENT_BYTES, when_full="oldest")
    supervisor = stage.open(LocalWorkers(stage.root, Footage(pace_s=0.001), retention=limit))
    supervisor.add_stream("a", "200")
    wait_for_end(supervisor)
    view = supervisor.stream("a")
    assert (view.state, view.as_of_s) == ("done", 200.0)
    assert 0 < view.file_bytes <= limit.stream_bytes
    assert [(gap.start_s, gap.reason) for gap in view.gaps] == [(0.0, "retention"), (200.0, "the tape ends")]
    with SegmentStore.open(stage.root) as store:
        store.begin_writing("a")
        assert store.verify() == []


def test_stream_resumes_where_its_beginning_was_deleted(stage: Stage) -> None:
    """Its window is made of what is left."""
    limit = RetentionConfig(stream_bytes=5 * SEGMENT_BYTES, when_full="oldest")
    workers = LocalWorkers(stage.root, Footage(pace_s=0.002), retention=limit)
    supervisor = stage.open(workers)
    supervisor.add_stream("a", "300")
    wait_until(lambda: bool(supervisor.stream("a").gaps))
    workers.prefillers[0].kill()
    wait_for_end(supervisor)
    assert supervisor.stream("a").as_of_s == 300.0


# ---------------------------------------------------------------- the disk


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", 4 << 20) as folder:
        yield folder


@pytest.fixture
def on_disk(disk: Path, tmp_path: Path) -> Iterator[Stage]:
    """Its segments lie on a disk of 4 MB."""
    stage = Stage(disk / "store", catalog_url=f"sqlite:///{tmp_path}/catalog.sqlite")
    yield stage
    for supervisor in stage.supervisors:
        supervisor.shutdown()


def test_full_disk_pauses_a_stream_until_there_is_room(on_disk: Stage, disk: Path) -> None:
    workers = LocalWorkers(on_disk.root, Footage(pace_s=0.001), catalog_url=on_disk.catalog_url)
    supervisor = on_disk.open(workers)
    supervisor.add_stream("a", "600")
    wait_until(lambda: supervisor.stream("a").num_segments > 3)
    ballast = leave_free(disk, 30_000)
    wait_until(lambda: states(supervisor) == {"a": "paused"})
    assert "disk full" in supervisor.stream("a").detail
    assert supervisor.stream("a").restarts == 0
    ballast.unlink()
    wait_for_end(supervisor)
    on_disk.check({"a": 600})


def test_full_disk_loses_its_oldest_segments_where_the_policy_says_so(on_disk: Stage, disk: Path) -> None:
    workers = LocalWorkers(
        on_disk.root,
        Footage(pace_s=0.001),
        catalog_url=on_disk.catalog_url,
        retention=RetentionConfig(when_full="oldest"),
    )
    supervisor = on_disk.open(workers)
    supervisor.add_stream("a", "600")
    wait_until(lambda: supervisor.stream("a").num_segments > 10)
    leave_free(disk, 60_000)
    wait_for_end(supervisor)
    view = supervisor.stream("a")
    assert (view.state, view.as_of_s) == ("done", 600.0)
    assert view.gaps[0].reason == "retention"


# ---------------------------------------------------------------- upkeep


def test_old_segments_are_deleted_and_aged_in_the_background(stage: Stage) -> None:
    workers = LocalWorkers(
        stage.root,
        Footage(),
        upkeep_s=0.05,
        ageing=[AgeingStep(0, "int4")],
        retention=RetentionConfig(max_age_s=1.0),
    )
    supervisor = stage.open(workers)
    supervisor.add_stream("a", "40")
    wait_until(lambda: supervisor.stats().get("aged_segments", 0) > 0)
    wait_until(lambda: supervisor.stats()["deleted_segments"] == 10)
    assert (supervisor.stream("a").state, supervisor.stream("a").num_segments) == ("done", 0)
    assert list(stage.root.glob("streams/*/*")) == []


def test_upkeep_ends_with_the_store(stage: Stage) -> None:
    before = set(threading.enumerate())
    supervisor = stage.open(LocalWorkers(stage.root, Footage(), upkeep_s=0.01))
    (thread,) = [new for new in set(threading.enumerate()) - before if new.name == "upkeep"]
    supervisor.shutdown()
    wait_until(lambda: not thread.is_alive())


def test_held_stream_is_not_removed_and_goes_on(stage: Stage) -> None:
    supervisor = stage.open(LocalWorkers(stage.root, Footage(pace_s=0.002)))
    supervisor.add_stream("a", "100")
    with SegmentStore.open(stage.root) as store:
        store.hold("a", "case 4711")
    with pytest.raises(LegalHoldError, match="case 4711"):
        supervisor.remove_stream("a")
    wait_for_end(supervisor)
    assert supervisor.stream("a").legal_hold == "case 4711"
    stage.check({"a": 100})
