"""A bank of real features: scenes drawn, written as H.264, read back, and seen by the trained tower.

    python -m training.townsquare.bank --eyes out/eyes.pt --out out/bank.pt --worlds 60

With it the decoder trains on what it will really get, without drawing or looking again. A clip is a run of scenes of
one world, or it is mixed: each frame's cells come from different scenes, so that no sign goes with the same clock
twice and nothing can be learnt by heart.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from streamkv.townsquare.script import TRAIN_SEED_BASE, Scene, Sign, Thing, World, make_world
from streamkv.townsquare.video import write_video
from training.townsquare.build import IMAGE_SIZE
from training.townsquare.clips import SAMPLE_S, Clip, ClipSpec, pick
from training.townsquare.tower import Eyes, to_pixels

STEP_S = 1.0  # stream seconds between the bank's frames; a clip takes every second one


class BankEyes(nn.Module):
    """Stands where the tower would: looks each cell's features up by its place in the bank."""

    def __init__(self, features: Tensor):
        super().__init__()
        self.features = features  # (frames, 9, D) float16

    def forward(self, places: Tensor) -> Tensor:
        """(B, F, 9, 5) int64, of which [..., 0] is the place, to (B, F, 9, D)."""
        return self.features[places[..., 0], torch.arange(places.shape[2])].float()


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
    """Puts clips together from filled banks."""

    def __init__(self, *paths: Path | str, part: slice = slice(None), mixed: float = 0.0):
        """`part` of each bank's scenes; of the clips a share `mixed` is mixed, the others are runs of scenes."""
        features: list[Tensor] = []
        self.scenes: list[
            tuple[Scene, int, int]
        ] = []  # a scene that begins at 0 s, its first frame and its end
        offset = 0
        for path in paths:
            held = torch.load(path)
            rows = zip(held["scenes"], held["first"], held["first"][1:], strict=False)
            self.scenes += [
                (_scene(row), offset + a, offset + b) for row, a, b in list(rows)[part] if b - a >= 4
            ]
            features.append(held["features"])
            offset += len(features[-1])
        self.features = torch.cat(features)
        self.mixed = mixed
        self.at_minute: dict[int, list[tuple[Scene, int, int]]] = defaultdict(list)
        for held_scene in self.scenes:
            self.at_minute[held_scene[0].clock_minute].append(held_scene)

    def clip(self, rng: random.Random, spec: ClipSpec) -> Clip:
        count = rng.randint(*spec.scenes)
        made = self._mixed(rng, count) if rng.random() < self.mixed else self._run(rng, count)
        scenes, frames, start = [], [], 0.0
        for scene, cells in made:  # cells: (frames of the scene, 9) places
            scenes.append(replace(scene, start_s=start, end_s=start + scene.end_s))
            start += scene.end_s
            step = round(SAMPLE_S / STEP_S)
            grid = range(rng.randrange(step), len(cells), step)
            chosen = pick(rng, grid, 0, len(cells), rng.randint(*spec.frames))
            frames.append([np.repeat(cells[i][:, None], 5, 1) for i in chosen])
        return Clip(World(-1, tuple(scenes)), frames)

    def _run(self, rng: random.Random, count: int) -> list[tuple[Scene, np.ndarray]]:
        """Scenes that follow each other in their world."""
        while True:
            at = rng.randrange(len(self.scenes) - count + 1)
            run = self.scenes[at : at + count]
            clocks = [scene.clock_minute for scene, _, _ in run]
            if sorted(set(clocks)) == clocks:
                return [(scene, np.arange(a, b)[:, None].repeat(9, 1)) for scene, a, b in run]

    def _mixed(self, rng: random.Random, count: int) -> list[tuple[Scene, np.ndarray]]:
        """Scenes whose sign, sky, clock and things come from different ones.

        Their clocks are as near as in a world, or some are the same minute of another hour, which is easily confused.
        """
        hours = rng.choice((0.0, 0.3))
        steps = [60 if rng.random() < hours else rng.randint(1, 4) for _ in range(count)]
        minute = rng.randrange(max(1, 24 * 60 - sum(steps)))
        clocks: list[tuple[Scene, int, int]] = []
        for step in steps:
            if minute in self.at_minute:
                clocks.append(rng.choice(self.at_minute[minute]))
            minute += step
        if not clocks:  # the bank has gaps
            return self._mixed(rng, count)
        made, signs = [], set()
        for clock in clocks:
            things = rng.choice(self.scenes)
            sky, sign = rng.choice(self.scenes), rng.choice(self.scenes)
            while sign[0].sign in signs:
                sign = rng.choice(self.scenes)
            signs.add(sign[0].sign)
            _, a, b = things
            cells = np.arange(a, b)[:, None].repeat(9, 1)
            for cell, (_, first, end) in enumerate((sign, sky, clock)):
                cells[:, cell] = [rng.randrange(first, end) for _ in range(a, b)]
            scene = replace(
                things[0],
                clock_minute=clock[0].clock_minute,
                sign=sign[0].sign,
                weather=sky[0].weather,
            )
            made.append((scene, cells))
        return made


def _scene(row: tuple) -> Scene:
    length, clock, letter, number, weather, things = row
    return Scene(0.0, length, clock, Sign(letter, number), weather, tuple(Thing(*t) for t in things))


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
