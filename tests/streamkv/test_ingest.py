"""One video into a store: the same memory as the slow and obvious way, whatever goes through the tower at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from clips import steady, write_clip

from streamkv.config import MethodConfig, SegmentConfig
from streamkv.engine import Engine
from streamkv.errors import SourceError
from streamkv.frame_batches import FrameBatches
from streamkv.ingest import ingest
from streamkv.memory import InMemoryVideo
from streamkv.models import VideoLLM
from streamkv.segmentation import Segmenter
from streamkv.store import ModelIdentity, SegmentStore, StreamSnapshot
from streamkv.video import sample_frames

FPS = 2.0
METHOD = MethodConfig(n_local=27, segment=SegmentConfig(policy="uniform", max_frames=4))


def identity(model: VideoLLM) -> ModelIdentity:
    return ModelIdentity(model.fingerprint, model.geometry, "float32")


def slowly(engine: Engine, video: Path) -> InMemoryVideo:
    """Frame by frame, into lists."""
    memory, window = InMemoryVideo(engine.model.geometry), engine.open_window()
    segmenter = Segmenter(engine.method.segment)
    closed = []
    for frame in sample_frames(str(video), FPS):
        (features_ND,) = engine.model.encode_frames([frame.rgb])
        closed.append(segmenter.push(features_ND, frame.start_s, frame.end_s))
    for segment in [*closed, segmenter.flush()]:
        if segment is not None:
            memory.add(engine.prefill(window, segment))
    return memory


@pytest.mark.parametrize("batch_frames", [1, 3, 64])
def test_the_memory_is_that_of_one_frame_at_a_time(
    tmp_path: Path, tiny_model: VideoLLM, batch_frames: int
) -> None:
    video, engine = write_clip(tmp_path / "a.mp4", steady(5)), Engine(tiny_model, METHOD)
    expected = slowly(engine, video)
    with SegmentStore.open(tmp_path / "store", identity=identity(tiny_model)) as store:
        store.add_stream("a", str(video))
        frames = sample_frames(str(video), FPS)
        cost = ingest(engine, store, "a", frames, batches=FrameBatches(FPS, batch_frames), codec="raw")
        memory = store.reader("a").refresh()
    assert (cost.frames, cost.segments) == (10, 3)
    assert cost.decode_encode_s > 0
    assert cost.prefill_s > 0
    assert memory.segments == expected.segments
    for layer in range(tiny_model.num_layers):
        assert_same_blocks(memory, expected, layer)


def assert_same_blocks(memory: StreamSnapshot, expected: InMemoryVideo, layer: int) -> None:
    table = expected.table(layer)
    assert np.array_equal(memory.table(layer).segment_nos, table.segment_nos)
    got = memory.gather(layer, table.segment_nos, table.slots)
    want = expected.gather(layer, table.segment_nos, table.slots)
    torch.testing.assert_close(got.keys_bNGd, want.keys_bNGd, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(got.values_bNGd, want.values_bNGd, atol=1e-4, rtol=1e-4)


def test_an_error_of_the_source_leaves_what_was_committed(tmp_path: Path, tiny_model: VideoLLM) -> None:
    video, engine = write_clip(tmp_path / "a.mp4", steady(5)), Engine(tiny_model, METHOD)

    def breaking_off():
        for k, frame in enumerate(sample_frames(str(video), FPS)):
            if k == 6:
                raise SourceError("the disk is gone")
            yield frame

    with SegmentStore.open(tmp_path / "store", identity=identity(tiny_model)) as store:
        store.add_stream("a", str(video))
        with pytest.raises(SourceError, match="the disk is gone"):
            ingest(engine, store, "a", breaking_off(), batches=FrameBatches(FPS, 2), codec="raw")
        assert [s.num_frames for s in store.reader("a").refresh().segments] == [4]
