"""Features to closed segments, one frame at a time (ALGORITHM.md, section 2). Knows no model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from streamkv.config import SegmentConfig
from streamkv.errors import ConfigError
from streamkv.types import Segment

ROUNDING_S = 1e-3
"""Two times that are this near are one."""

Similarity = Callable[[Tensor, Tensor], float]
"""Of two frames' features (N, D)."""


def cosine(a_ND: Tensor, b_ND: Tensor) -> float:
    """Of the mean tokens, as published. One thing that moves may change it as much as another place does."""
    a_D, b_D = a_ND.float().mean(dim=0), b_ND.float().mean(dim=0)
    return float(torch.nn.functional.cosine_similarity(a_D, b_D, dim=0))


def dot(a_ND: Tensor, b_ND: Tensor) -> float:
    """Of the mean tokens; it sees their lengths too."""
    return float(torch.dot(a_ND.float().mean(dim=0), b_ND.float().mean(dim=0)))


def quartile(a_ND: Tensor, b_ND: Tensor) -> float:
    """The lower quartile of the cosines of tokens in the same place: low when a quarter of the picture changed."""
    cosines_N = torch.nn.functional.cosine_similarity(a_ND.float(), b_ND.float(), dim=1)
    return float(cosines_N.quantile(0.25))


def is_alike(a_ND: Tensor, b_ND: Tensor, above: float) -> bool:
    """Whether no token of the one differs from the other's in its place: a small thing in a corner is a change too."""
    cosines_N = torch.nn.functional.cosine_similarity(a_ND.float(), b_ND.float(), dim=1)
    return bool(cosines_N.min() > above)


SIMILARITIES: dict[str, Similarity] = {"cosine": cosine, "dot": dot, "quartile": quartile}


@dataclass(frozen=True)
class OpenFrame:
    """A frame of the open segment, perhaps merged of several."""

    features_ND: Tensor
    start_s: float
    end_s: float
    similarity: float  # to the frame before it

    def merge(self, later: OpenFrame) -> OpenFrame:
        """The token-wise mean, with the span of both."""
        features_ND = (self.features_ND + later.features_ND) / 2
        return OpenFrame(features_ND, self.start_s, later.end_s, self.similarity)


class SegmentPolicy(ABC):
    """When the open segment closes. `frames` is never empty."""

    def __init__(self, config: SegmentConfig) -> None:
        self.config = config

    def ends_before(self, frames: list[OpenFrame], similarity: float) -> bool:
        """Whether a frame of that similarity to the one before it opens a new segment."""
        return False

    def ends_after(self, frames: list[OpenFrame]) -> bool:
        """Whether the segment is complete as it stands."""
        return False

    @abstractmethod
    def fit(self, frames: list[OpenFrame], similarity: Similarity) -> None:
        """Brings the open segment back to `max_frames`, in place."""


class SemanticPolicy(SegmentPolicy):
    """Closes on change; a full segment merges its most similar neighbours and goes on."""

    def ends_before(self, frames: list[OpenFrame], similarity: float) -> bool:
        return len(frames) >= self.config.min_frames and similarity <= self.config.theta

    def fit(self, frames: list[OpenFrame], similarity: Similarity) -> None:
        if len(frames) > self.config.max_frames:
            # The newest was compared with the frame before it as that came; it may have been merged since.
            pair = similarity(frames[-2].features_ND, frames[-1].features_ND)
            frames[-1] = replace(frames[-1], similarity=pair)
        while len(frames) > self.config.max_frames:
            # Of equal pairs the earliest, so that the latest frames stay as they are longest.
            i = max(range(1, len(frames)), key=lambda j: frames[j].similarity)
            frames[i - 1 : i + 1] = [frames[i - 1].merge(frames[i])]
            for j in (i - 1, i):  # the merged frame's similarities to its neighbours
                if 0 < j < len(frames):
                    pair = similarity(frames[j - 1].features_ND, frames[j].features_ND)
                    frames[j] = replace(frames[j], similarity=pair)


class UniformPolicy(SegmentPolicy):
    """Closes as soon as it holds `max_frames`."""

    def ends_after(self, frames: list[OpenFrame]) -> bool:
        return len(frames) >= self.config.max_frames

    def fit(self, frames: list[OpenFrame], similarity: Similarity) -> None:
        assert len(frames) <= self.config.max_frames, (len(frames), self.config.max_frames)


SEGMENT_POLICIES: dict[str, type[SegmentPolicy]] = {"semantic": SemanticPolicy, "uniform": UniformPolicy}
"""Segment policies by name. To add one: a `SegmentPolicy` and a row here."""


