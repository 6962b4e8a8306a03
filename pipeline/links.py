"""Where the pictures of a span are found. Imports nothing heavy."""

from __future__ import annotations

from typing import NamedTuple


class Links(NamedTuple):
    """Paths on the server; None where the pictures are not kept."""

    frame: str | None = None  # of the span's middle
    clip: str | None = None


def links_of(stream_id: str, start_s: float, end_s: float, max_clip_s: float) -> Links:
    """Of a span of an archive. A span longer than a clip may be has the clip of its beginning."""
    stream = f"/v1/streams/{stream_id}"
    to_s = min(end_s, start_s + max_clip_s)
    return Links(
        f"{stream}/frames?at_s={_text((start_s + end_s) / 2)}",
        f"{stream}/clip.mp4?from={_text(start_s)}&to={_text(to_s)}",
    )


def _text(seconds: float) -> str:
    return f"{seconds:.3f}".rstrip("0").rstrip(".")
