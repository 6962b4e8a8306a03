"""What is drawn is what the segmenter saw, what each layer stored, and what the question read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tiny import random_frames, random_segment_kv

from streamkv.config import MethodConfig, SegmentConfig, load_config
from streamkv.engine import Engine
from streamkv.frame_batches import FrameBatches
from streamkv.inspection import (
    THUMBNAIL_PIXELS,
    FrameTrack,
    FrameWatch,
    Inspection,
    SegmentView,
    bin_segments,
    pick_shown,
    view_question,
    view_segments,
)
from streamkv.memory import InMemoryVideo
from streamkv.models import VideoLLM
from streamkv.segmentation import Segmenter
from streamkv.types import Frame, SegmentKV

QUESTION = "what is the colour of the bus"


def method(*overrides: str) -> MethodConfig:
    short = ("method.segment.policy=uniform", "method.segment.min_frames=1", "method.segment.max_frames=4")
    few = ("method.retrieve.blocks_per_layer=5", "method.retrieve.recent_blocks=1")
    two = ["method.retrieve.agree_layers=[0, 1]"]  # of the three that the tiny model has
    return load_config(overrides=[*short, *few, *two, *overrides]).method


def frames_of(count: int, *, skip_s: tuple[float, float] = (0.0, 0.0)) -> list[Frame]:
    """Two seconds each; none that begins within `skip_s`."""
    all_of_them = [
        Frame(rgb, 2.0 * t, 2.0 * t + 2.0) for t, rgb in enumerate(random_frames(count, size=(300, 480)))
    ]
    return [f for f in all_of_them if not skip_s[0] <= f.start_s < skip_s[1]]


def ingest(engine: Engine, frames: list[Frame]) -> list[SegmentKV]:
    segmenter, window = Segmenter(engine.method.segment), engine.open_window()
    features = engine.model.encode_frames([f.rgb for f in frames])
    closed = [segmenter.push(x, f.start_s, f.end_s) for x, f in zip(features, frames, strict=True)]
    return [engine.prefill(window, s) for s in [*closed, segmenter.flush()] if s is not None]


def view(no: int, start_s: float, end_s: float, num_frames: int = 4, share: float = 0.5) -> SegmentView:
    return SegmentView(no, no, 1, start_s, end_s, num_frames, (share, 1 - share))


def inspection(segments: tuple[SegmentView, ...], frames: FrameTrack | None = None) -> Inspection:
    return Inspection("cam", "cam.mp4", "done", segments[-1].end_s, 2, segments, frames=frames)


@pytest.mark.parametrize("summary", ["true", "false"])
def test_kept_share_counts_frames_and_no_summary(tiny_model: VideoLLM, summary: str) -> None:
    """From block counts alone == counted from every stored frame id."""
    engine = Engine(
        tiny_model, method(f"method.compress.summary={summary}", "method.compress.keep_ratio=0.5")
    )
    stored = ingest(engine, frames_of(10))
    views = view_segments(InMemoryVideo(tiny_model.geometry, stored))
    assert [v.num_frames for v in views] == [4, 4, 2]
    for got, kv in zip(views, stored, strict=True):
        kept = [sum(i < kv.num_frames for i in layer.frame_ids) for layer in kv.layers]
        assert got.kept_share_L == tuple(k / kv.num_frames for k in kept)
        assert (got.first_no, got.start_s, got.end_s) == (kv.segment_no, kv.start_s, kv.end_s)
    assert 0 < sum(sum(v.kept_share_L) for v in views) < 9


def test_layers_do_not_change_places(tiny_model: VideoLLM) -> None:
    geometry = tiny_model.geometry
    memory = InMemoryVideo(geometry, [random_segment_kv(geometry, 7, kept=(1, 4, 2))])
    assert view_segments(memory)[0].kept_share_L == (0.25, 1.0, 0.5)


def test_an_empty_stream_has_no_segments(tiny_model: VideoLLM) -> None:
    assert view_segments(InMemoryVideo(tiny_model.geometry)) == ()


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 7, 8])
def test_bins_hold_every_segment_once(limit: int) -> None:
    segments = tuple(view(no, 8.0 * no, 8.0 * no + 8) for no in range(7))
    bins = bin_segments(segments, limit)
    assert len(bins) <= limit
    assert [no for b in bins for no in range(b.first_no, b.last_no + 1)] == list(range(7))
    assert sum(b.num_segments for b in bins) == 7
    assert sum(b.num_frames for b in bins) == 28
    assert [b.start_s for b in bins[1:]] == [b.end_s for b in bins[:-1]]


def test_a_bin_weighs_segments_by_their_frames() -> None:
    (joined,) = bin_segments([view(0, 0, 2, 1, 1.0), view(1, 2, 8, 3, 0.0)], 1)
    assert joined.kept_share_L == (0.25, 0.75)


def test_binning_is_told_and_needless_binning_is_not_done() -> None:
    whole = inspection(tuple(view(no, 8.0 * no, 8.0 * no + 8) for no in range(1000)))
    assert whole.binned(1000) is whole
    few = whole.binned(300)
    assert few.notes == (
        "1,000 segments are drawn in 250 bins of up to 4; a bin's share is the mean over its frames",
    )
    assert few.num_segments == 1000
    assert few.layer_shares() == pytest.approx(whole.layer_shares())


def test_thumbnails_are_shared_out_over_time() -> None:
    """100 short segments, then one that lasts as long as all of them: it gets one, not half."""
    segments = [view(no, float(no), no + 1.0) for no in range(100)] + [view(100, 100.0, 200.0)]
    shown = pick_shown(segments, 10)
    assert [s.first_no for s in shown] == [10, 30, 50, 70, 90, 100]
    assert pick_shown(segments[:10], 10) == tuple(segments[:10])


@pytest.mark.parametrize("batch_frames", [1, 3, 64])
def test_similarities_are_those_that_the_segmenter_saw(tiny_model: VideoLLM, batch_frames: int) -> None:
    frames = frames_of(9)
    engine = Engine(tiny_model, method())
    seen = [s for kv in ingest(engine, frames) for s in kv.similarities]
    watch = FrameWatch(tiny_model, engine.method.segment, (), batches=FrameBatches(0.5, batch_frames))
    positions: list[float] = []
    watch.run(iter(frames), positions.append)
    assert watch.track is not None
    assert watch.track.similarities == pytest.approx(seen, abs=1e-5)
    assert watch.track.spans_s == tuple((f.start_s, f.end_s) for f in frames)
    assert positions[-1] == watch.end_s == 18.0


def test_only_a_policy_that_looks_has_a_threshold(tiny_model: VideoLLM) -> None:
    for policy, theta in (("semantic", 0.9), ("uniform", None)):
        watch = FrameWatch(
            tiny_model, SegmentConfig(policy=policy, theta=0.9), (), batches=FrameBatches(0.5, 4)
        )
        assert watch.track is None
        watch.run(frames_of(2))
        assert watch.track is not None
        assert watch.track.theta == theta


def test_a_thumbnail_is_the_picture_in_the_middle_or_none(tiny_model: VideoLLM) -> None:
    """Segment 1 lies in footage that is missing: the first picture after it is not its own."""
    segments = [view(0, 0.0, 6.0), view(1, 6.0, 10.0), view(2, 10.0, 20.0)]
    frames = frames_of(10, skip_s=(6.0, 10.0))
    watch = FrameWatch(tiny_model, SegmentConfig(), segments, batches=FrameBatches(0.5, 4))
    watch.run(frames)
    assert [(t.segment_no, t.time_s) for t in watch.thumbnails] == [(0, 2.0), (2, 14.0)]
    assert watch.thumbnails[0].rgb.shape == (150, THUMBNAIL_PIXELS, 3)


def test_a_question_shows_all_blocks_that_it_read(tiny_model: VideoLLM) -> None:
    """Shares sum to 1 in a layer; over layers they are the evidence's weights."""
    engine = Engine(tiny_model, method("method.compress.keep_ratio=0.5"))
    memory = InMemoryVideo(tiny_model.geometry, ingest(engine, frames_of(24)))
    asked = view_question(engine, memory, QUESTION, max_new_tokens=4)
    reading = engine.read(memory, QUESTION)
    for layer, state in enumerate(reading.layers):
        mine = [b for b in asked.blocks if b.layer == layer]
        assert [b.segment_no for b in mine] == state.choice.segment_nos.tolist()
        assert sum(b.share for b in mine) == pytest.approx(1.0)
    assert {b.is_summary for b in asked.blocks} == {True, False}
    spans = {s.segment_no: (s.start_s, s.end_s) for s in memory.segments}
    assert all((b.start_s, b.end_s) == spans[b.segment_no] for b in asked.blocks if b.is_summary)
    assert all(b.end_s - b.start_s == 2.0 for b in asked.blocks if not b.is_summary)
    for e in asked.evidence:
        share = sum(b.share for b in asked.blocks if b.segment_no == e.segment_no)
        assert e.weight == pytest.approx(share / len(reading.layers))
    assert asked.answer == engine.answer(memory, QUESTION, max_new_tokens=4).text


def test_json_is_strict_and_has_no_pixels(tmp_path: Path) -> None:
    track = FrameTrack("cosine", 0.9, ((0.0, 2.0), (2.0, 4.0)), (1.0, float("nan")))
    values = inspection((view(0, 0.0, 4.0),), track).as_json()
    text = json.dumps(values, allow_nan=False)
    assert json.loads(text)["frames"]["similarities"] == [1.0, None]
    assert json.loads(text)["segments"][0]["kept_share_L"] == [0.5, 0.5]
    assert np.isfinite(values["as_of_s"])
