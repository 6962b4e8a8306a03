"""A memory that shows only the segments that the truth lies in: what perfect retrieval could answer."""

from __future__ import annotations

from collections.abc import Sequence

from streamkv.excerpt import Excerpt
from streamkv.memory import VideoMemory


def holding(memory: VideoMemory, moments_s: Sequence[tuple[float, float]]) -> Excerpt:
    """The segments that overlap any of the moments; the nearest one where none does."""
    segments = memory.segments
    chosen = [s for s in segments if any(a < s.end_s and b > s.start_s for a, b in moments_s)]
    if not chosen and segments and moments_s:
        at = moments_s[0][0]
        chosen = [min(segments, key=lambda s: abs(s.start_s - at))]
    return Excerpt(memory, chosen or segments)
