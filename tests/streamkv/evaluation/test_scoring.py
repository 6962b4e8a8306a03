"""Rules against replies as models write them."""

from __future__ import annotations

import pytest

from streamkv.evaluation.scoring import SCORERS, chosen_letter
from streamkv.evaluation.types import EvalQuestion


def score(rule: str, reply: str, answer: str) -> float | None:
    return SCORERS[rule](reply, EvalQuestion("q", "kind", "?", answer, rule))


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("B", "B"), ("b", "B"), ("(B)", "B"), ("(b) the bus", "B"), ("B. the bus", "B"), ("**B**", "B"), (" B)", "B"),
        ("B: A man", "B"), ("The answer is B", "B"), ("A man, so the answer is (B).", "B"), ("Answer: B", "B"),
        ("The best option is: B", "B"), ("B the bus", "B"), ("I say B", "B"), ("the answer a man would give", None),
        ("Because", None), ("a man", None), ("", None), ("I", None),
    ],
)  # fmt: skip
def test_a_letter_is_found_however_it_is_said(reply: str, letter: str | None) -> None:
    assert chosen_letter(reply) == letter
    assert score("letter", reply, "B") == float(letter == "B")
    assert score("letter", reply, "C") == 0.0


def test_contains_letter_is_the_benchmarks_own_rule_flaws_included() -> None:
    assert score("contains_letter", "the second, B", "B") == 1.0
    assert score("contains_letter", "b", "B") == 0.0
    assert score("contains_letter", "Answer: B", "A") == 1.0


@pytest.mark.parametrize(
    ("reply", "answer", "right"),
    [
        ("Yes", "Yes", 1.0), ("Y", "Yes", 1.0), ("yes, they do", "Yes", 1.0), ("N", "No", 1.0), ("No.", "No", 1.0),
        ("No, not yes", "Yes", 0.0), ("Now", "No", 0.0), ("maybe", "No", 0.0), ("", "No", 0.0), ("Y", "No", 0.0),
    ],
)  # fmt: skip
def test_yes_and_no_may_be_letters_but_must_be_words(reply: str, answer: str, right: float) -> None:
    assert score("yes_no", reply, answer) == right


@pytest.mark.parametrize(
    ("reply", "right"), [("12", 1.0), ("12 times.", 1.0), ("1 or 2", 1.0), ("2", 0.0), ("12 of 13", 0.0), ("", 0.0)]
)  # fmt: skip
def test_all_digits_of_a_reply_make_the_count(reply: str, right: float) -> None:
    assert score("digits", reply, "12") == right


def test_exact_is_the_town_squares_rule_and_the_rest_is_for_others() -> None:
    assert score("exact", " L  34", "l 34") == 1.0
    assert score("exact", "L 35", "l 34") == 0.0
    assert score("judge", "no", "no") is None
    assert score("unscored", "A", "") is None
