"""Live streams through the actors: never paused, thinned before anything is dropped, resumed where the clock says."""

from __future__ import annotations

import gc
import logging
import sqlite3
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from cameras import Camera, CameraWorkers, parts
from channel import LIVE, Channel, channel_parts, spec_of
from clips import steady, write_clip
from live_servers import free_port
from stage import IDENTITY, SOURCE, MeanEncoder, wait_until
from test_decode_encode import Ledger
from torch import Tensor

from actors.decode_encode import DecodeEncode
from actors.in_hand import last_words
from actors.live_feed import MAX_THINNING, LiveFeed
from actors.messages import StreamSpec
from actors.parts import _open_live
from actors.supervisor import Supervisor
from actors.timing import StageClock
from pipeline.schemas import Stream
from pipeline.show import live_text
from streamkv import live
from streamkv.config import SourceConfig
from streamkv.errors import SourceError, StoreError
from streamkv.store import SegmentStore
from streamkv.types import Frame

pytestmark = pytest.mark.usefixtures("quick")


def feed_of(uri: str, clock: StageClock, fps: float = 2.0, queue_frames: int = 4) -> LiveFeed:
    spec = StreamSpec("s", uri, epoch=1, is_live=True, origin_s=time.time())
    source = SourceConfig(sample_fps=fps, live_timeout_s=10)
    return LiveFeed(
        spec,
        partial(_open_live, source),
        sample_fps=fps,
        queue_frames=queue_frames,
        on_change=lambda: None,
        clock=clock,
    )


def take_all(feed: LiveFeed) -> list[Frame]:
    frames = []
    while batch := feed.take():
        frames += batch
    return frames


@pytest.fixture
def burst(cam: tuple[Camera, str]) -> Iterator[tuple[LiveFeed, StageClock]]:
    """A feed of which nothing was taken while twelve seconds of pictures came."""
    clock = StageClock()
    feed = feed_of(cam[1], clock, fps=8.0)
    feed.start()
    wait_until(lambda: clock.totals().get("dropped_frames", 0) >= 5)
    yield feed, clock
    feed.stop()
    cam[0].cut()
    wait_until(lambda: not feed._thread.is_alive())


def test_a_full_queue_lowers_the_rate_first_and_drops_the_oldest_then(
    burst: tuple[LiveFeed, StageClock],
) -> None:
    feed, clock = burst
    wait_until(lambda: feed.live.dropped_frames + feed.num_queued >= 11)
    assert feed.live.sample_fps == 8.0 / MAX_THINNING
    dropped = feed.live.dropped_frames
    frames = take_all(feed)
    assert len(frames) == 4
    assert all(b.start_s - a.start_s == 1.0 for a, b in pairwise(frames))
    assert all(f.end_s - f.start_s == 1.0 for f in frames), "each stands for the time until the next"
    (gap,) = feed.take_gaps()
    assert gap.end_s == frames[0].start_s
    assert "dropped" in gap.reason
    totals = clock.totals()
    assert totals["dropped_frames"] == dropped
    kept = dropped + len(frames)
    assert totals["thinned_frames"] >= (MAX_THINNING - 1) * (kept - 1) - MAX_THINNING
    assert feed.live.frame_age_s is not None
    assert feed.live.clock == "arrival"


def has_moved_on(feed: LiveFeed, *, since: int) -> bool:
    """Whether it connected anew, or samples at its full rate."""
    return feed.live.connections > since or feed.live.sample_fps == 8.0


def test_a_queue_that_empties_brings_the_rate_back(cam: tuple[Camera, str]) -> None:
    sender, uri = cam
    clock = StageClock()
    feed = feed_of(uri, clock, fps=8.0)
    feed.start()
    wait_until(lambda: feed.live.sample_fps == 1.0)
    stopped = threading.Event()

    def keep_taking() -> None:
        while not stopped.is_set():
            take_all(feed)
            time.sleep(0.0005)

    taker = threading.Thread(target=keep_taking)
    taker.start()
    try:
        for _ in range(40):  # twelve seconds each, told apart by their clock
            if feed.live.sample_fps == 8.0:
                break
            sender.cut()
            wait_until(partial(has_moved_on, feed, since=feed.live.connections))
            time.sleep(0.3)
        assert feed.live.sample_fps > 1.0
    finally:
        stopped.set()
        feed.stop()
        sender.cut()
        taker.join()
        wait_until(lambda: not feed._thread.is_alive())


@pytest.fixture(params=[4])
def actor(request: pytest.FixtureRequest) -> Iterator[DecodeEncode]:
    """The parameter is the length of its queues."""
    source = replace(LIVE, queue_frames=request.param)
    actor = DecodeEncode(partial(parts, source, MeanEncoder()), source, in_flight=2)
    actor.start()
    yield actor
    actor.shutdown()


