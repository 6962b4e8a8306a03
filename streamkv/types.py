"""The data that travels between the stages, named for its stage.

    Frame -> FrameFeatures -> Segment -> SegmentKV -> (a file) -> LayerBlocks -> Answer

Shape legend, used across the package:
    L decoder layers   H query heads   G key/value heads   d head size   D hidden size
    N tokens a frame   n frames in a segment   b blocks kept in one layer   T tokens
A *block* is the N key/value pairs of one frame (or of one summary) in one layer.

A process that handles none of these tensors imports no torch, which takes seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Geometry:
    """What fixes the shape of a cache; two caches are compatible when these and the fingerprint agree."""

    num_layers: int  # L
    num_heads: int  # H
    num_kv_heads: int  # G
    head_dim: int  # d
    hidden_dim: int  # D
    frame_tokens: int  # N

    @property
    def summary_dim(self) -> int:
        """Length of a layer's mean key, G * d."""
        return self.num_kv_heads * self.head_dim

    def block_bytes(self, bytes_per_value: int) -> int:
        """Bytes of one block in one layer."""
        keys_and_values = 2
        return self.frame_tokens * keys_and_values * self.num_kv_heads * self.head_dim * bytes_per_value


@dataclass(frozen=True)
class Frame:
    """One sampled picture."""

    rgb: np.ndarray  # (height, width, 3) uint8
    start_s: float  # stream time at which it is shown
    end_s: float  # stream time at which the next sample is due


@dataclass(frozen=True)
class Segment:
    """A closed run of similar frames, with their features."""

    segment_no: int  # 0, 1, 2 ... within the stream
    features_nND: Tensor  # (n, N, D)
    spans_s: tuple[tuple[float, float], ...]  # n x (start, end); a merged frame has the span of both
    similarities: tuple[float, ...]  # n x cosine to the frame before it; 1.0 for the stream's first
    num_source_frames: int  # sampled frames that went in, before merging
    resume_s: float  # a source that resumes continues at this stream time (exclusive of this segment)

    @property
    def start_s(self) -> float:
        return self.spans_s[0][0]

    @property
    def end_s(self) -> float:
        return self.spans_s[-1][1]


@dataclass(frozen=True)
class LayerBlocks:
    """The blocks that one layer keeps, in time order (a summary stands last in its segment).

    Keys are before rotary embedding. `frame_ids` number the frames within their segment; the summary's is n.
    """

    keys_bNGd: Tensor
    values_bNGd: Tensor
    frame_ids: tuple[int, ...]  # b
    spans_s: tuple[tuple[float, float], ...]  # b

    @property
    def num_blocks(self) -> int:
        return self.keys_bNGd.shape[0]

    def mean_keys(self) -> Tensor:
        """(b, G * d) float32: each block's mean key, what scores and indexes are made of."""
        return self.keys_bNGd.float().mean(dim=1).flatten(1)


@dataclass(frozen=True)
class SegmentKV:
    """What prefill makes of a segment, after compression: a list of blocks for each layer."""

    segment_no: int
    start_s: float
    end_s: float
    num_frames: int  # n, after merging
    num_source_frames: int
    resume_s: float
    layers: tuple[LayerBlocks, ...]  # L
    summary_vectors: Tensor  # (L, G * d) float32: what FAISS indexes
    similarities: tuple[float, ...] = ()

    @property
    def kv_bytes(self) -> int:
        """Bytes of all keys and values as they are in memory."""
        return sum(b.keys_bNGd.nbytes + b.values_bNGd.nbytes for b in self.layers)


@dataclass(frozen=True)
class Evidence:
    """A segment that the answer rests on."""

    segment_no: int
    start_s: float
    end_s: float
    weight: float  # share of the final prompt token's attention on video, averaged over layers; sums to <= 1
    layers: int  # layers that retrieved at least one of its blocks


@dataclass(frozen=True)
class Answer:
    """An answer with what it rests on."""

    text: str
    evidence: tuple[Evidence, ...]  # heaviest first
    as_of_s: float  # stream time up to which the store was read
    num_tokens: int
    timings_ms: dict[str, float] = field(
        default_factory=dict
    )  # query, search, fetch, prefill, first_token, total
    blocks_per_layer: tuple[int, ...] = ()
    num_prompt_tokens: int = 0  # the system prompt and what follows the video, without the video
    confidence: float | None = None  # how likely it is right; None: the method does not say


def cat_blocks(parts: Sequence[LayerBlocks]) -> LayerBlocks:
    """Joins blocks of one layer in the order given, where and of the type that the last are; at least one part."""
    import torch

    keys, values = parts[-1].keys_bNGd, parts[-1].values_bNGd
    return LayerBlocks(
        keys_bNGd=torch.cat([p.keys_bNGd.to(keys) for p in parts]),
        values_bNGd=torch.cat([p.values_bNGd.to(values) for p in parts]),
        frame_ids=tuple(i for p in parts for i in p.frame_ids),
        spans_s=tuple(s for p in parts for s in p.spans_s),
    )


def take_blocks(blocks: LayerBlocks, rows: Sequence[int]) -> LayerBlocks:
    """A copy of the given blocks, in the order given."""
    return LayerBlocks(
        keys_bNGd=blocks.keys_bNGd[rows],
        values_bNGd=blocks.values_bNGd[rows],
        frame_ids=tuple(blocks.frame_ids[i] for i in rows),
        spans_s=tuple(blocks.spans_s[i] for i in rows),
    )
