"""The script of a town-square world: what is where, when. Everything else is drawn or asked from it.

A world is a time-lapse: each scene lasts some seconds of video and one minute of town time, which the clock on the
tower shows. No two scenes of a world share a clock minute or a sign, so either names its scene.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

KINDS = ("car", "bus", "truck", "bicycle", "person", "dog", "bird", "balloon", "umbrella", "tent")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white")
ZONES = ("fountain", "tree", "gate", "bench", "kiosk", "steps")  # back row, then front row, left to right
WEATHERS = ("sunny", "cloudy", "rainy", "snowy", "foggy", "night")
SIGN_LETTERS = tuple("BCDEFGHJKLMNPRTUVWXY")
MAX_THINGS = 4

TEST_SEEDS = range(1_000_000)
"""Seeds that the demo, the tests and the evaluation draw from; training uses none of them."""
TRAIN_SEED_BASE = 1_000_000_000


@dataclass(frozen=True)
class Thing:
    """One object in one scene. Times are seconds from the scene's start."""

    kind: str
    colour: str
    zone: str
    enter_s: float
    leave_s: float

    @property
    def name(self) -> str:
        return f"{self.colour} {self.kind}"


@dataclass(frozen=True)
class Sign:
    letter: str
    number: int  # 10 to 99

    @property
    def text(self) -> str:
        return f"{self.letter} {self.number}"


@dataclass(frozen=True)
class Scene:
    start_s: float
    end_s: float
    clock_minute: int  # town time, minutes from midnight
    sign: Sign
    weather: str
    things: tuple[Thing, ...]  # kinds are distinct, zones are distinct

    @property
    def clock(self) -> str:
        return f"{self.clock_minute // 60:02d}:{self.clock_minute % 60:02d}"

    def visible(self, time_s: float) -> tuple[Thing, ...]:
        """The things on stage at this time of the world."""
        offset = time_s - self.start_s
        return tuple(t for t in self.things if t.enter_s <= offset < t.leave_s)


@dataclass(frozen=True)
class World:
    seed: int
    scenes: tuple[Scene, ...]

    @property
    def duration_s(self) -> float:
        return self.scenes[-1].end_s

    def scene_at(self, time_s: float) -> Scene:
        """The scene on show; the last one after the end."""
        for scene in self.scenes:
            if time_s < scene.end_s:
                return scene
        return self.scenes[-1]


def make_world(seed: int, minutes: float) -> World:
    """A world of about `minutes` of video (whole scenes; at least one). The same seed gives the same world.

    Raises:
        ValueError: minutes is not above 0 or more than 240 (the town's day has no more clock minutes).
    """
    if not 0 < minutes <= 240:
        raise ValueError(f"minutes: got {minutes!r}, allowed above 0, up to 240")
    rng = random.Random(seed)
    lengths: list[float] = []
    while sum(lengths) < minutes * 60:
        lengths.append(float(rng.randint(8, 14)))
    return make_scenes(rng, lengths, seed)


def make_scenes(rng: random.Random, lengths_s: list[float], seed: int = 0) -> World:
    """A world whose scenes have these lengths."""
    day = 24 * 60
    clocks = (
        sorted(rng.sample(range(day), len(lengths_s)))
        if len(lengths_s) > 300
        else _clocks(rng, len(lengths_s))
    )
    signs = rng.sample(range(len(SIGN_LETTERS) * 90), len(lengths_s))
    scenes, start = [], 0.0
    for length, clock, sign in zip(lengths_s, clocks, signs, strict=True):
        scenes.append(
            Scene(
                start_s=start,
                end_s=start + length,
                clock_minute=clock,
                sign=Sign(SIGN_LETTERS[sign // 90], 10 + sign % 90),
                weather=rng.choice(WEATHERS),
                things=_things(rng, length),
            )
        )
        start += length
    return World(seed, tuple(scenes))


def _clocks(rng: random.Random, count: int) -> list[int]:
    """Rising clock minutes, one to four apart, within one day."""
    steps = [rng.randint(1, 4) for _ in range(count)]
    first = rng.randrange(0, 24 * 60 - sum(steps))
    clocks = []
    for step in steps:
        first += step
        clocks.append(first)
    return clocks


def _things(rng: random.Random, length_s: float) -> tuple[Thing, ...]:
    """One to four things; they come in the first quarter and leave in the last, if at all."""
    count = rng.randint(1, MAX_THINGS)
    kinds = rng.sample(KINDS, count)
    zones = rng.sample(ZONES, count)
    things = []
    for kind, zone in zip(kinds, zones, strict=True):
        enter = 0.0 if rng.random() < 0.6 else rng.uniform(0.0, 0.25) * length_s
        leave = length_s if rng.random() < 0.6 else rng.uniform(0.75, 1.0) * length_s
        things.append(Thing(kind, rng.choice(COLOURS), zone, enter, leave))
    return tuple(things)
