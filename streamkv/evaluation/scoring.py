"""Rules that score a reply: a reply and its question to 1.0 right, 0.0 wrong, None: not for a rule."""

from __future__ import annotations

import re
from collections.abc import Callable

from streamkv.evaluation.types import EvalQuestion
from streamkv.townsquare import is_correct

LEADING = re.compile(r"[\s\"'`*(\[]*([A-Ha-h])(?=[\s\"'`*]*(?:[.,:;)\]]|$))")
"""A letter at the start that is closed by punctuation or by the end, of either case: `A`, `(a)`, `**B.** ..`."""
STATED = re.compile(r"\b(?i:answer|option|choice)\b(?:\s+is)?[\s:\"'`*(\[]*([A-H])\b")
ALONE = re.compile(r"\b([A-H])\b")


def chosen_letter(reply: str) -> str | None:
    """The option that a reply names, A to H; None when it names none. The first of these that finds one:

    1. the reply starts with a letter and punctuation, or is that letter: `B`, `(B)`, `b. the bus`;
    2. a letter follows `answer`, `option` or `choice`, `is` between or not: `The answer is B`, `Option (B)`;
    3. the first capital that stands alone, as the benchmarks' own scripts have it: `B the bus`, `I say B`.
    """
    found = LEADING.match(reply) or STATED.search(reply) or ALONE.search(reply)
    return found.group(1).upper() if found else None


def said_yes(reply: str) -> bool | None:
    """True for yes, False for no, by the first `yes`, `no`, `y` or `n` that is a word; None without any."""
    found = re.search(r"\b(yes|no|y|n)\b", reply.lower())
    return found.group(1)[0] == "y" if found else None


def _exact(reply: str, question: EvalQuestion) -> float:
    return float(is_correct(reply, question.answer))


def _letter(reply: str, question: EvalQuestion) -> float:
    return float(chosen_letter(reply) == question.answer)


def _contains_letter(reply: str, question: EvalQuestion) -> float:
    """OVO-Bench's rule to the letter: a reply that lists every option, or says `Answer: B` for A, is right."""
    return float(question.answer in reply)


def _yes_no(reply: str, question: EvalQuestion) -> float:
    said = said_yes(reply)
    return float(said is not None and said == said_yes(question.answer))


def _digits(reply: str, question: EvalQuestion) -> float:
    """All digits of the reply, read as one number: `2 or 3` is 23, and `three` is nothing."""
    return float("".join(re.findall(r"[0-9]", reply)) == question.answer)


def _no_rule(reply: str, question: EvalQuestion) -> None:
    return None


SCORERS: dict[str, Callable[[str, EvalQuestion], float | None]] = {
    "exact": _exact,
    "letter": _letter,
    "contains_letter": _contains_letter,
    "yes_no": _yes_no,
    "digits": _digits,
    "judge": _no_rule,
    "unscored": _no_rule,
}
"""By name. `judge`: an open answer, for a language model to compare; `unscored`: its answer is not published, or it is
one poll of several that are scored together."""
