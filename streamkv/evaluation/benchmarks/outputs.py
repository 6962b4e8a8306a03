"""What becomes of answers that no rule scores: a judge's file, a submission, scores over several questions."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from pathlib import Path

from streamkv.evaluation.benchmarks.options import LETTERS
from streamkv.evaluation.runner import AnswerRow
from streamkv.evaluation.scoring import chosen_letter


def write_for_judge(rows: Iterable[AnswerRow], path: Path) -> int:
    """Each open answer as a JSON line, and how many there are.

    `question`, `answer` and `pred_answer` are what ReKV's judge reads; the rest says which answer it was. One that
    could not be given has an empty `pred_answer` and the reason in `error`, so that it counts as wrong.
    """
    lines = [
        json.dumps(
            {
                "suite": row.suite,
                "variant": row.variant,
                "id": row.question_id,
                "video": row.video,
                "kind": row.kind,
                "question": row.question,
                "answer": row.expected,
                "pred_answer": row.answer,
                "error": row.error,
            },
            ensure_ascii=False,
        )
        for row in rows
        if row.scoring == "judge"
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return len(lines)


def write_submission(rows: Iterable[AnswerRow], path: Path) -> int:
    """EgoSchema's `q_uid,answer` (0 to 4) of one variant, and how many; a reply without a letter is 0, as in ReKV."""
    chosen = [
        (json.loads(row.extra)["video_id"], LETTERS.index(chosen_letter(row.answer) or "A"))
        for row in rows
        if row.suite == "egoschema"
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("q_uid", "answer"), *chosen])
    return len(chosen)
