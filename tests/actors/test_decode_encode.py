"""Frames of many streams become segments: each frame once, in batches, with every queue bounded."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from stage import SOURCE, Footage, MeanEncoder, decode_parts, wait_until

from actors import right_of_way
from actors.decode_encode import DecodeEncode
from actors.failures import NotReadyError
from actors.messages import SegmentMessage, StreamSpec
from actors.right_of_way import GiveWay, RightOfWay
from actors.share import Share
from actors.views import GapView
from streamkv.types import Segment

THREES = replace(SOURCE, batch_frames=3)
"""Batches that end elsewhere than segments, of four."""


class Ledger:
    """A sink that keeps what it gets; acknowledges at once, or when told to."""

    def __init__(self, *, holds: bool = False) -> None:
        self.holds = holds
        self.messages: list[SegmentMessage] = []
        self.gaps: list[GapView] = []
        self.waiting: list[Future[bool]] = []
        self.shown: list[SegmentMessage] = []
        self.looking: list[Future[bool]] = []

    def ship(self, message: SegmentMessage) -> Future[bool]:
        self.messages.append(message)
        future: Future[bool] = Future()
        if self.holds:
            self.waiting.append(future)
        else:
            future.set_result(True)
        return future

    def show(self, message: SegmentMessage) -> Future[bool]:
        self.shown.append(message)
        future: Future[bool] = Future()
        self.looking.append(future)
        if not self.holds:
            future.set_result(True)
        return future

    def add_gap(self, stream_id: str, gap: GapView) -> Future[None]:
        self.gaps.append(gap)
        future: Future[None] = Future()
        future.set_result(None)
        return future

    def frames(self, stream_id: str) -> list[float]:
        return [start for m in self.messages if m.stream_id == stream_id for start, _ in m.spans_s]


@pytest.fixture
def footage() -> Footage:
    return Footage()


@pytest.fixture
def encoder() -> MeanEncoder:
    return MeanEncoder(poison=[77])


@pytest.fixture
def actor(footage: Footage, encoder: MeanEncoder) -> Iterator[DecodeEncode]:
    actor = DecodeEncode(partial(decode_parts, footage, encoder), SOURCE, in_flight=2)
    actor.start()
    yield actor
    actor.shutdown()


def state(actor: DecodeEncode, stream_id: str) -> str:
    return actor.status().feeds[stream_id].state


def test_every_frame_of_every_stream_leaves_once_and_in_order(actor: DecodeEncode) -> None:
    sink = Ledger()
    lengths = {"a": 10, "b": 33, "c": 1}
    for stream_id, count in lengths.items():
        actor.add_stream(StreamSpec(stream_id, str(count), epoch=1), sink)
    wait_until(lambda: all(state(actor, s) == "done" for s in lengths))
    for stream_id, count in lengths.items():
        assert sink.frames(stream_id) == [float(k) for k in range(count)]
        mine = [m for m in sink.messages if m.stream_id == stream_id]
        assert [m.segment_no for m in mine] == list(range(len(mine)))
        assert [m.resume_s for m in mine] == [m.spans_s[-1][1] for m in mine]
        assert all((m.features[:, 0, 0] == [s[0] for s in m.spans_s]).all() for m in mine)
    assert len(sink.gaps) == 3
    totals = actor.status().totals
    assert totals["frames"] == sum(lengths.values())
    assert totals["segments"] == len(sink.messages)
    assert {"decode_s", "encode_s", "segment_s", "ship_s", "shipped_bytes"} <= set(totals)


def test_archives_have_batches_of_their_own(actor: DecodeEncode, encoder: MeanEncoder) -> None:
    sink = Ledger()
    for stream_id in "abcd":
        actor.add_stream(StreamSpec(stream_id, "22", epoch=1), sink)
    wait_until(lambda: all(state(actor, s) == "done" for s in "abcd"))
    assert sorted(encoder.batches) == [2] * 4 + [4] * 20, "five whole ones each, and what is left"


class Touchy(MeanEncoder):
    """A frame's features depend on how many are encoded with it and on what they show, as last bits may."""

    def encode_frames(self, frames: Sequence[np.ndarray]) -> torch.Tensor:
        shown = sum(int(frame[0, 0, 0]) for frame in frames)
        return super().encode_frames(frames) + len(frames) / 8 + shown / 4096


