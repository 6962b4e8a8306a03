"""The common form of ReKV and StreamKV: a list of videos `{video_id, video_path, conversations}`.

MLVU, EgoSchema, QAEgo4D, ActivityNet-QA, RVS and StreamKV's conversion of StreamingBench all come in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from streamkv.evaluation.benchmarks.options import LETTERS, rekv_prompt, without_labels
from streamkv.evaluation.benchmarks.proactive import poll_seconds, proactive_questions
from streamkv.evaluation.benchmarks.records import Record, read_records, to_seconds
from streamkv.evaluation.benchmarks.suite import AnnotatedSuite, by_video, each_alone, make_suite
from streamkv.evaluation.types import EvalQuestion, EvalVideo

OPEN, CHOICE = "open", "choice"
"""Kinds of the questions that say none."""


def rekv_loader(
    name: str, *, null_answers: bool = False, timed: bool = False
) -> Callable[[Path, Path], AnnotatedSuite]:
    """A loader of the suite.

    Args:
        null_answers: A null answer is allowed: the question is asked and written down, and not scored.
        timed: Each question needs `start_time` and `end_time`: its evidence, asked about at the end of it.
    """

    def load(annotations: Path, videos: Path) -> AnnotatedSuite:
        """SuiteError: the file is missing or malformed."""
        read = partial(_read, annotations, videos, null_answers=null_answers, timed=timed)
        return make_suite(name, videos, read)

    return load


def _read(annotations: Path, videos: Path, *, null_answers: bool, timed: bool) -> list[EvalVideo]:
    asked: list[tuple[str, EvalQuestion]] = []
    polled: list[tuple[str, str, tuple[EvalQuestion, ...]]] = []
    for record in read_records(annotations):
        path = record.text("video_path")
        for called, conversation in _conversations(record):
            if "ground_truth_time" in conversation:
                polled.append((path, called, _polls(called, conversation)))
            else:
                q = _question(called, record, conversation, null_answers=null_answers, timed=timed)
                asked.append((path, q))
    return [*by_video(asked, videos), *each_alone(polled, videos)]


def _conversations(record: Record) -> Iterator[tuple[str, Record]]:
    """With their ids: video ids are not unique in MLVU, so the record's number is part of them."""
    prefix = f"{record.text('video_id')}/{record.where.removeprefix('record ')}"
    for k, conversation in enumerate(record.records("conversations", "conversation"), 1):
        yield f"{prefix}.{k}", conversation


def _question(
    called: str, record: Record, conversation: Record, *, null_answers: bool, timed: bool
) -> EvalQuestion:
    text, choices = conversation.text("question"), []
    if conversation.fields.get("choices") is not None:
        choices = without_labels(conversation.texts("choices", len(LETTERS)))
    unknown = null_answers and "answer" in conversation and conversation.fields["answer"] is None
    answer = "" if unknown else conversation.text("answer")
    if choices and not unknown:
        answer = _letter(conversation, choices)
    asked_at_s = conversation.seconds("end_time") if timed or "end_time" in conversation else float("inf")
    return EvalQuestion(
        id=called,
        kind=conversation.maybe_text("question_type", CHOICE if choices else OPEN),
        question=rekv_prompt(text, choices) if choices else text,
        answer=answer,
        scoring="unscored" if unknown else "letter" if choices else "judge",
        asked_at_s=asked_at_s,
        moments_s=_moments(conversation, timed=timed),
        extra={"video_id": record.text("video_id"), "choices": str(len(choices))},
    )


def _letter(conversation: Record, choices: list[str]) -> str:
    """Of the choice whose text is the answer, with its letter in front or without."""
    answer = conversation.text("answer")
    for letter, given, choice in zip(
        LETTERS, conversation.texts("choices", len(LETTERS)), choices, strict=False
    ):
        if answer in (given, choice):
            return letter
    raise conversation.wrong("answer", f"the text of one of choices, {choices!r}")


def _moments(conversation: Record, *, timed: bool) -> tuple[tuple[float, float], ...]:
    """RVS's times and the grounding windows; StreamingBench's start is always 0, and so no evidence."""
    if timed:
        start_s, end_s = conversation.seconds("start_time"), conversation.seconds("end_time")
        if end_s < start_s:
            raise conversation.wrong("end_time", f"not before start_time, {start_s:g} s")
        return ((start_s, end_s),)
    if "temporal_windows" not in conversation:
        return ()
    windows = conversation.fields["temporal_windows"]
    spans: list[tuple[float, float]] = []
    for window in windows if isinstance(windows, list) else [None]:
        pair = [to_seconds(x) for x in window] if isinstance(window, list) else []
        if len(pair) != 2 or pair[0] is None or pair[1] is None or pair[1] < pair[0]:
            raise conversation.wrong("temporal_windows", "a list of [start, end] in seconds")
        spans.append((pair[0], pair[1]))
    return tuple(spans)


def _polls(called: str, conversation: Record) -> tuple[EvalQuestion, ...]:
    """Over StreamKV's window, from `start_time` to `end_time`; in 70 of its 250 records the truth is not in it."""
    start_s, end_s = conversation.seconds("start_time"), conversation.seconds("end_time")
    seconds = poll_seconds(start_s, end_s)
    if not seconds:
        raise conversation.wrong("end_time", f"after start_time, {start_s:g} s")
    kind = conversation.maybe_text("task_type", "Proactive Output")
    text, output = conversation.text("question"), conversation.text("ground_truth_output")
    return proactive_questions(called, kind, text, output, seconds, conversation.seconds("ground_truth_time"))
