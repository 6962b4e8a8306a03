"""Generated worlds as benchmarks take them: filmed, through the tower, and through prefill; and how many are wanted."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

from streamkv.engine import Engine
from streamkv.evaluation.runner import EncodedVideo, encode_video
from streamkv.memory import InMemoryVideo
from streamkv.models import VideoLLM
from streamkv.segmentation import segments_of
from streamkv.townsquare import World, make_world, write_video
from streamkv.types import SegmentKV

VIDEO_FPS = 2


def parser(prog: str, doc: str, *, minutes: float, worlds: int, seed: int = 300) -> argparse.ArgumentParser:
    """With the options that all have."""
    made = argparse.ArgumentParser(prog=f"python -m {prog}", description=doc.partition("\n")[0])
    made.add_argument("--minutes", type=float, default=minutes, help=f"of each video (default {minutes:g})")
    made.add_argument("--worlds", type=int, default=worlds, help=f"how many (default {worlds})")
    made.add_argument("--seed", type=int, default=seed, help=f"of the first world (default {seed})")
    made.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    made.add_argument("overrides", nargs="*", metavar="SETTING", help="settings a.b=c")
    return made


def seeds_of(given: argparse.Namespace) -> range:
    return range(given.seed, given.seed + given.worlds)


def show(model: VideoLLM, seed: int, minutes: float, sample_fps: float) -> tuple[World, EncodedVideo]:
    """A world, and its video as the tower sees it."""
    world = make_world(seed, minutes)
    with tempfile.TemporaryDirectory() as folder:
        video = Path(folder) / "world.mp4"
        write_video(world, video, fps=VIDEO_FPS)
        return world, encode_video(model, video, sample_fps)


def prefilled(engine: Engine, seen: EncodedVideo, guidance: str = "") -> Iterator[SegmentKV]:
    """The video's segments, one after the other."""
    window = engine.open_window()
    frames = ((features_ND, *span) for features_ND, span in zip(seen.features_FND, seen.spans_s, strict=True))
    for segment in segments_of(engine.method.segment, frames):
        yield engine.prefill(window, segment, guidance)


def remember(engine: Engine, segments: Iterator[SegmentKV]) -> InMemoryVideo:
    memory = InMemoryVideo(engine.model.geometry)
    for kv in segments:
        memory.add(kv)
    return memory
