"""Real video files for tests, written with PyAV."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

SIDE = 64


def write_clip(
    path: Path,
    times_s: list[float],
    *,
    codec: str = "libx264",
    gop: int = 8,
    offset_s: float = 0.0,
    **options: str,
) -> Path:
    """A clip whose picture at time t is a grey of value t x 10 (mod 200), noisy in its upper half."""
    rng = np.random.default_rng(0)
    base = Fraction(1, 12_800)
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=8)
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = stream.time_base = base
        stream.codec_context.gop_size = gop
        for time in times_s:
            grey = np.full((SIDE, SIDE, 3), round(time * 10) % 200, np.uint8)
            grey[: SIDE // 2] += rng.integers(0, 40, (SIDE // 2, SIDE, 3), dtype=np.uint8)
            frame = av.VideoFrame.from_ndarray(grey, format="rgb24")
            frame.time_base, frame.pts = base, round(Fraction(time + offset_s) / base)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def steady(seconds: float, fps: float = 8) -> list[float]:
    return [k / fps for k in range(round(seconds * fps))]
