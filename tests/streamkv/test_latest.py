"""What a stream has shown and is not stored yet is read with what is, and prefilled no oftener than it grows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_engine import EVERYTHING, QUESTION, ingest, preset
from tiny import random_frames, random_segment_kv

from streamkv.engine import Engine
from streamkv.latest import JoinedVideo, LatestPast
from streamkv.memory import InMemoryVideo
from streamkv.models import VideoLLM
from streamkv.segmentation import Segmenter
from streamkv.types import Geometry, Segment

GEOMETRY = Geometry(num_layers=2, num_heads=4, num_kv_heads=2, head_dim=4, hidden_dim=16, frame_tokens=3)


@settings(max_examples=40)
@given(st.integers(0, 4), st.integers(1, 3), st.data())
def test_joined_reads_as_one_memory(num_stored: int, num_latest: int, data: st.DataObject) -> None:
    kvs = [random_segment_kv(GEOMETRY, no, kept=(2, 3)) for no in range(num_stored + num_latest)]
    whole = InMemoryVideo(GEOMETRY, kvs)
    joined = JoinedVideo(InMemoryVideo(GEOMETRY, kvs[:num_stored]), InMemoryVideo(GEOMETRY, kvs[num_stored:]))
    assert (joined.segments, joined.as_of_s) == (whole.segments, whole.as_of_s)
    layer = data.draw(st.integers(0, 1))
    some = np.array(sorted(data.draw(st.sets(st.sampled_from(range(len(kvs)))))), np.int64)
    for nos in (None, some):
        got, wanted = joined.table(layer, nos), whole.table(layer, nos)
        np.testing.assert_array_equal(got.segment_nos, wanted.segment_nos)
        np.testing.assert_array_equal(got.slots, wanted.slots)
        torch.testing.assert_close(got.mean_keys, wanted.mean_keys)
    query, k = torch.linspace(-1, 1, GEOMETRY.summary_dim), data.draw(st.integers(0, 8))
    for among in (None, some):
        found, wanted_ = joined.search(layer, query, k, among), whole.search(layer, query, k, among)
        np.testing.assert_array_equal(found, wanted_)
    rows = data.draw(st.lists(st.sampled_from(range(2 * len(kvs))), min_size=1, max_size=8))
    segment_nos, slots = np.array(rows, np.int64) // 2, np.array(rows, np.int64) % 2
    got, wanted = joined.gather(layer, segment_nos, slots), whole.gather(layer, segment_nos, slots)
    assert (got.frame_ids, got.spans_s) == (wanted.frame_ids, wanted.spans_s)
    torch.testing.assert_close(got.keys_bNGd, wanted.keys_bNGd)
    torch.testing.assert_close(got.values_bNGd, wanted.values_bNGd)


def cut(engine: Engine, num_frames: int) -> list[Segment]:
    """All that a stream of so many frames has shown; the last segment is open."""
    segmenter = Segmenter(engine.method.segment)
    features = engine.model.encode_frames(random_frames(num_frames))
    closed = [segmenter.push(f, 2.0 * t, 2.0 * (t + 1)) for t, f in enumerate(features)]
    found = [s for s in [*closed, segmenter.open_segment] if s is not None]
    assert found
    return found


@pytest.mark.parametrize("num_stored", [0, 1, 2])
def test_with_budget_for_everything_it_equals_the_whole_stream(num_stored: int, tiny_model: VideoLLM) -> None:
    """Nothing is compressed away, so that the window is rebuilt as it was."""
    engine = Engine(tiny_model, preset("streamkv", *EVERYTHING, "method.segment.max_seconds=8"))
    segments = cut(engine, 11)
    assert len(segments) == 3
    stored, window = InMemoryVideo(tiny_model.geometry), engine.open_window()
    for segment in segments[:num_stored]:
        stored.add(engine.prefill(window, segment))
    joined = LatestPast(engine).joined(stored, segments[num_stored:])
    whole = ingest(engine, random_frames(11))
    assert joined.segments == whole.segments
    got, wanted = engine.read(joined, QUESTION), engine.read(whole, QUESTION)
    torch.testing.assert_close(got.logits, wanted.logits, atol=1e-4, rtol=0)


def test_only_what_has_grown_is_prefilled(tiny_model: VideoLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(tiny_model, preset("streamkv", "method.segment.max_seconds=8"))
    prefilled, opened = [], []
    prefill, open_window = engine.prefill, engine.open_window
    monkeypatch.setattr(
        engine, "prefill", lambda w, s, g: (prefilled.append(s.segment_no), prefill(w, s, g))[1]
    )
    monkeypatch.setattr(engine, "open_window", lambda m: (opened.append(m), open_window(m))[1])
    stored, latest = InMemoryVideo(tiny_model.geometry), LatestPast(engine)
    before = cut(engine, 6)
    first = latest.joined(stored, before)
    assert latest.joined(stored, before).segments == first.segments
    assert (prefilled, len(opened)) == ([0, 1], 1)
    latest.joined(stored, cut(engine, 7))  # the open segment has one frame more
    assert prefilled == [0, 1, 1]
    latest.joined(stored, cut(engine, 10))  # it has closed, another is open
    assert prefilled == [0, 1, 1, 1, 2]
    stored.add(prefill(open_window(), before[0]))
    latest.joined(stored, cut(engine, 10))  # the first one is stored, and the window begins behind it
    assert (prefilled[5:], len(opened)) == ([1, 2], 2)


def test_what_is_stored_already_is_passed_over(tiny_model: VideoLLM) -> None:
    engine = Engine(tiny_model, preset("streamkv", "method.segment.max_seconds=8"))
    stored = ingest(engine, random_frames(9))
    assert LatestPast(engine).joined(stored, cut(engine, 9)) is stored
    assert LatestPast(engine).joined(stored, []) is stored
