"""Writes a world as an H.264 file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from streamkv.townsquare.draw import HEIGHT, WIDTH, draw_moment
from streamkv.townsquare.script import World

VIDEO_FPS = 8


def write_video(
    world: World,
    path: Path | str,
    on_progress: Callable[[float], None] | None = None,
    *,
    fps: int = VIDEO_FPS,
) -> Path:
    """Encodes the whole world; `on_progress` hears the share done. The file appears whole or not at all."""
    import av

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial.mp4")
    total = round(world.duration_s * fps)
    with av.open(str(partial), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "23", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.gop_size = 4 * fps
        for k in range(total):
            frame = av.VideoFrame.from_ndarray(draw_moment(world, k / fps), format="rgb24")
            container.mux(stream.encode(frame))
            if on_progress is not None and k % (10 * fps) == 0:
                on_progress(k / total)
        container.mux(stream.encode(None))
    partial.replace(path)
    if on_progress is not None:
        on_progress(1.0)
    return path
