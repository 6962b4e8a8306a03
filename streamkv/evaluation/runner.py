"""Runs one method over one video of a suite: ingest into a real store, ask, score.

A question that is asked in mid-stream closes the open segment first, so that it sees everything up to its moment.
"""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from streamkv.config import AgeingStep, MethodConfig
from streamkv.engine import Engine
from streamkv.errors import StreamKVError
from streamkv.evaluation.oracle import holding
from streamkv.evaluation.scoring import SCORERS
from streamkv.evaluation.types import EvalQuestion, EvalVideo
from streamkv.frame_batches import FrameBatches
from streamkv.ingest import encode
from streamkv.memory import VideoMemory
from streamkv.models.base import VideoLLM
from streamkv.segmentation import Segmenter
from streamkv.store import ModelIdentity, SegmentPlace, SegmentStore, write_segment
from streamkv.types import Answer, Segment
from streamkv.video import sample_frames

ENCODE_BATCH = 16
STREAM = "eval"
NUM_TOP = 3
"""Spans of evidence that are looked at for the true moment."""


@dataclass(frozen=True)
class Variant:
    """One row of the table: a method, perhaps handed the right segments."""

    name: str
    method: MethodConfig
    oracle: bool = False
    codec: str = "fp16"
    ageing: tuple[AgeingStep, ...] = ()  # what has become of segments when a question comes


@dataclass(frozen=True)
class EncodedVideo:
    """A video as the model's tower sees it; serves every variant."""

    features_FND: Tensor
    spans_s: tuple[tuple[float, float], ...]
    gaps: int

    @property
    def duration_s(self) -> float:
        return self.spans_s[-1][1] if self.spans_s else 0.0


@dataclass(frozen=True)
class AnswerRow:
    """One answer, with everything that a report is made of."""

    suite: str
    variant: str
    seed: int
    video: str
    question_id: str
    kind: str
    question: str
    expected: str
    answer: str
    scoring: str
    score: float | None  # 1.0 right, 0.0 wrong, None: for a judge
    asked_at_s: float
    age_s: float | None  # from the end of the true moment to the question
    in_top3: bool | None  # whether one of the heaviest spans of evidence overlaps a true moment
    first_token_ms: float
    total_ms: float
    blocks_per_layer: float
    stored_bytes: int  # of the video's whole store
    kv_bytes: int  # keys and values of it
    duration_s: float
    frames: int
    segments: int
    error: str = ""  # why there is no answer
    extra: str = "{}"  # the question's, as JSON


def encode_video(model: VideoLLM, path: Path, sample_fps: float) -> EncodedVideo:
    """Samples and encodes a video. SourceError when it cannot be read."""
    gaps: list[str] = []
    frames = sample_frames(str(path), sample_fps, on_gap=lambda *gap: gaps.append(str(gap)))
    features: list[Tensor] = []
    spans: list[tuple[float, float]] = []
    for frame, features_ND in encode(model, frames, FrameBatches(sample_fps, ENCODE_BATCH)):
        features.append(features_ND)
        spans.append((frame.start_s, frame.end_s))
    return EncodedVideo(torch.stack(features), tuple(spans), len(gaps))


def encoded(model: VideoLLM, path: Path, sample_fps: float, cache: Path) -> EncodedVideo:
    """`encode_video`, kept in `cache` under the file's and the model's identity."""
    stat = path.stat()
    of = json.dumps([str(path.resolve()), stat.st_size, stat.st_mtime_ns, model.fingerprint, sample_fps])
    file = cache / f"{path.stem}-{hashlib.sha256(of.encode()).hexdigest()[:16]}.safetensors"
    if file.is_file():
        held = load_file(file)
        spans = tuple((a, b) for a, b in held["spans_s"].tolist())
        return EncodedVideo(held["features_FND"], spans, int(held["gaps"]))
    made = encode_video(model, path, sample_fps)
    cache.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    save_file(
        {
            "features_FND": made.features_FND.contiguous(),
            "spans_s": torch.tensor(made.spans_s, dtype=torch.float64),
            "gaps": torch.tensor(made.gaps),
        },
        partial,
    )
    partial.replace(file)
    return made


