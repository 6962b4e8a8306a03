"""Open answers: written out for a language model to judge, and its verdicts read back."""

from __future__ import annotations

import ast
import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from streamkv.errors import SuiteError
from streamkv.evaluation.runner import AnswerRow
from streamkv.evaluation.scoring import said_yes

JUDGE = (
    "You are an intelligent chatbot designed for evaluating the correctness of generative outputs for question-answer "
    "pairs. Your task is to compare the predicted answer with the correct answer and determine if they match "
    "meaningfully. Here's how you can accomplish the task:------##INSTRUCTIONS: - Focus on the meaningful match "
    "between the predicted answer and the correct answer.\n- Consider synonyms or paraphrases as valid matches.\n- "
    "Evaluate the correctness of the prediction compared to the answer."
)
PAIR = (
    "Please evaluate the following video-based question-answer pair:\n\nQuestion: {question}\n"
    "Correct Answer: {answer}\nPredicted Answer: {pred_answer}\n\nProvide your evaluation only as a yes/no and score "
    "where the score is an integer value between 0 and 5, with 5 indicating the highest meaningful match. Please "
    "generate the response in the form of a Python dictionary string with keys 'pred' and 'score', where value of "
    "'pred' is  a string of 'yes' or 'no' and value of 'score' is in INTEGER, not STRING.DO NOT PROVIDE ANY OTHER "
    "OUTPUT TEXT OR EXPLANATION. Only provide the Python dictionary string. For example, your response should look "
    "like this: {{'pred': 'yes', 'score': 4.8}}."
)
"""Both as ReKV has them (its `eval_open_ended.py`, from Video-ChatGPT)."""
VERDICT = "a dictionary such as {'pred': 'yes', 'score': 4}, score from 0 to 5"
MAX_SCORE = 5


@dataclass(frozen=True)
class JudgedScore:
    """Of one variant over one suite."""

    questions: int
    accuracy: float
    """Share of `yes`."""
    mean_score: float
    """From 0 to 5."""


def write_for_judge(rows: Iterable[AnswerRow], path: Path) -> int:
    """Each open answer as a JSON line, and how many there are.

    `messages` is what the judge is sent; what it replies goes into `reply` of the same line, for `judged_scores`. An
    answer that could not be given is empty, with the reason in `error` and no `messages`: it is wrong without a judge.
    """
    lines = [json.dumps(_line(row), ensure_ascii=False) for row in rows if row.scoring == "judge"]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return len(lines)


def _line(row: AnswerRow) -> dict[str, object]:
    pair = {"question": row.question, "answer": row.expected, "pred_answer": row.answer.replace("\n", "")}
    messages = [
        {"role": "system", "content": JUDGE},
        {"role": "user", "content": PAIR.format(**pair)},
    ]
    return {
        "suite": row.suite,
        "variant": row.variant,
        "id": row.question_id,
        "video": row.video,
        "kind": row.kind,
        **pair,
        "error": row.error,
        "messages": [] if row.error else messages,
    }


def read_verdict(reply: str) -> tuple[bool, int] | None:
    """Whether the answer is right, and its score with any fraction cut off; None of a reply that is no verdict."""
    try:
        verdict = ast.literal_eval(reply.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    if not isinstance(verdict, dict):
        return None
    said, score = said_yes(str(verdict.get("pred"))), verdict.get("score")
    if said is None or isinstance(score, bool) or not isinstance(score, int | float):
        return None
    return (said, int(score)) if 0 <= score <= MAX_SCORE else None


def judged_scores(path: Path) -> dict[str, dict[str, JudgedScore]]:
    """By suite and variant, of the lines of `write_for_judge` with the judge's `reply` in each.

    Raises:
        SuiteError: the file cannot be read, or a line is no object, has no reply, or one that is no verdict.
    """
    verdicts: dict[tuple[str, str], list[tuple[bool, int]]] = defaultdict(list)
    for number, text in enumerate(_text(path).strip("\n").split("\n"), 1):
        line = _parsed(path, number, text)
        found = (False, 0) if line.get("error") else read_verdict(str(line.get("reply", "")))
        if found is None:
            got = repr(line.get("reply", "nothing"))[:80]
            raise SuiteError(
                f"{path}: line {number}, field 'reply': got {got}, allowed: {VERDICT}; ask the judge again"
            )
        verdicts[str(line.get("suite")), str(line.get("variant"))].append(found)
    scores: dict[str, dict[str, JudgedScore]] = defaultdict(dict)
    for (suite, variant), group in verdicts.items():
        right, points = sum(yes for yes, _ in group), sum(score for _, score in group)
        scores[suite][variant] = JudgedScore(len(group), right / len(group), points / len(group))
    return dict(scores)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as exc:
        raise SuiteError(
            f"{path}: cannot be read ({exc.strerror}); give the judge.jsonl that holds the judge's replies"
        ) from exc


def _parsed(path: Path, number: int, text: str) -> dict[str, object]:
    try:
        line = json.loads(text)
    except ValueError as exc:
        raise SuiteError(f"{path}: line {number}: not JSON ({exc}); write the file again") from exc
    if not isinstance(line, dict):
        raise SuiteError(
            f"{path}: line {number}: got {text[:80]}, allowed: an object with fields; write the file again"
        )
    return line