@pytest.mark.parametrize("actor", [64], indirect=True)  # so that nothing is thinned
def test_an_outage_closes_the_open_segment_and_the_stream_goes_on_when_it_is_over(
    actor: DecodeEncode, cam: tuple[Camera, str], tmp_path: Path
) -> None:
    sender, uri = cam
    sender.footage = write_clip(tmp_path / "short.ts", steady(3.6)).read_bytes()  # six or seven frames
    sender.only_once = True
    sink = Ledger()
    actor.add_stream(spec_of(uri), sink)
    wait_until(lambda: (status := actor.status().feeds["s"].live) is not None and bool(status.outage))
    wait_until(lambda: len(sink.frames("s")) == actor.status().feeds["s"].frames)
    before = len(sink.frames("s"))
    assert before % 4 != 0, "the last segment is not a full one"
    sender.only_once = False
    sender.cut()
    wait_until(lambda: len(sink.frames("s")) > before + 3, 40)
    assert [m.segment_no for m in sink.messages] == list(range(len(sink.messages)))
    times = sink.frames("s")
    assert times == sorted(set(times))
    assert actor.status().feeds["s"].state == "running"


def test_a_live_stream_is_not_paused_by_segments_that_are_not_durable(
    actor: DecodeEncode, cam: tuple[Camera, str]
) -> None:
    sink = Ledger(holds=True)
    actor.add_stream(spec_of(cam[1]), sink)
    wait_until(lambda: len(sink.waiting) == 2)
    wait_until(lambda: actor.status().totals.get("thinned_frames", 0) > 0)
    status = actor.status().feeds["s"]
    assert status.live is not None
    assert status.live.sample_fps < LIVE.sample_fps
    assert status.state == "running"


def test_a_stream_whose_outage_lasts_too_long_fails(cam: tuple[Camera, str]) -> None:
    source = SourceConfig(sample_fps=2.0, live_timeout_s=1.0, outage_limit_s=0.4)
    actor = DecodeEncode(partial(parts, source, MeanEncoder()), source, in_flight=2)
    actor.start()
    actor.add_stream(spec_of(f"rtsp://bob:hunter2@127.0.0.1:{free_port()}/1"), Ledger())
    wait_until(lambda: actor.status().feeds["s"].state == "failed")
    detail = actor.status().feeds["s"].detail
    assert "source.outage_limit_s" in detail
    assert "hunter2" not in detail
    actor.shutdown()


def test_a_camera_s_decoder_goes_with_its_feed_and_waits_for_no_collection(cam: tuple[Camera, str]) -> None:
    def num_connected() -> int:
        return sum(type(each) is live.Connection for each in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        before = num_connected()
        feed = feed_of(cam[1], StageClock())
        feed.start()
        wait_until(lambda: feed.num_queued > 0)
        assert num_connected() == before + 1
        feed.stop()
        cam[0].cut()
        wait_until(lambda: not feed._thread.is_alive())
        assert num_connected() == before
    finally:
        gc.enable()


def test_a_live_stream_goes_on_after_its_decoder_was_lost_and_says_what_is_missing(
    supervise: Callable[[], tuple[Supervisor, CameraWorkers]],
    cam: tuple[Camera, str],
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    sender, uri = cam
    caplog.set_level(logging.DEBUG)
    supervisor, workers = supervise()
    secret = uri.replace("tcp://", "tcp://bob:hunter2@") + "?token=hunter2"
    sender.footage = write_clip(tmp_path / "short.ts", steady(4)).read_bytes()
    supervisor.add_stream("cam", secret)
    began = time.time()
    wait_until(lambda: supervisor.stream("cam").num_segments >= 1, 30)
    wait_until(lambda: (live := supervisor.stream("cam").live) is not None and live.frame_age_s is not None)
    view = supervisor.stream("cam")
    assert view.live is not None
    assert view.live.connections == 1
    shown = Stream.of(view).model_dump()
    assert "frames/s" in live_text(shown["live"])
    workers.decoders[0].kill()
    again, sender.footage = sender.footage, b""
    sender.cut()
    wait_until(lambda: supervisor.stream("cam").restarts == 1)
    wait_until(lambda: time.time() - began > supervisor.stream("cam").position_s + 1)
    sender.footage = again
    sender.cut()
    committed = supervisor.stream("cam").num_segments
    wait_until(lambda: supervisor.stream("cam").num_segments > committed, 40)
    view = supervisor.stream("cam")
    assert any("nobody read the source" in gap.reason and "UTC" in gap.reason for gap in view.gaps)
    assert view.state == "ingesting"
    assert "hunter2" not in f"{view} {shown} {caplog.text} {workers.decoders[0].status()}"
    supervisor.remove_stream("cam")


def test_a_source_that_is_not_there_is_refused_without_its_password(
    supervise: Callable[[], tuple[Supervisor, CameraWorkers]],
) -> None:
    supervisor, _ = supervise()
    with pytest.raises(SourceError) as caught:
        supervisor.add_stream("cam", f"rtsp://bob:hunter2@127.0.0.1:{free_port()}/user=bob_password=hunter2")
    assert "hunter2" not in f"{caught.value} {caught.value.__cause__}"
    assert supervisor.streams() == []


def test_neither_messages_nor_the_catalog_and_its_errors_print_a_password(tmp_path: Path) -> None:
    uri = "rtsp://bob:hunter2@cam/1"
    assert "hunter2" not in repr(StreamSpec("s", uri, epoch=1))
    with SegmentStore.open(tmp_path, identity=IDENTITY) as store:
        store.add_stream("s", uri)
        assert store.stream("s").uri == uri
        assert "hunter2" not in repr(store.stream("s"))
        with sqlite3.connect(tmp_path / "catalog.sqlite") as held:
            held.execute("DROP TABLE streams")
        held.close()
        with pytest.raises(StoreError) as caught:
            store.add_stream("t", uri)
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))