class Segmenter:
    """One stream's open segment. `max_seconds` bounds every policy: a segment never spans more stream time.

    (One frame that spans more makes a segment of its own; a time bound wins over `min_frames`.) Only one in which
    nothing changes goes on to `still_seconds`; past `max_seconds` it is its first frame, on show all the time.
    Features stay where they are; a closed segment holds its own copy.
    """

    def __init__(self, config: SegmentConfig, segment_no: int = 0) -> None:
        if config.policy not in SEGMENT_POLICIES:
            known = ", ".join(sorted(SEGMENT_POLICIES))
            raise ConfigError(f"segment.policy: unknown {config.policy!r}; known: {known}")
        if config.similarity not in SIMILARITIES:
            known = ", ".join(sorted(SIMILARITIES))
            raise ConfigError(f"segment.similarity: unknown {config.similarity!r}; known: {known}")
        self._config = config
        self._policy = SEGMENT_POLICIES[config.policy](config)
        self._similarity = SIMILARITIES[config.similarity]
        self._next_no = segment_no
        self._frames: list[OpenFrame] = []
        self._num_source_frames = 0
        self._first_ND: Tensor | None = (
            None  # features of the open segment's first frame while all are like it
        )
        self._last_ND: Tensor | None = None  # features of the last frame that came, merged or not

    @property
    def open_segment(self) -> Segment | None:
        """The open segment as if it closed now, or None when there is none; changes nothing."""
        if not self._frames:
            return None
        return Segment(
            segment_no=self._next_no,
            features_nND=torch.stack([f.features_ND for f in self._frames]),
            spans_s=tuple((f.start_s, f.end_s) for f in self._frames),
            similarities=tuple(f.similarity for f in self._frames),
            num_source_frames=self._num_source_frames,
            resume_s=self._frames[-1].end_s,
        )

    def push(self, features_ND: Tensor, start_s: float, end_s: float) -> Segment | None:
        """Takes the next frame; the segment that it closed, if any.

        At most one: a frame that ends a segment and is complete by itself closes with the next push.
        """
        similarity = 1.0 if self._last_ND is None else self._similarity(self._last_ND, features_ND)
        frame = OpenFrame(features_ND, start_s, end_s, similarity)
        is_still = self._stays_still(frame)
        closed = self.flush() if self._ends_before(frame, is_still) else None
        if closed is not None or not self._frames:
            self._first_ND = features_ND
        elif not is_still:
            self._first_ND = None
        self._frames.append(frame)
        self._last_ND = features_ND
        self._num_source_frames += 1
        self._fit()
        return self.flush() if closed is None and self._ends_after() else closed

    def flush(self) -> Segment | None:
        """Closes the open segment, as at the end of a source."""
        segment = self.open_segment
        if segment is not None:
            self._next_no += 1
            self._frames, self._num_source_frames = [], 0
        return segment

    def _stays_still(self, frame: OpenFrame) -> bool:
        """Whether the open segment may go on beyond `max_seconds` with this frame."""
        if self._first_ND is None or not self._frames:
            return False
        follows = frame.start_s <= self._frames[-1].end_s + ROUNDING_S  # nobody saw what lies in a gap
        fits = frame.end_s - self._frames[0].start_s <= self._config.still_seconds
        return follows and fits and is_alike(self._first_ND, frame.features_ND, self._config.still_above)

    def _fit(self) -> None:
        span_s = self._frames[-1].end_s - self._frames[0].start_s
        if self._first_ND is not None and 0 < self._config.max_seconds < span_s and len(self._frames) > 1:
            first = self._frames[0]
            self._frames = [
                OpenFrame(self._first_ND, first.start_s, self._frames[-1].end_s, first.similarity)
            ]
        self._policy.fit(self._frames, self._similarity)

    def _ends_before(self, frame: OpenFrame, is_still: bool) -> bool:
        if not self._frames:
            return False
        too_long = 0 < self._config.max_seconds < frame.end_s - self._frames[0].start_s
        if too_long and is_still:
            return False
        return too_long or self._ends_after() or self._policy.ends_before(self._frames, frame.similarity)

    def _ends_after(self) -> bool:
        span_s = self._frames[-1].end_s - self._frames[0].start_s
        limit_s = self._config.max_seconds
        if self._first_ND is not None and limit_s > 0:
            limit_s = max(limit_s, self._config.still_seconds)
        return 0 < limit_s <= span_s or self._policy.ends_after(self._frames)


def segments_of(config: SegmentConfig, frames: Iterable[tuple[Tensor, float, float]]) -> Iterator[Segment]:
    """All segments of a stream that ends, from each frame's features (N, D), start_s and end_s."""
    segmenter = Segmenter(config)
    for features_ND, start_s, end_s in frames:
        closed = segmenter.push(features_ND, start_s, end_s)
        if closed is not None:
            yield closed
    last = segmenter.flush()
    if last is not None:
        yield last
