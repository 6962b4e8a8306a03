"""A batch's worker, which looks at the part of a video that each question is about, as the API does."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from actors import video_answerer as base
from pipeline.spans import AskedSpan, question_span, zone_of
from streamkv.errors import QuestionError
from streamkv.excerpt import Span
from streamkv.memory import VideoMemory
from streamkv.question import Question
from streamkv.when import StreamClock


@dataclass(frozen=True)
class Asked(base.Asked):
    """One question, with what was named beside it and what its words count from."""

    start_s: float = -math.inf  # of the video's time; both infinite: nothing was named
    end_s: float = math.inf
    origin_s: float | None = None  # seconds since 1970 at the video's time 0; None: nobody knows
    now_s: float = 0.0  # seconds since 1970

    @property
    def named(self) -> Span | None:
        span = Span(self.start_s, self.end_s)
        return None if span == Span() else span


@dataclass(frozen=True)
class VideoQuestions(base.VideoQuestions):
    asked: tuple[Asked, ...]

    @classmethod
    def from_json(cls, text: str) -> VideoQuestions:
        values = json.loads(text)
        return cls(**{**values, "asked": tuple(Asked(**asked) for asked in values["asked"])})


@dataclass(frozen=True)
class Answered(base.Answered):
    """What became of one question, and what it looked at."""

    span: dict[str, Any] | None = None  # start_s, end_s, words; None: all of the video


class VideoAnswerer(base.VideoAnswerer):
    """Takes and gives the messages above. Questions about any parts of a video are answered together."""

    def __call__(self, batch: dict[str, Sequence[str]]) -> Iterator[dict[str, list[str]]]:
        for text in batch["questions"]:
            for answers in self.answer(VideoQuestions.from_json(str(text))):
                yield {"answers": [json.dumps([asdict(answer) for answer in answers])]}

    def _ask(self, shown: base._Shown, chunk: Sequence[Asked]) -> list[base.Answered]:  # type: ignore[override]  # from VideoQuestions above
        serve = self._config.serve
        found = [self._looked_at(shown.memory, asked) for asked in chunk]
        questions = [
            Question(
                shown.memory,
                part.question if part else asked.question,
                span=part.span if part else None,
                max_new_tokens=asked.max_new_tokens,
                min_confidence=serve.min_confidence,
            )
            for asked, part in zip(chunk, found, strict=True)
            if not isinstance(part, QuestionError)
        ]
        begun = time.perf_counter()
        outcomes = iter(self._engine.answer_many(questions, serve.batch_questions))
        share_s = (time.perf_counter() - begun) / max(1, len(questions))
        answers = []
        for asked, part in zip(chunk, found, strict=True):
            about = Answered(**{**vars(shown.about), "key": asked.key})
            if isinstance(part, QuestionError):
                answers.append(base._answered(about, part, 0.0))
            else:
                about = replace(about, span=part.shown().model_dump() if part else None)
                answers.append(base._answered(about, next(outcomes), share_s))
        return answers

    def _looked_at(self, memory: VideoMemory, asked: Asked) -> AskedSpan | QuestionError | None:
        """The part of the video, or why there is none; None: all of it."""
        serve = self._config.serve
        clock = StreamClock(memory.as_of_s, asked.now_s, asked.origin_s, zone_of(serve))
        try:
            return question_span(asked.question, asked.named, memory, clock, serve)
        except QuestionError as exc:
            return exc
