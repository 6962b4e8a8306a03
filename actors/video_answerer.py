"""Answers a video's questions for a batch: shows the video to the model once, then asks. Ray Data calls it.

The video's memory is a small store of its own. It gets its name when it is whole, so that a worker that starts
again, after a crash or a kill, asks on without another prefill.
"""

from __future__ import annotations

import json
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from actors.failures import WorkerLostError
from streamkv.config import ModelConfig, PipelineConfig
from streamkv.engine import Engine
from streamkv.errors import StreamKVError
from streamkv.held import HeldVideo
from streamkv.ingest import IngestCost, ingest
from streamkv.memory import VideoMemory
from streamkv.models import VideoLLM, load_model
from streamkv.question import Question
from streamkv.sources import sample_archive
from streamkv.store import Gap, ModelIdentity, SegmentStore, StreamReader, StreamSnapshot, durable
from streamkv.together import Outcome

STREAM = "video"
COST = "cost.json"
MAX_TRIES = 3
"""Workers that may die at one video."""
PARTIAL = ".partial"
"""Ends the name of a memory that is not whole."""


@dataclass(frozen=True)
class Asked:
    """One question. What its answer depends on has the name `key`."""

    key: str
    question: str
    max_new_tokens: int


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
    """What became of one question, with what it cost."""

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
        serve = self._config.serve
        questions = [
            Question(
                shown.memory,
                asked.question,
                max_new_tokens=asked.max_new_tokens,
                min_confidence=serve.min_confidence,
            )
            for asked in chunk
        ]
        begun = time.perf_counter()
        outcomes = self._engine.answer_many(questions, serve.batch_questions)
        share_s = (time.perf_counter() - begun) / len(chunk)
        return [
            _answered(replace(shown.about, key=asked.key), outcome, share_s)
            for asked, outcome in zip(chunk, outcomes, strict=True)
        ]

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
                    batch_frames=source.batch_frames,
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


def load_quietly(config: ModelConfig) -> VideoLLM:
    """The model, without a bar of its own: every worker's would be shown."""
    from transformers.utils.logging import disable_progress_bar  # seconds, for who only starts workers

    disable_progress_bar()
    return load_model(config)


def _gaps(gaps: Sequence[Gap]) -> list[dict[str, Any]]:
    return [asdict(gap) for gap in gaps]


def _describe(exc: Exception) -> str:
    """For the row; an error that is nobody's fault but ours is named in full."""
    return f"{type(exc).__name__}: {exc}" if isinstance(exc, StreamKVError) else repr(exc)
