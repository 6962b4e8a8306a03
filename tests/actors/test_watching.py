"""Watches of streams that are ingested: whatever dies on the way, each change is told once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from stage import Footage, LocalWorkers, Mortal, Stage, wait_for_end, wait_until

from actors.failures import WorkerLostError
from actors.supervisor import Supervisor
from actors.views import NewWatch
from streamkv.config import ConfidenceConfig, MethodConfig, WatchConfig
from streamkv.errors import (
    QuestionError,
    StreamKVError,
    UnknownStreamError,
    UnknownWatchError,
    WatchError,
    WatchLimitError,
)
from streamkv.store import SegmentPlace
from streamkv.watches import WatchAnswer

SURE = MethodConfig(watch_confidence=ConfidenceConfig())
LENGTH, SEGMENTS = 120, 30


class HeldFootage(Footage):
    """Shows nothing before it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()

    def open(self, *args: Any) -> Any:
        self.go.wait(30)
        yield from super().open(*args)


def told(supervisor: Supervisor, watch_id: str) -> list[tuple[int, str]]:
    (events,) = supervisor.watching.events([(watch_id, -1)], 1000)
    assert events is not None
    return [(event.body["segment"], event.body["answer"]) for event in events]


def expected(every: int) -> list[tuple[int, str]]:
    """What `stage.ask` answers, where that changes."""
    return [(no, str(no // every)) for no in range(0, SEGMENTS, every)]


def watched(stage: Stage, workers: LocalWorkers) -> tuple[Supervisor, str, str]:
    """A stream of 30 segments with a watch that changes at each, and one at every third; neither is asked yet."""
    supervisor = stage.open(workers, method=SURE)
    supervisor.add_stream("a", str(LENGTH))
    each, _ = supervisor.watching.add(NewWatch("a", "every 1"))
    third, _ = supervisor.watching.add(NewWatch("a", "every 3"))
    return supervisor, each.watch_id, third.watch_id


def test_watches_hear_every_segment_and_tell_each_change_once(stage: Stage) -> None:
    footage = HeldFootage()
    supervisor, each, third = watched(stage, LocalWorkers(stage.root, footage))
    never = supervisor.watching.add(NewWatch("a", "never"))[0]
    footage.go.set()
    wait_for_end(supervisor)
    stage.check({"a": LENGTH})
    assert told(supervisor, each) == expected(1)
    assert told(supervisor, third) == expected(3)
    view = supervisor.watching.one(never.watch_id)
    assert (view.num_events, view.answer, view.segment_no) == (0, "", SEGMENTS - 1)
    assert supervisor.watching.one(third).answer == "9"
    (page,) = supervisor.watching.events([(third, 2)], 2)
    assert page is not None
    assert [event.body["segment"] for event in page] == [3, 6]
    assert page[0].body["start_s"] == 12.0
    assert supervisor.stats()["watch_answers"] == 3 * SEGMENTS


class DyingWorkers(LocalWorkers):
    """Its prefiller dies around commits of these numbers: before, when the file is written, or after, unheard."""

    def __init__(self, *args: Any, before: set[int], after: set[int]) -> None:
        super().__init__(*args)
        self.before, self.after = before, after
        self.deaths = 0

    def commit(self, store: Mortal) -> Callable[[SegmentPlace, Sequence[WatchAnswer]], bool]:
        send = super().commit(store)

        def commit(place: SegmentPlace, answers: Sequence[WatchAnswer]) -> bool:
            if place.segment_no in self.before:
                self.before.remove(place.segment_no)
                self._die()
            is_new = send(place, answers)
            if place.segment_no in self.after:
                self.after.remove(place.segment_no)
                self._die()
            return is_new

        return commit

    def _die(self) -> None:
        self.deaths += 1
        self.prefillers[0].kill()
        raise WorkerLostError("died")


def test_a_prefiller_that_dies_between_write_and_commit_loses_and_repeats_no_event(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actors.placement.BACKOFF_S", 0.01)
    footage = HeldFootage()
    workers = DyingWorkers(stage.root, footage, before={0, 9, 10}, after={6, 29})
    supervisor, each, third = watched(stage, workers)
    footage.go.set()
    wait_for_end(supervisor, 60)
    assert workers.deaths == 5
    stage.check({"a": LENGTH})
    assert told(supervisor, each) == expected(1)
    assert told(supervisor, third) == expected(3)


@pytest.mark.parametrize("who", ["decoders", "stores"])
def test_other_workers_that_die_lose_and_repeat_no_event(stage: Stage, who: str) -> None:
    footage = HeldFootage()
    footage.pace_s = 0.002
    workers = LocalWorkers(stage.root, footage)
    supervisor, each, third = watched(stage, workers)
    footage.go.set()
    for _ in range(3):
        done = supervisor.stream("a").num_segments
        wait_until(lambda done=done: supervisor.stream("a").num_segments > done or done == SEGMENTS)
        getattr(workers, who)[0].kill()
    wait_for_end(supervisor)
    assert told(supervisor, each) == expected(1)
    assert told(supervisor, third) == expected(3)


def test_watches_outlive_their_supervisor(stage: Stage) -> None:
    footage = HeldFootage()
    footage.pace_s = 0.004
    first, each, third = watched(stage, LocalWorkers(stage.root, footage))
    footage.go.set()
    wait_until(lambda: len(told(first, each)) > 4)
    second = stage.open(LocalWorkers(stage.root, Footage()))
    wait_for_end(second)
    assert told(second, each) == expected(1)
    assert told(second, third) == expected(3)


def test_watches_come_and_go_while_their_stream_runs(stage: Stage) -> None:
    supervisor = stage.open(LocalWorkers(stage.root, Footage(pace_s=0.003)), method=SURE)
    supervisor.add_stream("a", "400")
    wait_until(lambda: supervisor.stream("a").num_segments > 2)
    before = supervisor.stream("a").num_segments
    one = supervisor.watching.add(NewWatch("a", "every 1"))[0].watch_id
    after = supervisor.stream("a").num_segments
    other = supervisor.watching.add(NewWatch("a", "every 1"))[0].watch_id
    wait_until(lambda: len(told(supervisor, one)) > 2)
    supervisor.watching.remove(other)
    wait_for_end(supervisor)
    heard = [no for no, _ in told(supervisor, one)]
    assert heard == list(range(heard[0], 100))
    assert before <= heard[0] <= after + 2, "from the next one that is prefilled on"
    assert [view.watch_id for view in supervisor.watching.all("a")] == [one]
    answered = supervisor.stats()["watch_answers"]
    assert answered < 2 * len(heard), "one that is removed is asked no more"


def test_a_prefiller_that_cannot_be_told_now_is_told_later(stage: Stage) -> None:
    footage = HeldFootage()
    workers = LocalWorkers(stage.root, footage)
    supervisor = stage.open(workers, method=SURE)
    supervisor.add_stream("a", str(LENGTH))
    wait_until(lambda: supervisor.stream("a").state == "ingesting")
    workers.prefillers[0].is_away = True
    watch = supervisor.watching.add(NewWatch("a", "every 1"))[0].watch_id
    workers.prefillers[0].is_away = False
    wait_until(lambda: "a" in workers.prefillers[0].instance._watches)
    wait_until(lambda: len(workers.prefillers[0].instance._watches["a"]) == 1)
    footage.go.set()
    wait_for_end(supervisor)
    assert told(supervisor, watch) == expected(1)


@pytest.mark.parametrize(
    ("new", "error", "words"),
    [
        (NewWatch("nobody", "every 1"), UnknownStreamError, "nobody"),
        (NewWatch("a", "  "), QuestionError, "no text"),
        (NewWatch("a", "x" * 4001), QuestionError, "allowed 4000"),
        (NewWatch("a", "every 1", min_confidence=1.5), WatchError, "allowed 0 to 1"),
        (NewWatch("a", "every 1", min_confidence=float("nan")), WatchError, "allowed 0 to 1"),
        (NewWatch("a", "every 1", url="ftp://b"), WatchError, "allowed http"),
        (NewWatch("a", "every 1", url="http://b", secret="hunter2"), WatchError, "24 to 64 bytes"),
        (NewWatch("a", "every 1", secret="whsec_x"), WatchError, "without a url"),
        (NewWatch("over", "every 1"), WatchLimitError, "is done"),
    ],
)
def test_what_is_no_watch_is_refused(
    refusing: Supervisor, new: NewWatch, error: type[StreamKVError], words: str
) -> None:
    with pytest.raises(error, match=words) as caught:
        refusing.watching.add(new)
    assert "hunter2" not in str(caught.value)
    assert refusing.watching.all() == []


@pytest.fixture
def refusing(stage: Stage) -> Supervisor:
    """With a stream that runs, and one that is over."""
    footage = Footage()
    supervisor = stage.open(LocalWorkers(stage.root, footage), method=SURE)
    supervisor.add_stream("over", "4")
    wait_for_end(supervisor)
    footage.pace_s = 0.1
    supervisor.add_stream("a", "1000")
    return supervisor


def test_a_model_that_does_not_say_how_sure_it_is_has_no_least_confidence(stage: Stage) -> None:
    supervisor = stage.open(
        LocalWorkers(stage.root, Footage(pace_s=0.1)), watch=WatchConfig(max_per_stream=2)
    )
    supervisor.add_stream("a", "1000")
    with pytest.raises(WatchError, match="leave it out"):
        supervisor.watching.add(NewWatch("a", "every 1", min_confidence=0.5))
    assert supervisor.watching.add(NewWatch("a", "every 1"))[0].min_confidence == 0
    supervisor.watching.add(NewWatch("a", "every 1", min_confidence=0))
    with pytest.raises(WatchLimitError, match=r"has 2 watches, allowed are 2"):
        supervisor.watching.add(NewWatch("a", "every 1"))


def test_a_secret_is_said_once_and_shown_nowhere(stage: Stage) -> None:
    supervisor = stage.open(LocalWorkers(stage.root, Footage(pace_s=0.1)), method=SURE)
    supervisor.add_stream("a", "1000")
    new = NewWatch("a", "every 1", url="http://bob:hunter2@127.0.0.1:9/hook?key=hunter2")
    view, secret = supervisor.watching.add(new)
    assert secret.startswith("whsec_")
    assert view.webhook == "http://127.0.0.1:9/***"
    again, none = supervisor.watching.add(NewWatch("a", "every 1", url="http://127.0.0.1:9", secret=secret))
    assert none == "", "the asker knows it"
    shown = f"{view} {again} {supervisor.watching.all()} {new} {supervisor._ready().watches_of('a')}"
    assert "hunter2" not in shown
    assert secret not in shown


def test_a_removed_stream_takes_its_watches_with_it(stage: Stage) -> None:
    supervisor = stage.open(LocalWorkers(stage.root, Footage(pace_s=0.002)), method=SURE)
    supervisor.add_stream("a", "4000")
    watch = supervisor.watching.add(NewWatch("a", "every 1"))[0].watch_id
    wait_until(lambda: len(told(supervisor, watch)) > 1)
    supervisor.remove_stream("a")
    assert supervisor.watching.all() == []
    assert supervisor.watching.events([(watch, -1)], 10) == [None]
    with pytest.raises(UnknownWatchError):
        supervisor.watching.remove(watch)
    with pytest.raises(UnknownStreamError):
        supervisor.watching.all("a")
