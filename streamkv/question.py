"""What is asked of an engine. Knows no model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from streamkv.conversation import Turn
from streamkv.errors import QuestionError
from streamkv.excerpt import Span
from streamkv.memory import VideoMemory

OnToken = Callable[[str], None]
"""Takes each new piece of the answer's text; the pieces together are `Answer.text`."""


@dataclass(frozen=True)
class Question:
    """One question and how it is to be answered."""

    memory: VideoMemory
    text: str
    span: Span | None = None  # the only part of the memory that is looked at
    earlier: Sequence[Turn] = ()  # are read with the question; it alone says what is looked for
    max_new_tokens: int = 128
    min_confidence: float = 0.0  # an answer below it is not given
    on_token: OnToken | None = None  # an error of it ends the answer


def check_question(text: str, max_chars: int) -> str:
    """The question without surrounding space; QuestionError if nothing is left, it is too long, or no Unicode."""
    question = text.strip()
    try:
        question.encode()
    except UnicodeEncodeError as exc:
        raise QuestionError(f"question: half of a character at {exc.start}; send whole ones") from None
    if not question:
        raise QuestionError("question: got no text; ask something about the stream")
    if len(question) > max_chars:
        raise QuestionError(f"question: got {len(question)} characters, allowed {max_chars}; shorten it")
    return question
