"""Live streams that move to other actors: read there first, so that nothing is missed, or with a gap that says so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from cameras import Broadcast, Camera, CameraWorkers
from channel import LIVE, Channel, channel_parts, spec_of
from clips import steady, write_clip
from live_servers import camera
from stage import SEGMENTS, MeanEncoder, wait_until
from test_decode_encode import Ledger

from actors.decode_encode import DecodeEncode, DecodeParts
from actors.live_feed import LiveFeed
from actors.parts import _open_source
from actors.supervisor import Supervisor
from actors.timing import StageClock
from streamkv.segmentation import Segmenter
from streamkv.store import SegmentStore

pytestmark = pytest.mark.usefixtures("quick")


def test_live_stream_that_is_drained_sends_all_that_it_has_shown() -> None:
    """What waits for the tower and the open segment too; it is drained when that is durable, and not before."""
    channel = Channel()
    source = replace(LIVE, queue_frames=64, batch_frames=1)
    loaded = DecodeParts(
        MeanEncoder(),
        partial(Segmenter, SEGMENTS),
        partial(_open_source, source),
        lambda spec, on_gap: channel,
    )
    actor = DecodeEncode(lambda: loaded, source, in_flight=1)
    actor.start()
    sink = Ledger(holds=True)
    try:
        actor.add_stream(spec_of("tcp://nowhere:1"), sink)
        channel.show(14)  # three segments and a half
        wait_until(lambda: actor.status().feeds["s"].queued > 0 and len(sink.messages) == 1)
        actor.drain_stream("s")
        assert channel.is_stopped
        channel.show(6)  # too late: whoever reads it next sees to that
        wait_until(lambda: channel.shown.empty())
        for sent in range(1, 5):
            wait_until(lambda sent=sent: len(sink.messages) == sent)
            assert actor.status().feeds["s"].state == "running"
            sink.waiting.pop().set_result(True)
        wait_until(lambda: actor.status().feeds["s"].state == "drained")
    finally:
        channel.shown.put(None)
        actor.shutdown()
    assert sink.frames("s") == [k / 2 for k in range(14)]
    assert [m.segment_no for m in sink.messages] == [0, 1, 2, 3]


@pytest.fixture
def channels() -> list[Channel]:
    return [Channel(), Channel()]


@pytest.fixture
def prepared(channels: list[Channel]) -> Iterator[DecodeEncode]:
    """A decoder that reads the first channel for a stream that is about to come."""
    loaded, source = channel_parts(*channels), replace(LIVE, queue_frames=64)
    actor = DecodeEncode(lambda: loaded, source, in_flight=2)
    actor.start()
    actor.prepare_stream(spec_of("tcp://nowhere:1"))
    yield actor
    for channel in channels:
        channel.shown.put(None)
    actor.shutdown()


def test_what_was_read_before_a_stream_came_is_its_own_from_its_beginning_on(
    prepared: DecodeEncode, channels: list[Channel]
) -> None:
    assert prepared.status().prepared == {}
    channels[0].show(6)
    wait_until(lambda: prepared.status().prepared == {"s": 0.0})
    assert prepared.status().feeds == {}
    sink = Ledger()
    prepared.add_stream(spec_of("tcp://nowhere:1", start_s=1.5, next_segment_no=7), sink)
    assert prepared.status().prepared == {}
    channels[0].show(6)
    wait_until(lambda: len(sink.messages) == 2)
    assert sink.frames("s") == [k / 2 for k in range(3, 11)]
    assert [m.segment_no for m in sink.messages] == [7, 8]
    assert not channels[0].is_stopped


def test_a_source_that_has_shown_nothing_makes_way_for_a_new_connection(
    prepared: DecodeEncode, channels: list[Channel]
) -> None:
    """The camera takes one client at a time; who waits for the next attempt would come late."""
    sink = Ledger()
    prepared.add_stream(spec_of("tcp://nowhere:1"), sink)
    assert channels[0].is_stopped
    channels[1].show(4)
    wait_until(lambda: len(sink.messages) == 1)


def test_a_source_whose_stream_does_not_come_is_let_go(
    monkeypatch: pytest.MonkeyPatch, prepared: DecodeEncode, channels: list[Channel]
) -> None:
    monkeypatch.setattr("actors.prepared.KEPT_S", 0.1)
    channels[0].show(2)
    prepared.prepare_stream(spec_of("tcp://nowhere:1"))
    assert channels[0].is_stopped, "the second takes its place"
    channels[1].show(2)
    wait_until(lambda: prepared.status().prepared == {"s": 0.0})
    wait_until(lambda: channels[1].is_stopped)
    assert prepared.status().prepared == {}


def test_gaps_before_a_stream_came_are_not_its_own() -> None:
    feed = LiveFeed(
        spec_of("tcp://nowhere:1", start_s=4.0),
        lambda spec, on_gap: Channel(),
        sample_fps=2.0,
        queue_frames=4,
        on_change=lambda: None,
        clock=StageClock(),
    )
    for span_s in ((1.0, 3.0), (3.0, 4.0), (3.5, 6.0), (7.0, 8.0)):
        feed._on_gap(*span_s, "why")
    assert [(gap.start_s, gap.end_s) for gap in feed.take_gaps()] == [(4.0, 6.0), (7.0, 8.0)]


def moves_of(places: list[Any]) -> list[tuple[float, float]]:
    """The end of a session and the beginning of the next."""
    return [(a.end_s, b.start_s) for a, b in pairwise(places) if a.epoch != b.epoch]


@pytest.mark.parametrize("pool", ["encode", "prefill"])
def test_camera_that_two_may_read_misses_nothing_when_it_moves(
    supervise: Callable[[], tuple[Supervisor, CameraWorkers]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    pool: str,
) -> None:
    monkeypatch.setattr(CameraWorkers, "source", replace(LIVE, live_timeout_s=10.0))
    seconds = 60
    broadcast = Broadcast(write_clip(tmp_path / "clip.ts", steady(seconds)).read_bytes(), seconds)
    supervisor, _ = supervise()
    with camera(broadcast, at_once=4) as port:
        for name in ("one", "two"):
            supervisor.add_stream(name, f"tcp://127.0.0.1:{port}")
        wait_until(lambda: all(view.num_segments > 0 for view in supervisor.streams()))
        supervisor.scale({pool: 2})
        wait_until(lambda: supervisor.stats().get("handovers") == 1)
        before = {view.stream_id: view.num_segments for view in supervisor.streams()}
        wait_until(lambda: all(v.num_segments > before[v.stream_id] for v in supervisor.streams()), 40)
        assert {view.restarts for view in supervisor.streams()} == {0}
        supervisor.shutdown()
        broadcast.is_over.set()
    with SegmentStore.open(tmp_path / "store", read_only=True) as store:
        moves = {name: moves_of(store.segments(name, 0, 999)) for name in ("one", "two")}
        gaps = {name: store.stream(name).gaps for name in ("one", "two")}
    ((end_s, start_s),) = moves["one"] + moves["two"]
    assert end_s == start_s, "it goes on where it was"
    name = "one" if moves["one"] else "two"
    assert [gap for gap in gaps[name] if gap.start_s >= end_s - 1] == []


def test_camera_that_takes_one_client_misses_what_it_shows_while_it_moves_and_says_so(
    supervise: Callable[[], tuple[Supervisor, CameraWorkers]], cam: tuple[Camera, str], tmp_path: Path
) -> None:
    supervisor, workers = supervise()
    other = Camera(cam[0].footage)
    with camera(other) as port:
        supervisor.add_stream("one", cam[1])
        supervisor.add_stream("two", f"tcp://127.0.0.1:{port}")
        wait_until(lambda: all(view.num_segments > 0 for view in supervisor.streams()))
        supervisor.scale({"encode": 2})
        wait_until(lambda: supervisor.stats().get("handovers") == 1)
        wait_until(lambda: [len(w.instance.status().feeds) for w in workers.decoders] == [1, 1])
        (name,) = workers.decoders[1].instance.status().feeds
        before = supervisor.stream(name).num_segments
        wait_until(lambda: supervisor.stream(name).num_segments > before, 40)
        assert {view.restarts for view in supervisor.streams()} == {0}
        supervisor.shutdown()
        other.cut()
    with SegmentStore.open(tmp_path / "store", read_only=True) as store:
        places = store.segments(name, 0, 999)
        gaps = store.stream(name).gaps
    assert all(a.end_s <= b.start_s for a, b in pairwise(places)), "nothing twice"
    # Within a session a machine that is too slow thins the frames out, which is no gap.
    moves = moves_of(places)
    assert len(moves) == 1
    holes = [(start_s, end_s) for start_s, end_s in moves if start_s < end_s]
    assert all(any(g.start_s <= s and e <= g.end_s for g in gaps) for s, e in holes), "nothing in silence"
