"""What a stream's memory looks like, as plain values to draw. Knows no plotting, no store and no URI.

segments   |   0   |     1     | 2 |    3    |    kept share: a row a layer, a column a segment
frames      . . . . . . . . . . . . . . . . .     similarity to the frame before it, and a few pictures
question       ==        =              ==        a row a layer: the blocks that it reads, and how much
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image

from streamkv.config import SegmentConfig
from streamkv.engine import Engine
from streamkv.frame_batches import FrameBatches
from streamkv.memory import SegmentInfo, VideoMemory
from streamkv.models.base import VideoLLM
from streamkv.segmentation import SIMILARITIES
from streamkv.types import Evidence, Frame

THUMBNAIL_PIXELS = 240
"""Longer side of a thumbnail."""
MAX_THUMBNAILS = 10
"""Pictures that fit side by side and still show something."""
_AT_ONCE = 1024
"""Segments whose mean keys are in memory at once, while their blocks are counted."""


@dataclass(frozen=True)
class SegmentView:
    """A segment, or a bin of neighbours."""

    first_no: int
    last_no: int
    num_segments: int
    start_s: float
    end_s: float
    num_frames: int  # after merging
    kept_share_L: tuple[float, ...]  # frames that each layer kept, of num_frames; a summary does not count


@dataclass(frozen=True)
class FrameTrack:
    """The sampled frames as the segmenter compares them."""

    similarity: str  # `cosine` or `dot`
    theta: float | None  # at or below it a segment may close; None when the policy does not look
    spans_s: tuple[tuple[float, float], ...]
    similarities: tuple[float, ...]  # of each to the frame before it; 1.0 for the first


@dataclass(frozen=True)
class Thumbnail:
    """The picture in the middle of a segment."""

    segment_no: int
    time_s: float
    rgb: np.ndarray = field(repr=False)  # (height, width, 3) uint8


@dataclass(frozen=True)
class BlockView:
    """A block that one layer read for the question."""

    layer: int
    segment_no: int
    start_s: float
    end_s: float
    is_summary: bool
    share: float  # of the last prompt token's attention on video, in this layer


@dataclass(frozen=True)
class QuestionView:
    """A question with its answer and all blocks that were read for it, by layer, then in time order."""

    question: str
    answer: str
    evidence: tuple[Evidence, ...]  # heaviest first
    blocks: tuple[BlockView, ...]


@dataclass(frozen=True)
class MissingFootage:
    start_s: float
    end_s: float
    reason: str


@dataclass(frozen=True)
class Inspection:
    """All that is drawn of one stream, at one moment."""

    stream_id: str
    source: str  # its URI, as it may be shown
    state: str
    as_of_s: float
    num_layers: int
    segments: tuple[SegmentView, ...]
    gaps: tuple[MissingFootage, ...] = ()
    frames: FrameTrack | None = None
    thumbnails: tuple[Thumbnail, ...] = ()
    question: QuestionView | None = None
    notes: tuple[str, ...] = ()  # what is not drawn, or not as it is, and why

    @property
    def num_segments(self) -> int:
        return sum(s.num_segments for s in self.segments)

    @property
    def num_frames(self) -> int:
        return sum(s.num_frames for s in self.segments)

    def layer_shares(self) -> tuple[float, ...]:
        """Frames that each layer kept, of all frames of the stream; nothing when there is no segment."""
        if not self.segments:
            return ()
        return mean_shares(self.segments)

    def binned(self, limit: int) -> Inspection:
        """With at most `limit` columns of segments, and a note if that took bins."""
        segments = bin_segments(self.segments, limit)
        if len(segments) == len(self.segments):
            return self
        size = max(s.num_segments for s in segments)
        note = (
            f"{self.num_segments:,} segments are drawn in {len(segments)} bins of up to {size}; "
            "a bin's share is the mean over its frames"
        )
        return dataclasses.replace(self, segments=segments, notes=(*self.notes, note))

    def as_json(self) -> dict[str, Any]:
        """Everything but the pixels; what is not finite is null."""
        values = dataclasses.asdict(dataclasses.replace(self, thumbnails=()))
        values["thumbnails"] = [{"segment_no": t.segment_no, "time_s": t.time_s} for t in self.thumbnails]
        if self.frames is not None:
            values["frames"]["similarities"] = [
                s if math.isfinite(s) else None for s in self.frames.similarities
            ]
        return values


def view_segments(memory: VideoMemory) -> tuple[SegmentView, ...]:
    """All segments with what each layer kept of them. Reads mean keys, and of each segment one layer's blocks."""
    segments, num_layers = memory.segments, memory.geometry.num_layers
    views: list[SegmentView] = []
    for at in range(0, len(segments), _AT_ONCE):
        some = segments[at : at + _AT_ONCE]
        counts_LS = np.stack([_count_blocks(memory, layer, some) for layer in range(num_layers)])
        for segment, counts_L in zip(some, counts_LS.T, strict=True):
            summaries = _num_summaries(memory, segment, counts_L)
            views.append(
                SegmentView(
                    first_no=segment.segment_no,
                    last_no=segment.segment_no,
                    num_segments=1,
                    start_s=segment.start_s,
                    end_s=segment.end_s,
                    num_frames=segment.num_frames,
                    kept_share_L=tuple(
                        max(0, count - summaries) / segment.num_frames for count in counts_L.tolist()
                    ),
                )
            )
    return tuple(views)


