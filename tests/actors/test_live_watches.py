"""Watches of live streams look at what is shown before its segment is closed."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from channel import LIVE, Channel, ChannelWorkers, channel_parts, spec_of
from stage import Footage, wait_until
from test_decode_encode import Ledger

from actors.decode_encode import DecodeEncode
from actors.supervisor import Supervisor
from actors.views import NewWatch
from streamkv.config import PipelineConfig, StoreConfig


def test_watches_are_shown_an_open_segment_as_it_grows() -> None:
    """One look at a time, and closed segments go first; a stream without watches shows nothing."""
    channel, sink = Channel(), Ledger(holds=True)
    actor = DecodeEncode(partial(channel_parts, channel), LIVE, in_flight=2)
    actor.start()
    try:
        actor.add_stream(spec_of("tcp://nowhere:1"), sink)
        channel.show(1)
        wait_until(lambda: actor.status().feeds["s"].frames == 1)
        assert sink.shown == []
        actor.set_watched("s", True)
        channel.show(1)
        wait_until(lambda: len(sink.looking) == 1)
        channel.show(1)
        wait_until(lambda: actor.status().feeds["s"].frames == 3)
        assert len(sink.shown) == 1, "who still looks is shown nothing new"
        sink.looking[0].set_result(True)
        wait_until(lambda: len(sink.looking) == 2)
        sink.looking[1].set_exception(RuntimeError("no answer"))
        channel.show(2)
        wait_until(lambda: len(sink.waiting) == 1)
        wait_until(lambda: actor.status().feeds["s"].frames == 5)
        assert len(sink.shown) == 2, "the closed segment goes first"
        sink.waiting[0].set_result(True)
        wait_until(lambda: len(sink.looking) == 3)
        assert actor.status().totals["look_errors"] == 1
    finally:
        channel.shown.put(None)
        actor.shutdown()
    assert [(m.segment_no, len(m.spans_s)) for m in sink.shown] == [(0, 2), (0, 3), (1, 1)]


def test_a_watch_tells_before_its_segment_is_closed(tmp_path: Path) -> None:
    workers = ChannelWorkers(tmp_path / "store", Footage())
    config = PipelineConfig(store=StoreConfig(root=str(tmp_path / "store")), source=LIVE)
    supervisor = Supervisor(config, workers)
    wait_until(lambda: supervisor.state().phase == "ready")
    try:
        supervisor.add_stream("cam", "tcp://nowhere:1")
        watch, _ = supervisor.watching.add(NewWatch("cam", "every 1"))

        def told() -> list[tuple[int, str]]:
            (events,) = supervisor.watching.events([(watch.watch_id, -1)], 99)
            return [(event.body["segment"], event.body["answer"]) for event in events or ()]

        for segment_no in range(3):
            assert supervisor.stream("cam").num_segments == segment_no
            wait_until(lambda: supervisor.stream("cam").state == "ingesting")
            workers.channel.show(1)
            wait_until(lambda no=segment_no: len(told()) == no + 1)
            assert supervisor.stream("cam").num_segments == segment_no, "it is still open"
            workers.channel.show(3)
            wait_until(lambda no=segment_no: supervisor.stream("cam").num_segments == no + 1)
        assert told() == [(0, "0"), (1, "1"), (2, "2")]
        wait_until(lambda: supervisor.stats()["told_early"] == 3)
    finally:
        workers.channel.shown.put(None)
        supervisor.shutdown()
