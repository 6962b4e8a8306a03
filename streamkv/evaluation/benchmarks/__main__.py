"""`python -m streamkv.evaluation.benchmarks ANSWERS.parquet`: what the table of `streamkv eval` cannot hold.

Prints the scores of StreamingBench's and OVO-Bench's groups and of polled questions.
Writes judge.jsonl and submission-VARIANT.csv beside the answers.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

from streamkv.evaluation.benchmarks.outputs import write_for_judge, write_submission
from streamkv.evaluation.benchmarks.ovobench import ovobench_scores
from streamkv.evaluation.benchmarks.proactive import proactive_scores
from streamkv.evaluation.benchmarks.streamingbench import streamingbench_scores
from streamkv.evaluation.report import read_answers


def main(arguments: list[str]) -> int:
    """The exit status: 0 done, 1 no such file, 2 not one argument."""
    if len(arguments) != 1:
        print("usage: python -m streamkv.evaluation.benchmarks ANSWERS.parquet", file=sys.stderr)
        return 2
    path = Path(arguments[0])
    if not path.is_file():
        print(f"{path}: no such file; give the answers.parquet that streamkv eval wrote", file=sys.stderr)
        return 1
    rows = read_answers(path)
    scores = {
        "streamingbench": {variant: asdict(score) for variant, score in streamingbench_scores(rows).items()},
        "ovobench": {variant: asdict(score) for variant, score in ovobench_scores(rows).items()},
        "proactive": {variant: asdict(score) for variant, score in proactive_scores(rows).items()},
    }
    print(json.dumps({name: found for name, found in scores.items() if found}, indent=2))
    if any(row.scoring == "judge" for row in rows):
        file = path.with_name("judge.jsonl")
        print(f"{file}: {write_for_judge(rows, file)} answers for a judge", file=sys.stderr)
    for variant in dict.fromkeys(row.variant for row in rows if row.suite == "egoschema"):
        file = path.with_name(f"submission-{variant}.csv")
        chosen = write_submission([row for row in rows if row.variant == variant], file)
        print(f"{file}: {chosen} answers to submit", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
