"""An ingest plane's parts without a model or a video: for tests of what is around them, and for many streams on one
machine. A frame is a number, its features are that number, and a segment's cache follows from its own."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from actors.decode_encode import DecodeParts
from actors.messages import StreamSpec
from actors.prefill import PrefillParts
from streamkv.config import PipelineConfig, SegmentConfig, StoreConfig
from streamkv.grid import OnGap
from streamkv.memory import SegmentInfo, VideoMemory
from streamkv.segmentation import Segmenter
from streamkv.store import ModelIdentity, SegmentStore
from streamkv.types import Frame, Geometry, LayerBlocks, Segment, SegmentKV
from streamkv.video import VideoInfo

GEOMETRY = Geometry(num_layers=2, num_heads=4, num_kv_heads=2, head_dim=4, hidden_dim=16, frame_tokens=3)
IDENTITY = ModelIdentity("fake", GEOMETRY, "float32")
SEGMENT_FRAMES = 4
REPLAYED = 2
"""Segments that a lost window has to see again."""
SEGMENTS = SegmentConfig(policy="uniform", min_frames=1, max_frames=SEGMENT_FRAMES, max_seconds=0)


class MeanEncoder:
    """A frame's features are its first pixel. A value in `poison` cannot be encoded."""

    def __init__(self, poison: Sequence[int] = ()) -> None:
        self.poison = set(poison)
        self.batches: list[int] = []

    def encode_frames(self, frames: Sequence[np.ndarray]) -> torch.Tensor:
        values = [int(frame[0, 0, 0]) for frame in frames]
        if self.poison & set(values):
            raise ValueError("poison")
        self.batches.append(len(frames))
        shape = (len(frames), GEOMETRY.frame_tokens, GEOMETRY.hidden_dim)
        return torch.tensor(values).view(-1, 1, 1).expand(shape).float().clone()


class CountingEngine:
    """A window is the list of segment numbers that went in; it must never see one twice or out of order."""

    def __init__(self) -> None:
        self.heard: set[str] = set()  # guidance prompts
        self.kept: set[float] = set()  # shares of frames
        self.opened = 0  # windows

    def open_window(self, memory: VideoMemory | None = None) -> list[int]:
        self.opened += 1
        return [s.segment_no for s in memory.segments] if memory is not None else []

    def replay(self, memory: VideoMemory) -> tuple[list[int], tuple[SegmentInfo, ...]]:
        self.opened += 1
        before, again = memory.segments[:-REPLAYED], memory.segments[-REPLAYED:]
        return [s.segment_no for s in before], again

    def prefill(
        self, window: list[int], segment: Segment, guidance: str = "", keep_ratio: float = 0.0
    ) -> SegmentKV:
        self.heard.add(guidance)
        self.kept.add(keep_ratio)
        # Retention may have taken the beginning of what it was opened with.
        wanted = list(range(segment.segment_no - len(window), segment.segment_no))
        assert window == wanted
        assert window or segment.segment_no == 0
        window.append(segment.segment_no)
        return cache_of(segment)

    def peek(
        self, window: list[int], segment: Segment, guidance: str = "", keep_ratio: float = 0.0
    ) -> SegmentKV:
        return self.prefill(list(window), segment, guidance, keep_ratio)


def cache_of(segment: Segment) -> SegmentKV:
    """All its frames in all layers; keys and values are drawn by the segment's number."""
    count = len(segment.spans_s)
    generator = torch.Generator().manual_seed(segment.segment_no)
    shape = (count, GEOMETRY.frame_tokens, GEOMETRY.num_kv_heads, GEOMETRY.head_dim)
    layers = []
    for _ in range(GEOMETRY.num_layers):
        keys, values = torch.randn(2, *shape, generator=generator)
        layers.append(LayerBlocks(keys, values, tuple(range(count)), segment.spans_s))
    return SegmentKV(
        segment_no=segment.segment_no,
        start_s=segment.start_s,
        end_s=segment.end_s,
        num_frames=count,
        num_source_frames=segment.num_source_frames,
        resume_s=segment.resume_s,
        layers=tuple(layers),
        summary_vectors=torch.stack([blocks.mean_keys()[-1] for blocks in layers]),
    )


@dataclass(frozen=True)
class EndlessFootage:
    """Streams of one frame a second of theirs that never end. A frame takes `frame_s`; streams are out of step."""

    frame_s: float

    def open(self, spec: StreamSpec, on_gap: OnGap) -> Iterator[Frame]:
        k = max(0, round(spec.start_s) - 1)
        time.sleep(self.frame_s * np.random.default_rng(sum(spec.stream_id.encode())).random())
        while True:
            yield Frame(np.full((2, 2, 3), k % 250, np.uint8), float(k), float(k + 1))
            k += 1
            time.sleep(self.frame_s)

    def probe(self, uri: str, *, timeout_s: float) -> VideoInfo:
        return VideoInfo(0.0, 1.0, 2, 2, "fake")


def recall(config: StoreConfig, stream_id: str) -> VideoMemory:
    with SegmentStore.open(config.root, catalog_url=config.catalog_url, read_only=True) as store:
        return store.reader(stream_id).refresh()


def prefill_parts(config: StoreConfig) -> PrefillParts:
    device, root = torch.device("cpu"), Path(config.root)
    engine = CountingEngine()
    return PrefillParts(engine, IDENTITY, device, root, "fp16", partial(recall, config), lambda kv, asked: ())


def endless_decode_parts(footage: EndlessFootage, config: PipelineConfig) -> DecodeParts:
    """What a decoder of `actors.spawn.RayWorkers` loads."""
    return DecodeParts(MeanEncoder(), partial(Segmenter, SEGMENTS), footage.open, probe=footage.probe)


def plane_prefill_parts(config: PipelineConfig) -> PrefillParts:
    """What a prefiller of it loads."""
    return prefill_parts(config.store)
