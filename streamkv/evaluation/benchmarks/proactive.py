"""Proactive output: asked each second whether it is time to speak, and what to say; scored over a question's polls.

StreamingBench stops at the first yes and then asks. Here every poll is asked, and what to say at each second at which
saying it could count; the first yes decides afterwards which of these replies was given.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from streamkv.evaluation.runner import AnswerRow
from streamkv.evaluation.types import EvalQuestion

POLL_AFTER_S = 4
"""StreamingBench's last poll comes this long after the true moment."""
TOLERANCE_S = 2
"""A first yes is in time this near to the true moment."""


@dataclass(frozen=True)
class ProactiveScore:
    """Shares of all questions."""

    questions: int
    triggered: float
    """Said yes at any poll."""
    time_accuracy: float
    """Said its first yes within `TOLERANCE_S` of the true moment."""
    answer_accuracy: float
    """In time, and what it then said holds the true output."""


def poll_seconds(asked_s: float, last_s: float) -> range:
    """Each second after `asked_s`, up to `last_s`."""
    return range(math.floor(asked_s) + 1, math.floor(last_s) + 1)


def proactive_questions(
    name: str, kind: str, question: str, output: str, seconds: range, truth_s: float
) -> tuple[EvalQuestion, ...]:
    """A poll for each of the seconds; a question for each of them that is in time. The true moment may lie outside."""

    def at(second: int, role: str, text: str, answer: str) -> EvalQuestion:
        return EvalQuestion(
            id=f"{name}/{role}-{second}",
            kind=kind,
            question=_prompt(text),
            answer=answer,
            scoring="unscored",
            asked_at_s=float(second),
            extra={
                "poll_of": name,
                "role": role,
                "at_s": str(second),
                "truth_s": f"{truth_s:g}",
                "output": output,
            },
        )

    found: list[EvalQuestion] = []
    for second in seconds:
        in_time = abs(second - truth_s) <= TOLERANCE_S
        poll = f'{question} Is it the right time to output "{output}"? You can only answer yes or no.'
        found.append(at(second, "poll", poll, "yes" if in_time else "no"))
        if in_time:
            found.append(at(second, "output", question, output))
    return tuple(found)


def proactive_scores(rows: Iterable[AnswerRow]) -> dict[str, ProactiveScore]:
    """By variant; rows that are no poll are passed over."""
    groups: dict[str, dict[str, list[tuple[dict[str, str], str]]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        extra = json.loads(row.extra)
        if "poll_of" in extra:
            groups[row.variant][extra["poll_of"]].append((extra, row.answer))
    return {variant: _score(list(asked.values())) for variant, asked in groups.items()}


def _score(questions: list[list[tuple[dict[str, str], str]]]) -> ProactiveScore:
    triggered = in_time = right = 0
    for replies in questions:
        said = {int(extra["at_s"]): reply for extra, reply in replies if extra["role"] == "output"}
        yes = [
            int(extra["at_s"])
            for extra, reply in replies
            if extra["role"] == "poll" and "yes" in reply.lower()
        ]
        if not yes:
            continue
        triggered += 1
        in_time += min(yes) in said  # an output is asked exactly where a yes is in time
        right += replies[0][0]["output"] in said.get(min(yes), "")
    total = len(questions)
    return ProactiveScore(total, triggered / total, in_time / total, right / total)


def _prompt(text: str) -> str:
    """StreamingBench's."""
    return (
        "You are an advanced image question-answering AI assistant. You have been provided with images and a question "
        "related to the images. Your task is to carefully analyze the images and provide the answer to the question. "
        "You need to carefully confirm whether the images content meet the conditions of the question, and then output "
        f"the correct content.\n\nQuestion: {text}\n\nThe answer is:\n"
    )