@pytest.mark.parametrize("start_s", range(0, 24, 4))
def test_what_an_archive_becomes_depends_on_it_alone(start_s: int) -> None:
    """Whoever else is there, and wherever it resumes: after a whole number of segments, which batches are not."""

    def features(actor: DecodeEncode, stream_id: str, start_s: int = 0) -> list[tuple[int, bytes]]:
        sink = Ledger()
        spec = StreamSpec(stream_id, "24", 1, float(start_s), next_segment_no=start_s // 4)
        actor.add_stream(spec, sink)
        wait_until(lambda: state(actor, stream_id) == "done")
        return [(m.segment_no, m.features.tobytes()) for m in sink.messages]

    alone, busy = (
        DecodeEncode(partial(decode_parts, Footage(source=THREES), Touchy()), THREES, in_flight=2)
        for _ in range(2)
    )
    alone.start()
    busy.start()
    try:
        for i in range(3):
            busy.add_stream(StreamSpec(f"other{i}", "200", epoch=1), Ledger())
        whole = features(alone, "whole")
        assert len(whole) == 6
        assert features(busy, "part", start_s) == whole[start_s // 4 :]
    finally:
        alone.shutdown()
        busy.shutdown()


def test_a_stream_whose_segments_are_not_durable_stops_decoding(
    actor: DecodeEncode, footage: Footage
) -> None:
    slow, quick = Ledger(holds=True), Ledger()
    actor.add_stream(StreamSpec("slow", "70", epoch=1), slow)
    wait_until(lambda: len(slow.messages) == 2)
    actor.add_stream(StreamSpec("quick", "50", epoch=1), quick)
    wait_until(lambda: state(actor, "quick") == "done")
    status = actor.status().feeds["slow"]
    assert (len(slow.messages), status.in_flight, status.state) == (2, 2, "running")
    # two segments of 4, one batch that may close a third, a full queue, and the frame that waits for room in
    # it
    assert len(footage.decoded["slow"]) <= 2 * 4 + 2 * SOURCE.batch_frames + SOURCE.queue_frames + 1
    slow.holds = False
    for future in slow.waiting:
        future.set_result(True)
    wait_until(lambda: state(actor, "slow") == "done")
    assert slow.frames("slow") == [float(k) for k in range(70)]


class SlowEncoder(MeanEncoder):
    """Far slower than decoding, so that frames wait for it on a busy machine too."""

    def encode_frames(self, frames: Sequence[np.ndarray]) -> torch.Tensor:
        time.sleep(0.03)
        return super().encode_frames(frames)


def test_streams_share_the_tower_by_priority(footage: Footage) -> None:
    """Of three that always have frames to give; one that comes later makes up for nothing."""
    actor = DecodeEncode(partial(decode_parts, footage, SlowEncoder()), SOURCE, in_flight=2)
    actor.start()
    sink = Ledger()

    def frames(stream_id: str) -> int:
        return actor.status().feeds[stream_id].frames

    try:
        actor.add_stream(StreamSpec("high", "480", epoch=1, priority=3), sink)
        actor.add_stream(StreamSpec("low", "480", epoch=1), sink)
        wait_until(lambda: frames("high") >= 200)
        assert 3 * frames("low") == pytest.approx(
            frames("high"), abs=3 * (SOURCE.batch_frames + SOURCE.queue_frames)
        )
        before = frames("low")
        actor.add_stream(StreamSpec("late", "480", epoch=1), sink)
        wait_until(lambda: frames("late") >= 40)
        assert frames("low") - before == pytest.approx(frames("late"), abs=12)
    finally:
        actor.shutdown()


def test_a_stream_of_high_priority_has_more_segments_on_their_way(actor: DecodeEncode) -> None:
    sink = Ledger(holds=True)
    actor.add_stream(StreamSpec("high", "60", epoch=1, priority=3), sink)
    wait_until(lambda: len(sink.waiting) == 6)
    assert actor.status().feeds["high"].in_flight == 6


def test_what_is_not_durable_can_be_read_and_nothing_lies_between(actor: DecodeEncode) -> None:
    """Durable segments and the latest ones together are all that was encoded, at every moment."""
    sink = Ledger(holds=True)
    actor.add_stream(StreamSpec("cam", "11", epoch=1), sink)
    wait_until(lambda: actor.status().feeds["cam"].frames == 11 and len(sink.waiting) == 2)
    latest = actor.latest("cam")
    assert [m.segment_no for m in latest] == [0, 1, 2]
    assert [start for m in latest for start, _ in m.spans_s] == [float(k) for k in range(11)]
    sink.waiting[0].set_result(True)
    wait_until(lambda: len(actor.latest("cam")) == 2)
    assert [m.segment_no for m in actor.latest("cam")] == [1, 2]
    wait_until(lambda: len(sink.waiting) == 3)
    for future in sink.waiting[1:]:
        future.set_result(True)
    wait_until(lambda: state(actor, "cam") == "done")
    assert actor.latest("cam") == []
    assert actor.latest("nobody") == []
    assert sink.frames("cam") == [float(k) for k in range(11)], "looking changed nothing"


def test_what_is_sent_again_for_its_windows_sake_is_not_news(actor: DecodeEncode) -> None:
    sink = Ledger(holds=True)
    spec = StreamSpec("cam", "15", epoch=1, start_s=4.0, next_segment_no=1, num_committed=2)
    actor.add_stream(spec, sink)
    wait_until(lambda: actor.status().feeds["cam"].frames == 11 and len(sink.waiting) == 2)
    assert [m.segment_no for m in sink.messages] == [1, 2]
    assert [m.segment_no for m in actor.latest("cam")] == [2, 3]


def test_an_open_segment_is_read_before_it_closes(encoder: MeanEncoder) -> None:
    footage, sink = Footage(pace_s=0.05, source=THREES), Ledger()
    actor = DecodeEncode(partial(decode_parts, footage, encoder), THREES, in_flight=2)
    actor.start()
    try:
        actor.add_stream(StreamSpec("cam", "4", epoch=1), sink)
        wait_until(lambda: actor.status().feeds["cam"].frames == 3)
        (open_segment,) = actor.latest("cam")
        assert open_segment.segment_no == 0
        assert len(open_segment.spans_s) == 3
        assert sink.messages == []
    finally:
        actor.shutdown()


def test_a_resume_begins_at_its_frame_and_knows_the_one_before(actor: DecodeEncode) -> None:
    sink = Ledger()
    whole = Ledger()
    actor.add_stream(StreamSpec("whole", "20", epoch=1), whole)
    actor.add_stream(StreamSpec("s", "20", epoch=2, start_s=8.0, next_segment_no=2), sink)
    wait_until(lambda: state(actor, "s") == "done" and state(actor, "whole") == "done")
    assert sink.frames("s") == [float(k) for k in range(8, 20)]
    assert [m.segment_no for m in sink.messages] == [2, 3, 4]
    assert [m.similarities for m in sink.messages] == [m.similarities for m in whole.messages[2:]]


def test_a_segment_that_the_next_stage_refuses_loses_the_session(actor: DecodeEncode) -> None:
    sink = Ledger(holds=True)
    actor.add_stream(StreamSpec("s", "100", epoch=1), sink)
    wait_until(lambda: len(sink.messages) == 2)
    sink.waiting[0].set_exception(RuntimeError("fenced"))
    wait_until(lambda: state(actor, "s") == "lost")
    assert "fenced" in actor.status().feeds["s"].detail
    sink.waiting[1].set_result(True)
    assert len(sink.messages) == 2, "nothing is sent after it"


def test_a_frame_that_cannot_be_encoded_ends_its_own_stream_only(actor: DecodeEncode) -> None:
    sink = Ledger()
    actor.add_stream(StreamSpec("bad", "100", epoch=1), sink)
    actor.add_stream(StreamSpec("good", "70", epoch=1), sink)
    wait_until(lambda: state(actor, "good") == "done" and state(actor, "bad") == "failed")
    assert sink.frames("good") == [float(k) for k in range(70)]
    assert "poison" in actor.status().feeds["bad"].detail
    actor.check_health()


def test_a_source_that_breaks_keeps_what_was_read(actor: DecodeEncode) -> None:
    sink = Ledger()
    actor.add_stream(StreamSpec("torn", "10!", epoch=1), sink)
    wait_until(lambda: state(actor, "torn") == "failed")
    assert sink.frames("torn") == [float(k) for k in range(10)]
    assert "the tape is torn" in actor.status().feeds["torn"].detail


def test_a_removed_stream_sends_nothing_more(actor: DecodeEncode) -> None:
    sink = Ledger(holds=True)
    actor.add_stream(StreamSpec("s", "70", epoch=1), sink)
    wait_until(lambda: len(sink.messages) == 2)
    actor.remove_stream("s")
    assert actor.status().feeds == {}
    for future in sink.waiting:
        future.set_result(True)
    actor.add_stream(StreamSpec("s", "8", epoch=2), again := Ledger())
    wait_until(lambda: state(actor, "s") == "done")
    assert len(sink.messages) == 2
    assert {m.epoch for m in again.messages} == {2}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_features_cross_as_they_are(dtype: torch.dtype) -> None:
    features = torch.randn(3, 2, 4).to(dtype)
    spans = ((0.0, 1.0), (1.0, 2.0), (2.0, 3.0))
    segment = Segment(5, features, spans, (1.0, 0.5, 0.25), 7, 3.0)
    message = SegmentMessage.of(StreamSpec("s", "uri", epoch=9), segment)
    message.features.setflags(write=False)  # as Ray hands it over
    back = message.to_segment(torch.device("cpu"))
    assert back.features_nND.dtype == dtype
    assert torch.equal(back.features_nND, features)
    assert np.shares_memory(back.features_nND.view(torch.int16).numpy(), message.features.view(np.int16))
    assert (back.segment_no, back.spans_s, back.similarities, back.num_source_frames, back.resume_s) == (
        5, spans, (1.0, 0.5, 0.25), 7, 3.0,
    )  # fmt: skip


def test_a_decoder_that_has_just_been_started_again_says_so(footage: Footage, encoder: MeanEncoder) -> None:
    actor = DecodeEncode(partial(decode_parts, footage, encoder), SOURCE, in_flight=2)
    with pytest.raises(NotReadyError, match="try again"):
        actor.probe("40")
    with pytest.raises(NotReadyError, match="try again"):
        actor.add_stream(StreamSpec("s", "40", epoch=1), Ledger())
    actor.shutdown()


def test_every_batch_gives_way_before_it_is_encoded() -> None:
    happened: list[str] = []

    class Noting(MeanEncoder):
        def encode_frames(self, frames: Sequence[np.ndarray]) -> torch.Tensor:
            happened.append("encoded")
            return super().encode_frames(frames)

    parts = replace(decode_parts(Footage(), Noting()), give_way=lambda _: happened.append("gave way"))
    decoder, ledger = DecodeEncode(lambda: parts, SOURCE, in_flight=2), Ledger()
    decoder.start()
    decoder.add_stream(StreamSpec("s", "20", epoch=1), ledger)
    wait_until(lambda: state(decoder, "s") == "done")
    decoder.shutdown()
    assert len(happened) >= 2 * 20 // SOURCE.batch_frames
    assert happened == ["gave way", "encoded"] * (len(happened) // 2)


def test_what_a_question_asks_for_is_told_while_the_batch_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(right_of_way, "MOST_S", 300)
    answers, ingest = (RightOfWay("cpu", tmp_path) for _ in range(2))
    footage = Footage(pace_s=0.05, source=THREES)
    parts = replace(decode_parts(footage, MeanEncoder()), give_way=GiveWay(ingest, Share(0.5)))
    decoder = DecodeEncode(lambda: parts, THREES, in_flight=2)
    decoder.start()
    decoder.add_stream(StreamSpec("s", "2000", epoch=1), Ledger())
    wait_until(lambda: bool(decoder.latest("s")))
    answers.take()
    wait_until(lambda: decoder.status().feeds["s"].queued == 6)  # the loop takes no more of them
    (shown,) = decoder.latest("s")
    assert decoder.latest("s")[0].spans_s == shown.spans_s
    answers.give_back()
    decoder.shutdown()
