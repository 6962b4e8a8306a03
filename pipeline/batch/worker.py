"""A batch's worker: shows a video to the model once, then asks what it was told to. Ray Data calls it.

The video's memory is a small store of its own. It gets its name when it is whole, so that a worker that starts
again, after a crash or a kill, asks on without another prefill.
"""

from __future__ import annotations

import json
import math
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from actors.failures import WorkerLostError
from pipeline.model_identity import load_quietly
from pipeline.spans import AskedSpan, question_span, zone_of
from streamkv.config import PipelineConfig
from streamkv.engine import Engine
from streamkv.errors import QuestionError, StreamKVError
from streamkv.excerpt import Span
from streamkv.frame_batches import FrameBatches
from streamkv.held import HeldVideo
from streamkv.ingest import IngestCost, ingest
from streamkv.memory import VideoMemory
from streamkv.question import Question
from streamkv.sources import sample_archive
from streamkv.store import Gap, ModelIdentity, SegmentStore, StreamReader, StreamSnapshot, durable
from streamkv.together import Outcome
from streamkv.when import StreamClock

STREAM = "video"
COST = "cost.json"
MAX_TRIES = 3
"""Workers that may die at one video."""
PARTIAL = ".partial"
"""Ends the name of a memory that is not whole."""


@dataclass(frozen=True)
class Asked:
    """One question, with what was named beside it and what its words count from. What its answer depends on has the
    name `key`."""

    key: str
    question: str
    max_new_tokens: int
    start_s: float = -math.inf  # of the video's time; both infinite: nothing was named
    end_s: float = math.inf
    origin_s: float | None = None  # seconds since 1970 at the video's time 0; None: nobody knows
    now_s: float = 0.0  # seconds since 1970

    @property
    def named(self) -> Span | None:
        span = Span(self.start_s, self.end_s)
        return None if span == Span() else span


@dataclass(frozen=True)
class VideoQuestions:
    """The questions about one video, in one message."""

    video: str
    asked: tuple[Asked, ...]
    path: str = ""  # the file; empty: `video` is a stream of the configured store
    memory: str = ""  # folder of the file's memory, here or to be made
    tries: str = ""  # file that has a byte for each time that a worker began with these; empty: any number

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> VideoQuestions:
        values = json.loads(text)
        return cls(**{**values, "asked": tuple(Asked(**asked) for asked in values["asked"])})


@dataclass(frozen=True)
class Answered:
    """What became of one question, what it looked at, and what it cost."""

    key: str
    answer: str | None = None
    error: str | None = None
    evidence: list[dict[str, Any]] = field(default_factory=list)  # segment, start_s, end_s, weight
    confidence: float | None = None  # None: the method does not say
    gaps: list[dict[str, Any]] = field(default_factory=list)  # start_s, end_s, reason
    as_of_s: float | None = None
    frames: int | None = None  # of the whole video, as are the next three
    segments: int | None = None
    decode_encode_s: float | None = None  # None: a stream's, which the ingest plane has spent
    prefill_s: float | None = None
    prompt_tokens: int | None = None
    answer_tokens: int | None = None
    answer_s: float | None = None  # an even share of what this and those asked with it took
    span: dict[str, Any] | None = None  # start_s, end_s, words; None: all of the video


@dataclass(frozen=True)
class _Shown:
    """A video as its questions find it."""

    memory: VideoMemory
    about: Answered  # what all its answers share


