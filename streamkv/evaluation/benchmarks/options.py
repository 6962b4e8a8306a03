"""Multiple choice: the options' letters, and the prompts with which each benchmark asks for one."""

from __future__ import annotations

import re
from collections.abc import Sequence

LETTERS = "ABCDEFGH"
"""As many options as a question may have; a reply's letter is looked for among these."""
LABEL = re.compile(r"([A-H])[.):]")
LABEL_IN_BRACKETS = re.compile(r"\(?([A-H])[.):]\s+")


def without_labels(options: Sequence[str]) -> list[str]:
    """`A. red` to `red`, if every option has its own letter in front; else they are left as they are."""
    labels = [LABEL_IN_BRACKETS.match(option) for option in options]
    if all(m and m.group(1) == letter for m, letter in zip(labels, LETTERS, strict=False)):
        return [option[m.end() :] for option, m in zip(options, labels, strict=True) if m]
    return list(options)


def four_lines(options: Sequence[str]) -> list[str]:
    """StreamingBench's options as lines that start with a letter.

    A letter in front stays, even out of order: the answer means it. Of four options, one without a letter gets that of
    its place. Of more, blank ones go, one without a letter is the rest of the one before it, and four are asked.
    """
    lines: list[str] = []
    whole = [option for option in options if option.strip()]
    for option in whole:
        if LABEL.match(option):
            lines.append(option)
        elif len(whole) > 4 and lines:
            lines[-1] += f" {option}"
        else:
            lines.append(f"{LETTERS[len(lines)]}. {option}")
    return lines[:4]


def rekv_prompt(question: str, options: Sequence[str]) -> str:
    """ReKV's and StreamKV's, without the start of a reply that they put into the model's mouth."""
    listed = "\n".join(f"({letter}) {option}" for letter, option in zip(LETTERS, options, strict=False))
    return f"Question: {question}\nOptions:\n{listed}\nOnly give the best option."


def streamingbench_prompt(question: str, lines: Sequence[str], dialogue: str | None = None) -> str:
    """StreamingBench's; its sequential questions have another, with the dialogue so far: empty before the first."""
    if dialogue is None:
        given, look, told = "some frames from the video", "video and provide the best answer to question", ""
    else:
        given, look = "a video", "video and the provided context to answer the question"
        told = f"{dialogue}\n\nHere is the question. Answer it and don't confuse it with the previous conversation.\n"
    return (
        f"You are an advanced video question-answering AI assistant. You have been provided with {given} and a "
        f"multiple-choice question related to the video. Your task is to carefully analyze the {look}, choosing from "
        "the four options provided. Respond with only the letter (A, B, C, or D) of the correct option.\n\n"
        f"{told}Question: {question}\n\nOptions:\n" + "\n".join(lines) + "\n\nThe best option is:"
    )


def ovobench_prompt(question: str, options: Sequence[str]) -> str:
    """OVO-Bench's."""
    listed = "; ".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))
    return (
        f"Question: {question}\nOptions:\n{listed};\n\nRespond only with the letter corresponding to your chosen "
        "option (e.g., A, B, C).\nDo not include any additional text or explanation in your response."
    )
