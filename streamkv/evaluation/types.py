"""What a suite is made of: videos, and the questions that are asked of each at some moment of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class EvalQuestion:
    """One question of one video, asked at a moment of the stream; what comes later is not seen."""

    id: str
    """Unique in its suite, and the same in every run: results are resumed by it."""
    kind: str
    """The suite's own name for the type of question."""
    question: str
    """What the model is asked, options included."""
    answer: str
    """What is expected; its form is the scorer's: a letter, `yes`, digits, or text for a judge."""
    scoring: str
    """Name of a rule in `streamkv.evaluation.scoring.SCORERS`."""
    asked_at_s: float = float("inf")
    """Stream seconds; infinity: at the end of the video."""
    moments_s: tuple[tuple[float, float], ...] = ()
    """Spans that the answer rests on, where they are annotated; evidence and age are measured against them."""
    extra: Mapping[str, str] = field(default_factory=dict)
    """What the suite's own report needs besides (task group, options, ...)."""


@dataclass(frozen=True)
class EvalVideo:
    """A video and its questions, in the order in which they are asked."""

    id: str
    path: Path
    """A video file; a suite that draws its videos gives the place where the file will be."""
    questions: tuple[EvalQuestion, ...]


class Suite(Protocol):
    """Videos with questions. `videos()` may be walked many times and gives the same each time."""

    @property
    def name(self) -> str: ...

    @property
    def max_new_tokens(self) -> int:
        """Room for an answer."""
        ...

    def videos(self) -> Iterator[EvalVideo]:
        """Every video of the suite, whether its file is there or not."""
        ...

    def prepare(self, video: EvalVideo) -> Path:
        """The video's file, made first if the suite draws it; MissingVideoError if it is not there."""
        ...
