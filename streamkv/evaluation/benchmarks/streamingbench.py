"""StreamingBench: `questions_{real,omni,sqa,proactive}.json`, or `*_stream.json` with one record for each video."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from streamkv.errors import SuiteError
from streamkv.evaluation.benchmarks.options import LETTERS, four_lines, streamingbench_prompt
from streamkv.evaluation.benchmarks.proactive import (
    POLL_AFTER_S,
    poll_seconds,
    proactive_questions,
    proactive_scores,
)
from streamkv.evaluation.benchmarks.records import Record, read_records
from streamkv.evaluation.benchmarks.suite import AnnotatedSuite, by_video, each_alone, make_suite
from streamkv.evaluation.runner import AnswerRow
from streamkv.evaluation.types import EvalQuestion, EvalVideo

TASKS = ("real", "omni", "sqa", "proactive")
DIALOGUE = (
    "Here are the contextual information related to the video. "
    "Please answer the questions based on the contextual information: "
)
MAX_OPTIONS = 8
PROACTIVE = "Proactive Output"
OMNI = ("Emotion Recognition", "Scene Understanding", "Source Discrimination", "Multimodal Alignment")
CONTEXTUAL = (
    "Anomaly Context Understanding",
    "Misleading Context Understanding",
    "Sequential Question Answering",
    PROACTIVE,
)
"""Kinds by group; the others are real-time ones."""


def load_streamingbench(annotations: Path, videos: Path) -> AnnotatedSuite:
    """One file, or a folder with any of them; a clip file is preferred to the stream file of the same questions.

    Raises:
        SuiteError: a file is missing or malformed.
    """
    return make_suite("streamingbench", videos, partial(_read, annotations, videos))


def _read(annotations: Path, videos: Path) -> list[EvalVideo]:
    asked: list[tuple[str, EvalQuestion]] = []
    polled: list[tuple[str, str, tuple[EvalQuestion, ...]]] = []
    for file in _files(annotations):
        before: dict[str, str] = {}
        for record in read_records(file):
            name = record.text("video_path")
            for k, question in enumerate(record.records("questions", "question"), 1):
                called = f"{file.stem}/{record.where.removeprefix('record ')}.{k}"
                if "ground_truth_time_stamp" in question:
                    polled.append((name, called, _polls(called, question)))
                else:
                    dialogue = before.get(name, "") if "_sqa" in file.stem else None
                    asked.append((name, _choice(called, question, dialogue)))
                    if dialogue is not None:
                        before[name] = (dialogue or DIALOGUE) + _turn(question)
    return [*by_video(asked, videos), *each_alone(polled, videos)]


def _files(annotations: Path) -> Iterator[Path]:
    if not annotations.is_dir():
        yield annotations
        return
    held = [
        [annotations / f"questions_{task}{form}.json" for form in ("", "_stream")]
        for task in TASKS
        if any((annotations / f"questions_{task}{form}.json").is_file() for form in ("", "_stream"))
    ]
    if not held:
        raise SuiteError(
            f"streamingbench: {annotations} holds none of questions_{{{','.join(TASKS)}}}[_stream].json; "
            "see docs/benchmarks.md"
        )
    for clips, stream in held:
        yield clips if clips.is_file() else stream


def _lines(question: Record) -> list[str]:
    lines = four_lines(question.texts("options", MAX_OPTIONS))
    if len(lines) < 2:
        raise question.wrong("options", "a list of at least 2 texts that are not blank")
    return lines


def _choice(called: str, question: Record, dialogue: str | None) -> EvalQuestion:
    lines = _lines(question)
    answer = question.text("answer")
    if answer not in tuple(LETTERS[: len(lines)]):
        raise question.wrong("answer", f"a letter from A to {LETTERS[len(lines) - 1]}")
    return EvalQuestion(
        id=called,
        kind=question.text("task_type"),
        question=streamingbench_prompt(question.text("question"), lines, dialogue),
        answer=answer,
        scoring="letter",
        asked_at_s=question.seconds("time_stamp"),
        extra={"ability": question.maybe_text("required_ability", "")},
    )


def _turn(question: Record) -> str:
    return (
        f"At timestamp {question.text('time_stamp')}, the following question and answer occurred: "
        f"Question: {question.text('question')}; Options: {', '.join(_lines(question))}; "
        f"Answer: {question.text('answer')}; "
    )


def _polls(called: str, question: Record) -> tuple[EvalQuestion, ...]:
    asked_s, truth_s = question.seconds("time_stamp"), question.seconds("ground_truth_time_stamp")
    if truth_s < asked_s:
        raise question.wrong("ground_truth_time_stamp", f"not before time_stamp, {asked_s:g} s")
    kind, text = question.text("task_type"), question.text("question")
    seconds = poll_seconds(asked_s, truth_s + POLL_AFTER_S)
    return proactive_questions(called, kind, text, question.text("ground_truth_output"), seconds, truth_s)


@dataclass(frozen=True)
class StreamingScore:
    """Shares; a group without an answered question is None."""

    kinds: dict[str, float]
    real: float | None
    omni: float | None
    contextual: float | None
    """Anomaly, misleading, sequential; and proactive output, right where its answer is."""
    overall: float
    """Of all questions, so that a group weighs what it has."""


def streamingbench_scores(rows: Iterable[AnswerRow]) -> dict[str, StreamingScore]:
    """By variant, in the columns of StreamKV's table; rows of other suites are passed over."""
    mine = [row for row in rows if row.suite == "streamingbench"]
    right: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in mine:
        if row.scoring == "letter":
            right[row.variant][row.kind].append(row.score or 0.0)
    for variant, polled in proactive_scores(mine).items():
        answers = round(polled.questions * polled.answer_accuracy)
        right[variant][PROACTIVE] = [1.0] * answers + [0.0] * (polled.questions - answers)
    return {variant: _score(kinds) for variant, kinds in right.items()}


def _score(kinds: dict[str, list[float]]) -> StreamingScore:
    groups: dict[str, list[float]] = defaultdict(list)
    for kind, scores in kinds.items():
        groups["omni" if kind in OMNI else "contextual" if kind in CONTEXTUAL else "real"] += scores
    shares = {group: statistics.fmean(scores) for group, scores in groups.items()}
    means = {kind: statistics.fmean(scores) for kind, scores in kinds.items()}
    everything = [score for scores in groups.values() for score in scores]
    real, omni, contextual = (shares.get(group) for group in ("real", "omni", "contextual"))
    return StreamingScore(means, real, omni, contextual, statistics.fmean(everything))
