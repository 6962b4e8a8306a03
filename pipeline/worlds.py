"""Town-square worlds as files: a video, and questions with their answers beside it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streamkv.townsquare import Question


@dataclass(frozen=True)
class WrittenWorld:
    name: str
    seed: int
    minutes: float
    duration_s: float
    video: Path
    questions_file: Path
    questions: tuple[Question, ...]

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "seed": self.seed,
            "minutes": self.minutes,
            "duration_s": self.duration_s,
            "video": str(self.video),
            "questions": [asdict(question) for question in self.questions],
        }


def write_world(
    folder: Path,
    name: str,
    *,
    seed: int,
    minutes: float,
    questions: int,
    on_progress: Callable[[float], None] | None = None,
) -> WrittenWorld:
    """Writes NAME.mp4 and NAME.json. A video that the same seed and length made before is not made again."""
    from streamkv.townsquare import make_questions, make_world, write_video

    world = make_world(seed, minutes)
    made = WrittenWorld(
        name=name,
        seed=seed,
        minutes=minutes,
        duration_s=world.duration_s,
        video=folder / f"{name}.mp4",
        questions_file=folder / f"{name}.json",
        questions=tuple(make_questions(world, questions, seed)),
    )
    if not _is_made(made):
        made.questions_file.unlink(missing_ok=True)  # it stands for a whole video, so it comes last
        write_video(world, made.video, on_progress)
    partial = made.questions_file.with_suffix(".tmp")
    partial.write_text(json.dumps(made.as_json(), indent=1) + "\n")
    partial.replace(made.questions_file)
    return made


def _is_made(wanted: WrittenWorld) -> bool:
    try:
        found = json.loads(wanted.questions_file.read_text())
        same = all(found[key] == wanted.as_json()[key] for key in ("seed", "minutes", "duration_s"))
    except (OSError, ValueError, KeyError):
        return False
    return same and wanted.video.is_file()