def test_archives_still_wait(tmp_path: Path) -> None:
    """The same decoder, a file, and a next stage that takes nothing: nothing is thinned or dropped."""
    actor = DecodeEncode(partial(parts, SOURCE, MeanEncoder()), SOURCE, in_flight=2)
    actor.start()
    sink = Ledger(holds=True)
    actor.add_stream(StreamSpec("s", str(write_clip(tmp_path / "clip.mp4", steady(40))), epoch=1), sink)
    wait_until(lambda: actor.status().feeds["s"].queued == SOURCE.queue_frames)
    sink.holds = False
    for future in sink.waiting:
        future.set_result(True)
    wait_until(lambda: actor.status().feeds["s"].state == "done")
    assert sink.frames("s") == [float(k) for k in range(40)]
    assert actor.status().feeds["s"].live is None
    assert not {"dropped_frames", "thinned_frames"} & set(actor.status().totals)
    actor.shutdown()


def test_frames_of_live_streams_are_encoded_together() -> None:
    """What came while the tower was at work is one batch, whoever showed it."""
    channels, encoder = [Channel(), Channel(), Channel()], HeldEncoder()
    loaded = replace(channel_parts(*channels), encoder=encoder)
    actor = DecodeEncode(lambda: loaded, LIVE, in_flight=2)
    actor.start()
    for name in "abc":
        actor.add_stream(replace(spec_of("tcp://nowhere:1"), stream_id=name), Ledger())
    channels[0].show(1)
    wait_until(lambda: encoder.is_busy)
    for channel in channels:
        channel.show(1)
    wait_until(lambda: [feed.queued for feed in actor.status().feeds.values()] == [1, 1, 1])
    encoder.go.set()
    wait_until(lambda: sum(encoder.batches) == 4)
    for channel in channels:
        channel.shown.put(None)
    actor.shutdown()
    assert encoder.batches == [1, 3]


class HeldEncoder(MeanEncoder):
    """Begins with a batch, and goes on when it may."""

    def __init__(self) -> None:
        super().__init__()
        self.go, self.is_busy = threading.Event(), False

    def encode_frames(self, frames: Sequence[np.ndarray]) -> Tensor:
        self.is_busy = True
        assert self.go.wait(30)
        return super().encode_frames(frames)


def test_a_camera_that_is_waited_for_is_not_in_hand(cam: tuple[Camera, str]) -> None:
    """Else each camera of a decoder that ends would be suspected of ending it."""
    patient = replace(LIVE, live_timeout_s=30.0)
    actor = DecodeEncode(partial(parts, patient, MeanEncoder()), patient, in_flight=2)
    actor.start()
    place = actor.status().in_hand
    assert place is not None

    def times_in_hand(seconds: float) -> int:
        end, times = time.monotonic() + seconds, 0
        while time.monotonic() < end:
            times += "s" in last_words(place).in_hand
        return times

    actor.add_stream(spec_of(cam[1]), Ledger())
    wait_until(lambda: actor.status().feeds["s"].frames > 2)
    wait_until(lambda: times_in_hand(0.2) == 0)
    assert times_in_hand(0.5) == 0, "it has sent all, and holds the line"
    cam[0].only_once = True
    cam[0].cut()
    wait_until(lambda: getattr(actor.status().feeds["s"].live, "outage", "") != "")
    wait_until(lambda: times_in_hand(0.2) == 0)
    actor.shutdown()
    assert last_words(place).in_hand == {}
