"""A stream is ingested again beside what it has, which answers until the new is whole, whatever dies on the way."""

from __future__ import annotations

import pytest
from stage import Footage, LocalWorkers, MeanEncoder, Stage, states, wait_for_end, wait_until

from actors.supervisor import Supervisor
from actors.views import Reencoding
from streamkv.config import CompressConfig, MethodConfig
from streamkv.errors import ConfigError, LegalHoldError, SourceError, StoreError, UnknownStreamError
from streamkv.store import SegmentStore

SIGNS = Reencoding(guidance="what signs say")
LENGTH = 80


@pytest.fixture
def workers(stage: Stage) -> LocalWorkers:
    return LocalWorkers(stage.root, Footage(pace_s=0.001))


@pytest.fixture
def supervisor(stage: Stage, workers: LocalWorkers) -> Supervisor:
    """With a stream `a` that is done."""
    made = stage.open(workers)
    made.add_stream("a", str(LENGTH), "faces", "acme", 3)
    wait_for_end(made)
    return made


def folders(stage: Stage) -> list[str]:
    return sorted(path.name for path in stage.root.glob("streams/*"))


def until_switched(supervisor: Supervisor) -> None:
    wait_until(lambda: supervisor.stream("a").next is None)


def test_questions_read_the_old_until_the_new_is_whole(
    stage: Stage, workers: LocalWorkers, supervisor: Supervisor
) -> None:
    workers.footage.pace_s = 0.004
    with SegmentStore.open(stage.root, read_only=True) as store:
        reader = store.reader("a")
        before = [reader.snapshot._file(no).path for no in range(LENGTH // 4)]
        view = supervisor.reencode("a", Reencoding(guidance="what signs say", keep_ratio=0.25))
        assert (view.state, view.guidance, view.num_segments) == ("done", "faces", LENGTH // 4)
        assert view.next is not None
        assert (view.next.guidance, view.next.keep_ratio, view.next.duration_s) == (
            "what signs say",
            0.25,
            LENGTH,
        )
        wait_until(lambda: (now := supervisor.stream("a").next) is not None and now.num_segments > 2)
        assert [v.stream_id for v in supervisor.streams()] == ["a"]
        assert [reader.refresh()._file(no).path for no in range(LENGTH // 4)] == before
        until_switched(supervisor)
        after = [reader.refresh()._file(no).path for no in range(LENGTH // 4)]
        assert not set(after) & set(before)
        assert not any(path.exists() for path in before)
    view = supervisor.stream("a")
    assert (view.stream_id, view.guidance, view.keep_ratio, view.tenant, view.priority) == (
        "a",
        "what signs say",
        0.25,
        "acme",
        3,
    )
    engine = workers.prefillers[0].instance._started().engine
    assert (engine.heard, engine.kept) == ({"faces", "what signs say"}, {0.0, 0.25})
    assert len(folders(stage)) == 1
    stage.check({"a": LENGTH})


def test_what_is_not_named_stays_as_it_is(workers: LocalWorkers, supervisor: Supervisor) -> None:
    supervisor.reencode("a", Reencoding(keep_ratio=0.5))
    until_switched(supervisor)
    supervisor.reencode("a", Reencoding(guidance=" "))
    until_switched(supervisor)
    view = supervisor.stream("a")
    assert (view.guidance, view.keep_ratio) == ("", 0.5)


@pytest.mark.parametrize("name", ["decoders", "prefillers", "stores"])
def test_it_goes_on_when_a_worker_dies(
    stage: Stage, workers: LocalWorkers, supervisor: Supervisor, name: str
) -> None:
    workers.footage.pace_s = 0.004
    supervisor.reencode("a", SIGNS)
    wait_until(lambda: (now := supervisor.stream("a").next) is not None and now.num_segments > 3)
    getattr(workers, name)[0].kill()
    until_switched(supervisor)
    assert supervisor.stream("a").guidance == "what signs say"
    stage.check({"a": LENGTH})


def test_a_new_supervisor_goes_on_with_it(
    stage: Stage, workers: LocalWorkers, supervisor: Supervisor
) -> None:
    workers.footage.pace_s = 0.004
    supervisor.reencode("a", SIGNS)
    wait_until(lambda: (now := supervisor.stream("a").next) is not None and now.num_segments > 3)
    later = LocalWorkers(stage.root, Footage())
    second = stage.open(later)
    until_switched(second)
    assert min(seen[0] for seen in later.footage.decoded.values()) > 4, "it does not begin at the beginning"
    assert second.stream("a").guidance == "what signs say"
    stage.check({"a": LENGTH})


def test_a_new_supervisor_puts_what_is_whole_in_its_place(
    stage: Stage, workers: LocalWorkers, supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old one stops between the last commit and the switch."""
    monkeypatch.setattr(supervisor._switching, "try_all", lambda store: None)
    supervisor.reencode("a", SIGNS)
    wait_until(lambda: (now := supervisor.stream("a").next) is not None and now.state == "done")
    supervisor.shutdown()
    later = LocalWorkers(stage.root, Footage())
    second = stage.open(later)
    until_switched(second)
    assert later.footage.decoded == {}, "nothing is ingested once more"
    assert second.stream("a").guidance == "what signs say"
    stage.check({"a": LENGTH})


def test_cancelling_leaves_the_old_untouched(
    stage: Stage, workers: LocalWorkers, supervisor: Supervisor
) -> None:
    before, files = supervisor.stream("a"), sorted(stage.root.glob("streams/a/*"))
    with pytest.raises(StoreError, match="nothing to cancel"):
        supervisor.cancel_reencode("a")
    workers.footage.pace_s = 0.01
    supervisor.reencode("a", SIGNS)
    with pytest.raises(StoreError, match="being encoded again already"):
        supervisor.reencode("a", SIGNS)
    wait_until(lambda: (now := supervisor.stream("a").next) is not None and now.num_segments > 1)
    assert supervisor.cancel_reencode("a") == before
    assert sorted(stage.root.glob("streams/*/*")) == files
    stage.check({"a": LENGTH})


def test_one_that_fails_leaves_the_old_and_makes_way(stage: Stage) -> None:
    encoder = MeanEncoder()
    workers = LocalWorkers(stage.root, Footage(), encoder)
    supervisor = stage.open(workers)
    supervisor.add_stream("a", "40")
    wait_for_end(supervisor)
    encoder.poison = {17}
    supervisor.reencode("a", SIGNS)
    wait_until(lambda: (now := supervisor.stream("a").next) is not None and now.state == "failed")
    coming = supervisor.stream("a").next
    assert coming is not None
    assert "cannot be encoded" in coming.detail
    assert states(supervisor) == {"a": "done"}
    stage.check({"a": 40})
    encoder.poison = set()
    supervisor.reencode("a", SIGNS)
    until_switched(supervisor)
    assert supervisor.stream("a").guidance == "what signs say"
    stage.check({"a": 40})


def test_removing_a_stream_ends_what_was_to_take_its_place(
    stage: Stage, workers: LocalWorkers, supervisor: Supervisor
) -> None:
    workers.footage.pace_s = 0.01
    supervisor.reencode("a", SIGNS)
    wait_until(lambda: (now := supervisor.stream("a").next) is not None and now.num_segments > 1)
    supervisor.remove_stream("a")
    assert supervisor.streams() == []
    assert list(stage.root.glob("streams/*/*")) == []
    assert supervisor.stats()["active_streams"] == 0


def test_a_hold_keeps_the_old_in_its_place(
    stage: Stage, workers: LocalWorkers, supervisor: Supervisor
) -> None:
    workers.footage.pace_s = 0.004
    supervisor.reencode("a", SIGNS)
    with SegmentStore.open(stage.root, read_only=False) as store:
        store.hold("a", "case 7")
        wait_until(lambda: (now := supervisor.stream("a").next) is not None and "on legal hold" in now.detail)
        assert supervisor.stream("a").guidance == "faces"
        with pytest.raises(LegalHoldError):
            supervisor.reencode("a", SIGNS)
        store.release("a")
    until_switched(supervisor)
    assert supervisor.stream("a").guidance == "what signs say"


@pytest.mark.parametrize(
    ("new", "error", "message"),
    [
        (Reencoding(model="/models/other"), ConfigError, "a store is of one model"),
        (Reencoding(keep_ratio=1.5), ConfigError, "keep_ratio: got 1.5"),
        (Reencoding(keep_ratio=1.0), ConfigError, "keep_ratio 1 keeps every frame"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    supervisor: Supervisor, new: Reencoding, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        supervisor.reencode("a", new)
    assert supervisor.stream("a").next is None


def test_streams_that_cannot_be_encoded_again_are_refused(stage: Stage, workers: LocalWorkers) -> None:
    keeps_all = MethodConfig(compress=CompressConfig(policy="none"))
    supervisor = stage.open(workers, method=keeps_all)
    with SegmentStore.open(stage.root) as store:
        store.add_stream("camera", "rtsp://camera/8", {"is_live": True})
        store.add_stream("lost", "")
        for name in ("camera", "lost"):
            store.set_state(name, "stopped")
    workers.footage.pace_s = 0.01
    supervisor.add_stream("busy", "400")
    refused: list[tuple[str, Reencoding, type[Exception], str]] = [
        ("nobody", Reencoding(), UnknownStreamError, "unknown; known: busy, camera, lost"),
        ("camera", Reencoding(), SourceError, "a live source, whose footage is not kept"),
        ("lost", Reencoding(), SourceError, "nobody knows its source"),
        ("busy", Reencoding(), StoreError, "cannot be encoded again yet"),
        ("busy", SIGNS, ConfigError, "keeps every frame"),
        ("busy", Reencoding(keep_ratio=0.5), ConfigError, "keeps every frame"),
    ]
    for name, new, error, message in refused:
        with pytest.raises(error, match=message):
            supervisor.reencode(name, new)
    assert all(view.next is None for view in supervisor.streams())
