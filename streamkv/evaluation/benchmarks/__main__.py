"""`python -m streamkv.evaluation.benchmarks FILE`: what the table of `streamkv eval` cannot hold.

Of answers.parquet: prints the scores of StreamingBench's and OVO-Bench's groups and of polled questions; writes
judge.jsonl and submission-VARIANT.csv beside it. Of judge.jsonl with the judge's replies in it: prints their scores.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from streamkv.errors import SuiteError
from streamkv.evaluation.benchmarks.judge import judged_scores, write_for_judge
from streamkv.evaluation.benchmarks.ovobench import ovobench_scores
from streamkv.evaluation.benchmarks.proactive import proactive_scores
from streamkv.evaluation.benchmarks.streamingbench import streamingbench_scores
from streamkv.evaluation.benchmarks.submission import write_submission
from streamkv.evaluation.report import read_answers
from streamkv.evaluation.runner import AnswerRow


def main(arguments: list[str]) -> int:
    """The exit status: 0 done, 1 the file cannot be used, 2 not one argument."""
    if len(arguments) != 1:
        print("usage: python -m streamkv.evaluation.benchmarks answers.parquet|judge.jsonl", file=sys.stderr)
        return 2
    path = Path(arguments[0])
    if not path.is_file():
        print(f"{path}: no such file; give the answers.parquet that streamkv eval wrote", file=sys.stderr)
        return 1
    try:
        scores: dict[str, Any] = judged_scores(path) if path.suffix == ".jsonl" else _answers(path)
    except SuiteError as exc:
        print(exc, file=sys.stderr)
        return 1
    print(json.dumps(scores, indent=2, default=asdict))
    return 0


def _answers(path: Path) -> dict[str, Any]:
    rows = read_answers(path)
    _write(rows, path)
    scores = {
        "streamingbench": streamingbench_scores(rows),
        "ovobench": ovobench_scores(rows),
        "proactive": proactive_scores(rows),
    }
    return {name: found for name, found in scores.items() if found}


def _write(rows: list[AnswerRow], path: Path) -> None:
    if any(row.scoring == "judge" for row in rows):
        file = path.with_name("judge.jsonl")
        print(f"{file}: {write_for_judge(rows, file)} answers for a judge", file=sys.stderr)
    for variant in dict.fromkeys(row.variant for row in rows if row.suite == "egoschema"):
        file = path.with_name(f"submission-{variant}.csv")
        chosen = write_submission([row for row in rows if row.variant == variant], file)
        print(f"{file}: {chosen} answers to submit", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
