"""One archived video into a store, in one process: decode, encode, segment, prefill, write, commit.

The ingest plane (`actors/`) does the same for many streams at once, live ones too, and goes on after a crash.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor

from streamkv.engine import Engine
from streamkv.frame_batches import FrameBatches
from streamkv.models.base import VideoLLM
from streamkv.segmentation import segments_of
from streamkv.store import SegmentStore, write_segment
from streamkv.types import Frame


@dataclass(frozen=True)
class IngestCost:
    """What a video has cost."""

    frames: int  # sampled
    segments: int
    decode_encode_s: float
    prefill_s: float  # with writing


def encode(model: VideoLLM, frames: Iterable[Frame], batches: FrameBatches) -> Iterator[tuple[Frame, Tensor]]:
    """Each frame with its features (N, D) on the CPU; those of a batch go through the tower at once."""
    for batch in batches.of(frames):
        features_BND = model.encode_frames([frame.rgb for frame in batch]).cpu()
        yield from zip(batch, features_BND, strict=True)


def ingest(
    engine: Engine,
    store: SegmentStore,
    stream_id: str,
    frames: Iterable[Frame],
    *,
    batches: FrameBatches,
    codec: str,
) -> IngestCost:
    """Takes a stream that the store has registered from its first frame to its last.

    Raises what `frames` raises, StoreError and CorruptSegmentError; what was committed before then stays.
    """
    epoch, window = store.begin_writing(stream_id), engine.open_window()
    num_frames = num_segments = 0
    begun, prefill_s = time.perf_counter(), 0.0
    encoded = ((f, frame.start_s, frame.end_s) for frame, f in encode(engine.model, frames, batches))
    for segment in segments_of(engine.method.segment, encoded):
        closed = time.perf_counter()
        kv = engine.prefill(window, segment)
        store.commit(write_segment(store.root, store.identity, stream_id, epoch, kv, codec))
        num_frames += segment.num_source_frames
        num_segments += 1
        prefill_s += time.perf_counter() - closed
    return IngestCost(num_frames, num_segments, time.perf_counter() - begun - prefill_s, prefill_s)