class VideoAnswerer:
    """One model. Called with a batch of one `VideoQuestions`, yields its answers `chunk` at a time."""

    def __init__(self, config: PipelineConfig, chunk: int) -> None:
        self._config, self._chunk = config, chunk
        self._model = load_quietly(config.model)
        self._engine = Engine(self._model, config.method)
        self._store: SegmentStore | None = None
        self._reader: StreamReader | None = None  # of the latest stream
        self._held: tuple[StreamSnapshot, HeldVideo] | None = None

    def __call__(self, batch: dict[str, Sequence[str]]) -> Iterator[dict[str, list[str]]]:
        for text in batch["questions"]:
            for answers in self.answer(VideoQuestions.from_json(str(text))):
                yield {"answers": [json.dumps([asdict(answer) for answer in answers])]}

    def answer(self, questions: VideoQuestions) -> Iterator[list[Answered]]:
        """Every question once, in order. What fails is an answer with its error."""
        asked = questions.asked
        chunks = [asked[i : i + self._chunk] for i in range(0, len(asked), self._chunk)]
        try:
            _count_try(questions.tries)
            shown = self._of_file(questions) if questions.path else self._of_stream(questions.video)
        except Exception as exc:  # whatever is wrong with one video, the others are to be answered
            yield from ([Answered(one.key, error=_describe(exc)) for one in chunk] for chunk in chunks)
            return
        for chunk in chunks:
            yield self._ask(shown, chunk)

    def _ask(self, shown: _Shown, chunk: Sequence[Asked]) -> list[Answered]:
        """All together, whatever parts of the video they look at."""
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
            about = replace(shown.about, key=asked.key)
            if isinstance(part, QuestionError):
                answers.append(replace(about, error=_describe(part)))
            else:
                about = replace(about, span=part.shown().model_dump() if part else None)
                answers.append(_answered(about, next(outcomes), share_s))
        return answers

    def _looked_at(self, memory: VideoMemory, asked: Asked) -> AskedSpan | QuestionError | None:
        """The part of the video, or why there is none; None: all of it."""
        serve = self._config.serve
        clock = StreamClock(memory.as_of_s, asked.now_s, asked.origin_s, zone_of(serve))
        try:
            return question_span(asked.question, asked.named, memory, clock, serve)
        except QuestionError as exc:
            return exc

    def _of_stream(self, stream_id: str) -> _Shown:
        if self._store is None:
            self._store = SegmentStore.configured(
                self._config.store, identity=ModelIdentity.of(self._model), read_only=True
            )
        if (
            self._reader is None or self._reader.stream_id != stream_id
        ):  # groups of one stream follow each other
            self._reader = self._store.reader(stream_id)
        now = self._reader.refresh()
        if self._held is None or self._held[0] is not now:
            self._held = now, HeldVideo(now)
        info = self._store.stream(stream_id)
        about = Answered("", gaps=_gaps(info.gaps), frames=info.num_source_frames, segments=len(now.segments))
        return _Shown(self._held[1], about)

    def _of_file(self, questions: VideoQuestions) -> _Shown:
        folder = Path(questions.memory)
        if not folder.is_dir():
            self._remember(questions, folder)
        cost = IngestCost(**json.loads((folder / COST).read_text()))
        # Not read-only: what a kill left of its files is then seen to. Nobody else has it open.
        with SegmentStore.open(folder, identity=ModelIdentity.of(self._model)) as store:
            memory, gaps = store.reader(STREAM).refresh(), store.stream(STREAM).gaps
        return _Shown(HeldVideo(memory), Answered("", gaps=_gaps(gaps), **asdict(cost)))

    def _remember(self, questions: VideoQuestions, folder: Path) -> None:
        """Makes the video's memory; the folder appears whole or not at all."""
        partial = folder.with_name(f"{folder.name}.{uuid.uuid4().hex}{PARTIAL}")
        source = self._config.source
        try:
            with SegmentStore.open(partial, identity=ModelIdentity.of(self._model)) as store:
                store.add_stream(STREAM, questions.path)
                frames = sample_archive(
                    questions.path,
                    source.sample_fps,
                    on_gap=lambda *gap: store.add_gap(STREAM, *gap),
                    keyframes_only=source.keyframes_only,
                )
                cost = ingest(
                    self._engine,
                    store,
                    STREAM,
                    frames,
                    batches=FrameBatches.configured(source),
                    codec=self._config.store.codec,
                )
            text = json.dumps(asdict(cost)).encode()
            durable.write_temp(partial / COST, lambda file: file.write(text))
            partial.rename(folder)
        except OSError:
            if not folder.is_dir():  # else a worker that was given up was still at it, and came first
                raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _answered(about: Answered, found: Outcome, share_s: float) -> Answered:
    if isinstance(found, Exception):
        return replace(about, error=_describe(found))
    evidence = [
        {"segment": e.segment_no, "start_s": e.start_s, "end_s": e.end_s, "weight": e.weight}
        for e in found.evidence
    ]
    return replace(
        about,
        answer=found.text,
        evidence=evidence,
        confidence=found.confidence,
        as_of_s=found.as_of_s,
        prompt_tokens=found.num_prompt_tokens,
        answer_tokens=found.num_tokens,
        answer_s=share_s,
    )


def _count_try(file: str) -> None:
    """WorkerLostError when workers have begun often enough, and died.

    Ray would begin for ever, and what ends its task options say about that is deprecated.
    """
    if not file:
        return
    with open(file, "ab") as tries:
        tries.write(b".")
        if tries.tell() > MAX_TRIES:
            raise WorkerLostError(
                f"{MAX_TRIES} workers died at this video; see that they have memory enough, and that it is whole"
            )


def _gaps(gaps: Sequence[Gap]) -> list[dict[str, Any]]:
    return [asdict(gap) for gap in gaps]


def _describe(exc: Exception) -> str:
    """For the row; an error that is nobody's fault but ours is named in full."""
    return f"{type(exc).__name__}: {exc}" if isinstance(exc, StreamKVError) else repr(exc)
