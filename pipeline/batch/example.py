"""A question log to try `streamkv batch` with: three short town-square videos, and what is true of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from pipeline.worlds import write_world

MINUTES = {"north": 1.0, "south": 1.5, "market": 2.0}
QUESTIONS_EACH = 20
SEED = 40
LOG = "questions.jsonl"


def write_example(folder: Path, on_video: Callable[[int, int], None]) -> Path:
    """Writes NAME.mp4 for each video, and the log of questions about all of them; returns the log's path.

    `on_video` hears how many videos are drawn, and how many there are. OSError when the folder cannot be written.
    """
    rows = []
    for i, (name, minutes) in enumerate(MINUTES.items()):
        world = write_world(folder, name, seed=SEED + i, minutes=minutes, questions=QUESTIONS_EACH)
        rows += [
            {
                "question": asked.question,
                "video": world.video.name,
                "expected": asked.answer,
                "kind": asked.kind,
            }
            for asked in world.questions
        ]
        on_video(i + 1, len(MINUTES))
    log = folder / LOG
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return log
