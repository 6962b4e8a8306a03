"""EgoSchema's answers are not published: what was chosen is written for its server to score."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from pathlib import Path

from streamkv.evaluation.runner import AnswerRow
from streamkv.evaluation.scoring import chosen_letter

LETTERS = "ABCDE"


def write_submission(rows: Iterable[AnswerRow], path: Path) -> int:
    """EgoSchema's `q_uid,answer` (0 to 4) of one variant, and how many; a reply without one of five letters is 0.

    That is ReKV's rule, and the server wants a number for every question.
    """
    chosen = [
        (json.loads(row.extra)["video_id"], max(0, LETTERS.find(chosen_letter(row.answer) or "A")))
        for row in rows
        if row.suite == "egoschema"
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("q_uid", "answer"), *chosen])
    return len(chosen)