def run_video(
    model: VideoLLM,
    variant: Variant,
    video: EvalVideo,
    seen: EncodedVideo,
    *,
    suite: str,
    seed: int,
    max_new_tokens: int,
) -> list[AnswerRow]:
    """Asks every question of the video; each is answered from what was shown before it."""
    identity = ModelIdentity.of(model)
    engine = Engine(model, variant.method)
    rows: list[AnswerRow] = []
    with tempfile.TemporaryDirectory(prefix="streamkv-eval-") as folder:
        root = Path(folder)
        with SegmentStore.open(root, identity=identity) as store:
            store.add_stream(STREAM, str(video.path))
            epoch, window = store.begin_writing(STREAM), engine.open_window()
            reader, places = store.reader(STREAM), []
            for segment, questions in _stream(seen, variant.method, video.questions):
                if segment is not None:
                    kv = engine.prefill(window, segment)
                    places.append(write_segment(root, identity, STREAM, epoch, kv, variant.codec))
                    store.commit(places[-1])
                if questions and variant.ageing:
                    store.age(STREAM, variant.ageing)
                    places = store.segments(STREAM, 0, len(places))
                memory = reader.refresh() if questions else None
                for question in questions:
                    shown: VideoMemory | None = memory
                    if variant.oracle and memory is not None and memory.segments:
                        shown = holding(memory, question.moments_s)
                    answer, error = _ask(engine, shown, question, max_new_tokens)
                    asked_at = min(question.asked_at_s, seen.duration_s)
                    rows.append(_row(suite, variant.name, seed, video.id, question, answer, error, asked_at))
    return [_with_totals(row, places, seen) for row in rows]


def _stream(
    seen: EncodedVideo, method: MethodConfig, questions: tuple[EvalQuestion, ...]
) -> Iterator[tuple[Segment | None, tuple[EvalQuestion, ...]]]:
    """Each closed segment, with the questions to ask once it is stored."""
    waiting = sorted(questions, key=lambda q: q.asked_at_s)
    segmenter = Segmenter(method.segment)
    for features_ND, (start_s, end_s) in zip(seen.features_FND, seen.spans_s, strict=True):
        due = tuple(q for q in waiting if q.asked_at_s <= start_s)
        if due:
            waiting = waiting[len(due) :]
            yield segmenter.flush(), due
        segment = segmenter.push(features_ND, start_s, end_s)
        if segment is not None:
            yield segment, ()
    yield segmenter.flush(), tuple(waiting)


def _ask(
    engine: Engine, memory: VideoMemory | None, question: EvalQuestion, room: int
) -> tuple[Answer | None, str]:
    if memory is None or not memory.segments:
        return None, "nothing was shown before the question"
    try:
        return engine.answer(memory, question.question, max_new_tokens=room), ""
    except StreamKVError as exc:
        return None, f"{type(exc).__name__}: {exc}"


def _row(
    suite: str,
    variant: str,
    seed: int,
    video: str,
    question: EvalQuestion,
    answer: Answer | None,
    error: str,
    asked_at_s: float,
) -> AnswerRow:
    ends = [end for _, end in question.moments_s]
    top = answer.evidence[:NUM_TOP] if answer else ()
    blocks = answer.blocks_per_layer if answer else ()
    return AnswerRow(
        suite=suite,
        variant=variant,
        seed=seed,
        video=video,
        question_id=question.id,
        kind=question.kind,
        question=question.question,
        expected=question.answer,
        answer=answer.text if answer else "",
        scoring=question.scoring,
        score=_score(answer.text if answer else None, question),
        asked_at_s=asked_at_s,
        age_s=max(0.0, asked_at_s - max(ends)) if ends else None,
        in_top3=any(a < e.end_s and b > e.start_s for e in top for a, b in question.moments_s)
        if ends
        else None,
        first_token_ms=answer.timings_ms["first_token"] if answer else math.nan,
        total_ms=answer.timings_ms["total"] if answer else math.nan,
        blocks_per_layer=sum(blocks) / len(blocks) if blocks else 0.0,
        stored_bytes=0,
        kv_bytes=0,
        duration_s=0.0,
        frames=0,
        segments=0,
        error=error,
        extra=json.dumps(dict(question.extra), sort_keys=True),
    )


def _score(reply: str | None, question: EvalQuestion) -> float | None:
    """No reply is wrong, unless no rule scores the question."""
    score = SCORERS[question.scoring](reply or "", question)
    return score if reply is not None or score is None else 0.0


def unanswered(
    suite: str, variant: str, seed: int, video: str, question: EvalQuestion, error: str
) -> AnswerRow:
    """The row of a question whose video could not be shown; it counts as wrong."""
    return _row(suite, variant, seed, video, question, None, error, question.asked_at_s)


def _with_totals(row: AnswerRow, places: list[SegmentPlace], seen: EncodedVideo) -> AnswerRow:
    return replace(
        row,
        stored_bytes=sum(place.file_bytes for place in places),
        kv_bytes=sum(place.kv_bytes for place in places),
        duration_s=seen.duration_s,
        frames=len(seen.spans_s),
        segments=len(places),
    )
