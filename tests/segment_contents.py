"""What a stream's segment files hold, but for whose they are: the stream's name and the writer's epoch."""

from __future__ import annotations

from typing import Any

from streamkv.store import SegmentStore
from streamkv.store.segment_file import SegmentFile

EVERY = 1_000_000


def segment_contents(store: SegmentStore, stream_id: str) -> list[tuple[Any, ...]]:
    """Of each segment, in order: times, counts, and the stored bytes of every layer."""
    return [_content(SegmentFile(store.root / p.path)) for p in store.segments(stream_id, 0, EVERY)]


def _content(file: SegmentFile) -> tuple[Any, ...]:
    kv = file.segment_kv()
    layers = [
        (b.frame_ids, b.spans_s, b.keys_bNGd.numpy().tobytes(), b.values_bNGd.numpy().tobytes())
        for b in kv.layers
    ]
    times = (kv.segment_no, kv.start_s, kv.end_s, kv.num_frames, kv.num_source_frames, kv.resume_s)
    return (*times, layers, file.summary_vectors().tobytes())
