"""A feed decodes ahead into a bounded queue, and an end is only what the source says is one."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from stage import Footage, wait_until

import actors.feed as feed_module
from actors.feed import MAX_QUEUE_BYTES, Feed, OpenSource, Turns
from actors.messages import StreamSpec
from actors.timing import StageClock
from streamkv.frame_batches import FrameBatches
from streamkv.grid import OnGap
from streamkv.types import Frame


def feed_from(
    open_source: OpenSource,
    uri: str = "",
    *,
    name: str = "s",
    queue_frames: int = 4,
    size: int = 1,
    turns: Turns | None = None,
) -> Feed:
    return Feed(
        StreamSpec(name, uri, epoch=1),
        open_source,
        batches=FrameBatches(1.0, size),
        queue_frames=queue_frames,
        on_change=lambda: None,
        clock=StageClock(),
        turns=turns,
    )


def feed_of(length: int, footage: Footage, queue_frames: int = 4, size: int = 1) -> Feed:
    return feed_from(footage.open, str(length), queue_frames=queue_frames, size=size)


class Crowd:
    """Sources that note how many of them are read at a time."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self._lock = threading.Lock()

    def open(self, spec: StreamSpec, on_gap: OnGap) -> Iterator[Frame]:
        for k in range(int(spec.uri)):
            with self._lock:
                self.now += 1
                self.most = max(self.most, self.now)
            time.sleep(0.002)
            with self._lock:
                self.now -= 1
            yield Frame(np.zeros((2, 2, 3), np.uint8), float(k), float(k + 1))

    def feeds(self, count: int, length: int, turns: Turns) -> list[Feed]:
        return [
            feed_from(self.open, str(length), name=f"s{i}", queue_frames=length, size=3, turns=turns)
            for i in range(count)
        ]


def test_a_full_queue_stops_the_source_until_there_is_room() -> None:
    footage = Footage()
    feed = feed_of(50, footage)
    feed.start()
    wait_until(lambda: feed.num_queued == 4)
    assert len(footage.decoded["s"]) <= 5
    taken = []
    while not feed.is_exhausted:
        taken += [frame.start_s for frame in feed.take()]
    assert taken == [float(k) for k in range(50)]
    assert [gap.reason for gap in feed.take_gaps()] == ["the tape ends"]


def test_large_frames_fill_the_queue_sooner() -> None:
    size = MAX_QUEUE_BYTES // 2 // 3

    def large(spec: StreamSpec, on_gap: OnGap) -> Iterator[Frame]:
        for k in range(20):
            yield Frame(np.zeros((size // 1000, 1000, 3), np.uint8), float(k), float(k + 1))

    feed = feed_from(large, queue_frames=10)
    feed.start()
    wait_until(lambda: feed.num_queued == 2)
    assert feed.take()
    wait_until(lambda: feed.num_queued == 2)
    feed.stop()


def test_a_feed_that_is_stopped_is_not_at_its_end() -> None:
    """Else its open segment would be closed and committed in the middle of the footage."""
    feed = feed_of(1000, Footage(pace_s=0.001))
    feed.start()
    wait_until(lambda: feed.num_queued > 1)
    feed.stop()
    wait_until(lambda: not feed._thread.is_alive())
    assert not feed.take()
    assert not feed.is_exhausted


def test_a_stop_ends_a_thread_that_waits_for_room() -> None:
    feed = feed_of(1000, Footage(), queue_frames=1)
    feed.start()
    wait_until(lambda: feed.num_queued == 1)
    feed.stop()
    wait_until(lambda: not feed._thread.is_alive())


def test_only_so_many_decode_at_a_time() -> None:
    crowd = Crowd()
    feeds = crowd.feeds(12, 6, Turns(2))
    for feed in feeds:
        feed.start()
    wait_until(lambda: all(feed.num_queued == 6 for feed in feeds))
    assert crowd.most == 2


def test_a_batch_is_read_in_one_turn() -> None:
    """Else all feeds would have half a batch before one has a whole one, and the tower would wait."""

    class Counted(Turns):
        count = 0

        @contextmanager
        def one(self) -> Iterator[None]:
            self.count += 1
            with super().one():
                yield

    turns = Counted(1)
    feeds = Crowd().feeds(4, 6, turns)
    for feed in feeds:
        feed.start()
    wait_until(lambda: not any(feed._thread.is_alive() for feed in feeds))
    assert turns.count == 4 * 3, "two batches, and the end"


def test_batches_are_taken_whole_and_the_last_one_is_what_is_left() -> None:
    feed, taken = feed_of(10, Footage(), queue_frames=4, size=4), []
    feed.start()
    while not feed.is_exhausted:
        if batch := feed.take():
            taken.append([frame.start_s for frame in batch])
        assert feed.num_queued <= 4
    assert taken == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_a_batch_that_is_larger_than_the_queue_passes_all_the_same() -> None:
    feed = feed_of(10, Footage(), queue_frames=2, size=8)
    feed.start()
    wait_until(lambda: feed.num_queued == 8)
    assert len(feed.take()) == 8
    wait_until(lambda: feed.num_queued == 2)


def test_a_source_that_hangs_does_not_keep_the_others_from_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "PATIENCE_S", 0.01)
    hangs_now, goes_on = threading.Event(), threading.Event()

    def hanging(spec: StreamSpec, on_gap: OnGap) -> Iterator[Frame]:
        hangs_now.set()
        assert goes_on.wait(60)
        yield Frame(np.zeros((2, 2, 3), np.uint8), 0.0, 1.0)

    turns = Turns(1)
    hangs = feed_from(hanging, turns=turns)
    hangs.start()
    assert hangs_now.wait(60)
    (feed,) = Crowd().feeds(1, 6, turns)
    feed.start()
    wait_until(lambda: feed.num_queued == 6)
    goes_on.set()
    wait_until(lambda: not hangs._thread.is_alive())
    assert hangs.error == "", "who went on without a turn gave none back"