def _count_blocks(memory: VideoMemory, layer: int, segments: Sequence[SegmentInfo]) -> np.ndarray:
    """(S,) blocks of one layer, by segment."""
    nos = np.array([s.segment_no for s in segments], np.int64)
    found = memory.table(layer, nos).segment_nos
    return np.bincount(np.searchsorted(nos, found), minlength=len(nos))


def _num_summaries(memory: VideoMemory, segment: SegmentInfo, counts_L: np.ndarray) -> int:
    """1 if the segment's last block is its summary (frame id n), else 0. All layers have it, or none."""
    layer = int(np.argmax(counts_L > 0))
    if counts_L[layer] == 0:
        return 0
    last = memory.gather(layer, np.array([segment.segment_no]), np.array([counts_L[layer] - 1]))
    return int(last.frame_ids[0] >= segment.num_frames)


def mean_shares(segments: Sequence[SegmentView]) -> tuple[float, ...]:
    """Each layer's kept share over several segments: every frame counts the same. At least one segment."""
    shares_SL = np.array([s.kept_share_L for s in segments])
    return tuple(np.average(shares_SL, axis=0, weights=[s.num_frames for s in segments]).tolist())


def bin_segments(segments: Sequence[SegmentView], limit: int) -> tuple[SegmentView, ...]:
    """Neighbours joined until there are at most `limit`: bins of one size, but for the last.

    7 segments, at most 3: |0 1 2|3 4 5|6|
    """
    if limit < 1:
        raise ValueError(f"limit: got {limit}, allowed 1 or more")
    size = -(-len(segments) // limit)
    if size <= 1:
        return tuple(segments)
    return tuple(_joined(segments[i : i + size]) for i in range(0, len(segments), size))


def _joined(segments: Sequence[SegmentView]) -> SegmentView:
    return SegmentView(
        first_no=segments[0].first_no,
        last_no=segments[-1].last_no,
        num_segments=sum(s.num_segments for s in segments),
        start_s=segments[0].start_s,
        end_s=segments[-1].end_s,
        num_frames=sum(s.num_frames for s in segments),
        kept_share_L=mean_shares(segments),
    )


def pick_shown(segments: Sequence[SegmentView], limit: int) -> tuple[SegmentView, ...]:
    """Those that get a thumbnail: all, or the ones at the middles of `limit` equal parts of the time."""
    if len(segments) <= limit:
        return tuple(segments)
    start_s, end_s = segments[0].start_s, segments[-1].end_s
    middles = [start_s + (i + 0.5) / limit * (end_s - start_s) for i in range(limit)]
    ends = [s.end_s for s in segments]
    rows = sorted({min(int(np.searchsorted(ends, t, side="right")), len(ends) - 1) for t in middles})
    return tuple(segments[row] for row in rows)


class FrameWatch:
    """Takes a stream's sampled frames, in order, and notes what the segmenter sees of them.

    `shown`: segments of which the picture in the middle is kept, in time order.
    """

    def __init__(
        self, model: VideoLLM, config: SegmentConfig, shown: Sequence[SegmentView], *, batches: FrameBatches
    ) -> None:
        self._model, self._config, self._batches = model, config, batches
        self._similarity = SIMILARITIES[config.similarity]
        self._pending = list(shown)
        self._last_ND: torch.Tensor | None = None
        self._spans: list[tuple[float, float]] = []
        self._similarities: list[float] = []
        self._thumbnails: list[Thumbnail] = []

    @property
    def num_frames(self) -> int:
        return len(self._spans)

    @property
    def end_s(self) -> float:
        """Stream time up to which frames came; 0.0 when none did."""
        return self._spans[-1][1] if self._spans else 0.0

    @property
    def thumbnails(self) -> tuple[Thumbnail, ...]:
        return tuple(self._thumbnails)

    @property
    def track(self) -> FrameTrack | None:
        """None when no frame came."""
        if not self._spans:
            return None
        looks = self._config.policy == "semantic"
        return FrameTrack(
            similarity=self._config.similarity,
            theta=self._config.theta if looks else None,
            spans_s=tuple(self._spans),
            similarities=tuple(self._similarities),
        )

    @torch.inference_mode()
    def run(self, frames: Iterable[Frame], on_position: Callable[[float], None] | None = None) -> None:
        """Encodes them batch by batch; `on_position` hears the stream time that is done."""
        for batch in self._batches.of(frames):
            features_BND = self._model.encode_frames([f.rgb for f in batch])
            for frame, features_ND in zip(batch, features_BND, strict=True):
                self._take(frame, features_ND)
            if on_position is not None:
                on_position(self.end_s)

    def _take(self, frame: Frame, features_ND: torch.Tensor) -> None:
        before, self._last_ND = self._last_ND, features_ND
        self._similarities.append(1.0 if before is None else self._similarity(before, features_ND))
        self._spans.append((frame.start_s, frame.end_s))
        while self._pending and frame.end_s > _middle(self._pending[0]):
            segment = self._pending.pop(0)
            if frame.start_s < segment.end_s:  # else footage is missing, and this is another segment's
                self._thumbnails.append(Thumbnail(segment.first_no, frame.start_s, _small(frame.rgb)))


def _middle(segment: SegmentView) -> float:
    return (segment.start_s + segment.end_s) / 2


def _small(rgb: np.ndarray) -> np.ndarray:
    image = Image.fromarray(rgb)
    image.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    return np.asarray(image)


def view_question(
    engine: Engine, memory: VideoMemory, question: str, *, max_new_tokens: int = 128
) -> QuestionView:
    """Asks it and keeps what was read. The prompt runs twice, to the same end: for the blocks, for the answer."""
    reading = engine.read(memory, question, max_new_tokens=1)
    blocks: list[BlockView] = []
    for layer, state in enumerate(reading.layers):
        blocks += _block_views(
            memory, layer, state.choice.segment_nos, state.choice.slots, state.block_mass_b
        )
    answer = engine.answer(memory, question, max_new_tokens=max_new_tokens)
    return QuestionView(question.strip(), answer.text, answer.evidence, tuple(blocks))


def _block_views(
    memory: VideoMemory, layer: int, segment_nos: np.ndarray, slots: np.ndarray, mass_b: torch.Tensor
) -> Iterator[BlockView]:
    num_frames = {s.segment_no: s.num_frames for s in memory.segments}
    stored = memory.gather(layer, segment_nos, slots)
    total = float(mass_b.double().sum())
    rows = zip(segment_nos.tolist(), stored.frame_ids, stored.spans_s, mass_b.tolist(), strict=True)
    for no, frame_id, (start_s, end_s), mass in rows:
        share = mass / total if total > 0 else 0.0
        yield BlockView(layer, no, start_s, end_s, frame_id >= num_frames[no], share)
