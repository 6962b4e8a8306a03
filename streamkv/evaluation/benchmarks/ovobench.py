"""OVO-Bench: backward tracing, real-time perception, and forward responding, asked again at several moments."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from streamkv.evaluation.benchmarks.options import LETTERS, ovobench_prompt
from streamkv.evaluation.benchmarks.records import Record, read_records
from streamkv.evaluation.benchmarks.suite import AnnotatedSuite, by_video, make_suite
from streamkv.evaluation.runner import AnswerRow
from streamkv.evaluation.types import EvalQuestion, EvalVideo

GROUPS = {
    "backward": ("EPM", "ASI", "HLD"),
    "realtime": ("OCR", "ACR", "ATR", "STU", "FPD", "OJR"),
    "forward": ("REC", "SSR", "CRR"),
}
GROUP_OF = {task: group for group, tasks in GROUPS.items() for task in tasks}
ONLY = "Do not include any additional text or explanation in your response."
REC = (
    "You're watching a video in which people may perform a certain type of action repetively.\n"
    "The person performing this kind of action are referred to as 'they' in the following statement.\n"
    "You're task is to count how many times have different people in the video perform this kind of action in total.\n"
    "One complete motion counts as one.\nNow, answer the following question: How many times did they {}?\n"
    "Provide your answer as a single number (e.g., 0, 1, 2, 3…) indicating the total count.\n" + ONLY
)
SSR = (
    "You're watching a tutorial video which contain a sequential of steps.\n"
    "The following is one step from the whole procedures:\n{}\n"
    "Your task is to determine if the man or woman in the video is currently performing this step.\n"
    "Answer only with “Yes” or “No”.\n" + ONLY
)
CRR = (
    "You're responsible of answering questions based on the video content.\n"
    "The following question are relevant to the latest frames, i.e. the end of the video.\n{}\n"
    "Decide whether existing visual content, especially latest frames, i.e. frames that near the end of the video, "
    "provide enough information for answering the question.\nAnswer only with “Yes” or “No”.\n" + ONLY
)
MAX_COUNT = 10_000


@dataclass(frozen=True)
class OvoScore:
    """Shares; a group without an answered task is None, and the total then too."""

    tasks: dict[str, float]
    backward: float | None
    realtime: float | None
    forward: float | None
    """Means over the tasks of a group, however many questions each has."""
    total: float | None
    """Mean of the three groups."""


def load_ovobench(annotations: Path, videos: Path) -> AnnotatedSuite:
    """`ovo_bench_new.json`, and the folder of the whole videos, not of the clips that its script cuts.

    Raises:
        SuiteError: the file is missing or malformed.
    """
    return make_suite("ovobench", videos, partial(_read, annotations, videos))


def _read(annotations: Path, videos: Path) -> list[EvalVideo]:
    asked = [(record.text("video"), q) for record in read_records(annotations) for q in _questions(record)]
    return by_video(asked, videos)


def ovobench_scores(rows: Iterable[AnswerRow]) -> dict[str, OvoScore]:
    """By variant, as the benchmark's own script has it; rows of other suites are passed over."""
    variants: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row.suite == "ovobench" and row.score is not None:
            variants[row.variant][row.kind].append(row.score)
    return {variant: _score(scores) for variant, scores in variants.items()}


def _score(scores: dict[str, list[float]]) -> OvoScore:
    tasks = {task: statistics.fmean(scores[task]) for task in GROUP_OF if task in scores}
    groups = [[tasks[t] for t in members if t in tasks] for members in GROUPS.values()]
    backward, realtime, forward = (statistics.fmean(g) if g else None for g in groups)
    found = [g for g in (backward, realtime, forward) if g is not None]
    return OvoScore(
        tasks, backward, realtime, forward, statistics.fmean(found) if len(found) == len(GROUPS) else None
    )


def _questions(record: Record) -> Iterator[EvalQuestion]:
    task = record.text("task")
    if task not in GROUP_OF:
        raise record.wrong("task", f"one of {', '.join(GROUP_OF)}")
    called = record.text("id")
    if GROUP_OF[task] != "forward":
        yield _choice(called, task, record)
        return
    moments = _moments(record, task)
    for k, test in enumerate(record.records("test_info", "test_info")):
        at_s = test.seconds("realtime")
        text, answer, scoring = _forward(record, test, task)
        seen = tuple((a, min(b, at_s)) for a, b in moments if a < at_s)
        extra = {"group": "forward", "test": str(k)}
        yield EvalQuestion(f"{called}/{k}", task, text, answer, scoring, at_s, seen, extra)


def _choice(called: str, task: str, record: Record) -> EvalQuestion:
    """By `gt`: where `answer` says something else, the benchmark's script does not read it either."""
    options = record.texts("options", len(LETTERS))
    return EvalQuestion(
        id=called,
        kind=task,
        question=ovobench_prompt(record.text("question"), options),
        answer=LETTERS[record.whole("gt", range(len(options)))],
        scoring="contains_letter",
        asked_at_s=record.seconds("realtime"),
        extra={"group": GROUP_OF[task]},
    )


def _forward(record: Record, test: Record, task: str) -> tuple[str, str, str]:
    """Prompt, expected answer, rule."""
    if task == "REC":
        return REC.format(record.text("activity")), str(test.whole("count", range(MAX_COUNT))), "digits"
    answer = ("No", "Yes")[test.whole("type", range(2))]
    if task == "SSR":
        return SSR.format(test.text("step")), answer, "yes_no"
    return CRR.format(record.text("question")), answer, "yes_no"


def _moments(record: Record, task: str) -> tuple[tuple[float, float], ...]:
    """What counts rest on, and the second at which the clue is seen. Steps have none: each is asked on its own."""
    if task == "REC":
        starts, ends = record.seconds_list("start_times"), record.seconds_list("end_times")
        if len(starts) != len(ends):
            raise record.wrong("end_times", f"as many as start_times, {len(starts)}")
        return tuple(zip(starts, ends, strict=True))
    if task == "CRR":
        clue_s = record.seconds("clue_time")
        return ((clue_s, clue_s + 1),)
    return ()
