"""A bank of real features: scenes drawn, written as H.264, read back, and seen by the trained tower.

    python -m training.townsquare.bank --eyes out/eyes.pt --out out/bank.pt --worlds 60

With it the decoder trains on what it will really get, without drawing or looking again: clips are put together from
the bank's scenes, in the order of their clocks.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from streamkv.townsquare.script import TRAIN_SEED_BASE, Scene, Sign, Thing, World, make_world
from streamkv.townsquare.video import write_video
from training.townsquare.build import IMAGE_SIZE
from training.townsquare.clips import SAMPLE_S, Clip, ClipSpec
from training.townsquare.tower import Eyes, to_pixels

STEP_S = 1.0  # stream seconds between the bank's frames; a clip takes every second one


class BankEyes(nn.Module):
    """Stands where the tower would: looks a frame's features up by its place in the bank."""

    def __init__(self, features: Tensor):
        super().__init__()
        self.features = features  # (frames, 9, D) float16

    def forward(self, places: Tensor) -> Tensor:
        """(B, F, 9, 5) int64, of which [..., 0, 0] is the place, to (B, F, 9, D)."""
        return self.features[places[..., 0, 0]].float()


def read_pictures(path: Path, times_s: list[float]) -> np.ndarray:
    """(len(times_s), IMAGE_SIZE, IMAGE_SIZE, 3) uint8: the frame on show at each time; times rise."""
    wanted, pictures = iter(times_s), []
    at = next(wanted, None)
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            while at is not None and frame.time is not None and frame.time + 1e-6 >= at:
                picture = Image.fromarray(frame.to_ndarray(format="rgb24"))
                pictures.append(
                    np.asarray(picture.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC))
                )
                at = next(wanted, None)
    return np.stack(pictures)


@torch.inference_mode()
def fill(eyes: Eyes, worlds: int, minutes: float, seed: int) -> dict[str, object]:
    """Scenes, and where each one's frames are: `first[i] : first[i + 1]`."""
    scenes: list[Scene] = []
    first, features = [0], []
    began = time.time()
    for k in range(worlds):
        world = make_world(TRAIN_SEED_BASE + seed + k, minutes)
        with tempfile.TemporaryDirectory() as folder:
            path = write_video(world, Path(folder) / "world.mp4", fps=2)
            times = np.arange(0.0, world.duration_s - 0.6, STEP_S).tolist()
            pictures = read_pictures(path, times)
        seen = torch.cat([eyes(to_pixels(p)) for p in np.array_split(pictures, max(1, len(pictures) // 64))])
        features.append(seen.half())
        for scene in world.scenes:
            count = sum(scene.start_s <= t < scene.end_s for t in times[: len(pictures)])
            scenes.append(scene)
            first.append(first[-1] + count)
        if k % 5 == 0:
            print(f"{k + 1}/{worlds} worlds, {len(scenes)} scenes, {time.time() - began:.0f} s", flush=True)
    packed = [
        (
            s.end_s - s.start_s,
            s.clock_minute,
            s.sign.letter,
            s.sign.number,
            s.weather,
            [(t.kind, t.colour, t.zone, t.enter_s, t.leave_s) for t in s.things],
        )
        for s in scenes
    ]
    return {"scenes": packed, "first": first, "features": torch.cat(features)}


class Bank:
    """Puts clips together from a filled bank."""

    def __init__(self, path: Path | str, *, part: slice = slice(None)):
        held = torch.load(path)
        self.features: Tensor = held["features"]
        rows = list(zip(held["scenes"], held["first"], held["first"][1:], strict=False))
        self.rows = rows[part]

    def clip(self, rng: random.Random, spec: ClipSpec) -> Clip:
        """A clip of scenes with different clocks and signs, in the order of their clocks."""
        count = rng.randint(*spec.scenes)
        chosen: dict[int, tuple] = {}
        signs: set[tuple[str, int]] = set()
        while len(chosen) < count:
            row = rng.choice(self.rows)
            sign = (row[0][2], row[0][3])
            if row[0][1] not in chosen and sign not in signs and row[2] - row[1] >= 4:
                chosen[row[0][1]] = row
                signs.add(sign)
        scenes, frames, start = [], [], 0.0
        for clock in sorted(chosen):
            (length, _, letter, number, weather, things), first, end = chosen[clock]
            scenes.append(
                Scene(
                    start,
                    start + length,
                    clock,
                    Sign(letter, number),
                    weather,
                    tuple(Thing(*t) for t in things),
                )
            )
            grid = list(range(first + rng.randrange(round(SAMPLE_S / STEP_S)), end, round(SAMPLE_S / STEP_S)))
            places = sorted(rng.sample(grid, min(len(grid), rng.randint(*spec.frames))))
            frames.append([np.full((9, 5), p) for p in places])
            start += length
        return Clip(World(-1, tuple(scenes)), frames)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--eyes", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--worlds", type=int, default=60)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    eyes = Eyes()
    eyes.load_state_dict(torch.load(args.eyes))
    eyes.eval()
    torch.save(fill(eyes, args.worlds, args.minutes, args.seed), args.out)


if __name__ == "__main__":
    main()
