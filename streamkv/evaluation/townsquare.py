"""The suite of generated worlds: any length, any seed, questions spread over the whole past."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from streamkv.errors import SuiteError
from streamkv.evaluation.types import EvalQuestion, EvalVideo
from streamkv.townsquare import make_questions, make_world, write_video

VIDEO_FPS = 2
"""Pictures a second of the written video: several for each one that is sampled, and quick to draw."""
SEEDS_APART = 1_000
"""Worlds of one suite have seeds this far apart, so that neighbouring suite seeds share none."""


@dataclass(frozen=True)
class TownSquareSuite:
    """`worlds` worlds of `minutes` each, every one with `questions` questions, asked at its end."""

    minutes: float
    worlds: int
    questions: int
    seed: int
    folder: Path
    max_new_tokens: int = 8

    @property
    def name(self) -> str:
        return f"townsquare-{self.minutes:g}m"

    def videos(self) -> Iterator[EvalVideo]:
        for k in range(self.worlds):
            seed = self.seed + k * SEEDS_APART
            name = f"{self.minutes:g}m-{seed}"
            world = make_world(seed, self.minutes)
            questions = tuple(
                EvalQuestion(
                    id=f"{name}/{i}",
                    kind=q.kind,
                    question=q.question,
                    answer=q.answer,
                    scoring="exact",
                    moments_s=((q.start_s, q.end_s), *q.also_s),
                )
                for i, q in enumerate(make_questions(world, self.questions, seed))
            )
            yield EvalVideo(name, self.folder / f"{name}.mp4", questions)

    def prepare(self, video: EvalVideo) -> Path:
        """Draws the world if it is not there yet; a file is there whole or not at all."""
        if not video.path.is_file():
            seed = int(video.id.rpartition("-")[2])
            write_video(make_world(seed, self.minutes), video.path, fps=VIDEO_FPS)
        return video.path


SIZES = ((2.0, 10, 40), (10.0, 4, 100), (60.0, 2, 200))
"""Minutes, worlds, questions of each: at least 400 questions at every length."""
QUICK_SIZES = ((2.0, 2, 24), (10.0, 1, 48))


def townsquare_suites(
    seed: int, folder: Path, *, quick: bool = False, lengths: Sequence[float] = ()
) -> list[TownSquareSuite]:
    """The published suites, or small ones that take a minute or two; `lengths`: only those of so many minutes.

    Raises:
        SuiteError: no suite has one of these lengths.
    """
    sizes = QUICK_SIZES if quick else SIZES
    known = [minutes for minutes, _, _ in sizes]
    for minutes in lengths:
        if minutes not in known:
            allowed = ", ".join(f"{m:g}" for m in known)
            raise SuiteError(f"--lengths: got {minutes:g}, allowed {allowed} (minutes of a world)")
    return [TownSquareSuite(*size, seed, folder) for size in sizes if not lengths or size[0] in lengths]
