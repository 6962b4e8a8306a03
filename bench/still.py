"""What an hour of a car park where nothing moves costs, beside a minute of a busy place.

    python -m bench.still --json

One picture of the town square for an hour; a minute of a world as it is; and a minute that cuts to another scene with
each sampled frame, which is as busy as a video can be. Each goes through the method as configured into a store:

- `*_bytes`: of its segment files; `*_prefilled`: frames that went through the decoder, after alike ones were merged.
- `still_over_world`, `still_over_cuts`: bytes of the still hour over those of a busy minute; below 1 is the aim.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch

from bench import worlds
from bench.machine import Figure, machine, report
from pipeline.settings import load_settings
from streamkv.config import PipelineConfig
from streamkv.engine import Engine
from streamkv.frame_batches import FrameBatches
from streamkv.ingest import ingest
from streamkv.models import load_model
from streamkv.store import ModelIdentity, SegmentStore
from streamkv.townsquare import make_world
from streamkv.townsquare.draw import HEIGHT, WIDTH, draw_moment
from streamkv.video import sample_frames

STILL_EVERY_S = 5.0
"""Between two pictures of the still video, all alike; a picture is taken to be on show for no longer than 10 s."""


@dataclass(frozen=True)
class Cost:
    """What one video takes in the store."""

    file_bytes: int
    prefilled: int
    segments: int


def write_pictures(path: Path, pictures: Iterable[np.ndarray], every_s: float) -> Path:
    """One keyframe, then only what changes."""
    import av

    rate = 1 / Fraction(every_s).limit_denominator(1000)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "23", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.gop_size = 10_000
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def videos(folder: Path, seed: int, still_minutes: float, sample_fps: float) -> dict[str, Path]:
    world = make_world(seed, 1.0)
    many = make_world(seed, 12.0)
    scenes = [draw_moment(many, scene.start_s) for scene in many.scenes]
    still = draw_moment(world, 0.0)
    seconds = round(60 * still_minutes)
    return {
        "still": write_pictures(
            folder / "still.mp4", (still for _ in range(round(seconds / STILL_EVERY_S))), STILL_EVERY_S
        ),
        "world": write_pictures(folder / "world.mp4", (draw_moment(world, k / 2) for k in range(120)), 0.5),
        "cuts": write_pictures(
            folder / "cuts.mp4",
            (scenes[k % len(scenes)] for k in range(round(60 * sample_fps))),
            1 / sample_fps,
        ),
    }


def cost(engine: Engine, config: PipelineConfig, video: Path) -> Cost:
    identity = ModelIdentity.of(engine.model)
    with (
        tempfile.TemporaryDirectory() as root,
        SegmentStore.open(Path(root), identity=identity) as store,
    ):
        store.add_stream("s", str(video), {})
        frames = sample_frames(str(video), config.source.sample_fps)
        ingest(
            engine,
            store,
            "s",
            frames,
            batches=FrameBatches.configured(config.source),
            codec=config.store.codec,
        )
        info = store.stream("s")
        return Cost(info.file_bytes, info.num_frames, info.num_segments)


def measure(config: PipelineConfig, still_minutes: float, seeds: Sequence[int]) -> list[Figure]:
    """A run is a world."""
    torch.set_num_threads(max(1, config.model.threads))
    engine = Engine(load_model(config.model), config.method)
    runs: dict[str, list[float]] = {}
    for seed in seeds:
        with tempfile.TemporaryDirectory() as folder:
            made = videos(Path(folder), seed, still_minutes, config.source.sample_fps)
            costs = {name: cost(engine, config, video) for name, video in made.items()}
        for name, one in costs.items():
            runs.setdefault(f"{name}_bytes", []).append(one.file_bytes)
            runs.setdefault(f"{name}_prefilled", []).append(one.prefilled)
            runs.setdefault(f"{name}_segments", []).append(one.segments)
        for busy in ("world", "cuts"):
            ratio = costs["still"].file_bytes / costs[busy].file_bytes
            runs.setdefault(f"still_over_{busy}", []).append(ratio)
    units = {"bytes": "bytes", "prefilled": "frames", "segments": "segments"}
    return [
        Figure(name, units.get(name.rpartition("_")[2], "ratio"), tuple(values))
        for name, values in runs.items()
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    given = worlds.parser("bench.still", __doc__, minutes=60, worlds=3).parse_args(arguments)
    facts = machine()
    config = load_settings("demo", given.overrides)
    figures = measure(config, given.minutes, worlds.seeds_of(given))
    report(figures, facts, as_json=given.json)


if __name__ == "__main__":
    main()
