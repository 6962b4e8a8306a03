"""A question log and its footage to what is asked: each question once, the questions of a video together."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from pipeline.batch.footage import Footage, Video
from pipeline.batch.question_log import LogRow
from pipeline.batch.worker import Asked, VideoQuestions
from pipeline.spans import zone_of
from streamkv.config import PipelineConfig, ServeConfig
from streamkv.errors import QuestionError, SourceError, UnknownStreamError
from streamkv.excerpt import Span
from streamkv.phrases import find_phrase
from streamkv.when import StreamClock, named_span

REVISION = 1
"""Of what an answer means; a new one makes every question be asked again."""
MEMORIES, TRIES = "memories", "tries"
"""Folders of the journal's."""


@dataclass(frozen=True)
class Planned:
    """A row of the log: what is asked, or why nothing is."""

    row: LogRow
    asked: Asked | None = None
    video: Video | None = None
    memory: str = ""  # names what the model remembers of the video: another model or method, another memory
    error: str = ""


@dataclass(frozen=True)
class Plan:
    rows: tuple[Planned, ...]  # in the log's order

    @property
    def questions(self) -> dict[str, Planned]:
        """Distinct questions by key, in the order in which they come: rows that ask the same share an answer."""
        found: dict[str, Planned] = {}
        for planned in self.rows:
            if planned.asked is not None:
                found.setdefault(planned.asked.key, planned)
        return found


def make_plan(
    rows: Iterable[LogRow], footage: Footage, config: PipelineConfig, fingerprint: str, now_s: float
) -> Plan:
    """Finds each row's video, and what of it is looked at if that is said beside the question.

    `fingerprint` is the model's; `now_s`, in seconds since 1970, when the batch began.
    """
    source, serve = config.source, config.serve
    seen = [source.sample_fps, source.batch_frames, source.keyframes_only, config.store.codec]
    of = [REVISION, fingerprint, asdict(config.method), seen]
    find = lru_cache(maxsize=None)(partial(_find, footage))
    planned = []
    for row in rows:
        found = row.error or find(row.video)
        if isinstance(found, str):
            planned.append(Planned(row, error=found))
            continue
        try:
            named = _named(row, found, now_s, serve)
        except QuestionError as exc:
            planned.append(Planned(row, error=f"QuestionError: {exc}"))
            continue
        memory = _digest([*of, found.identity])
        room = row.max_new_tokens or serve.max_new_tokens
        looks_at = _looks_at(row.question, named, serve)
        depends_on = [memory, row.question, room, serve.min_confidence, *looks_at]
        asked = Asked(_digest(depends_on), row.question, room, *(named or Span()), found.origin_s, now_s)
        planned.append(Planned(row, asked, found, memory))
    return Plan(tuple(planned))


def _named(row: LogRow, video: Video, now_s: float, serve: ServeConfig) -> Span | None:
    """QuestionError when it is no time of the video's."""
    as_of_s = 0.0  # only words count from it
    return named_span(row.start, row.end, StreamClock(as_of_s, now_s, video.origin_s, zone_of(serve)))


def _looks_at(question: str, named: Span | None, serve: ServeConfig) -> list[Any]:
    """What an answer depends on besides if it is not about all of the video.

    Neither "now" nor what a stream has committed: a batch of a stream that grows can be resumed.
    """
    if named is not None:
        return [named]
    return [serve.time_zone] if serve.time_phrases and find_phrase(question) else []


def _find(footage: Footage, name: str) -> Video | str:
    """The video, or what is wrong with its name."""
    try:
        return footage.find(name)
    except (SourceError, UnknownStreamError) as exc:
        return f"{type(exc).__name__}: {exc}"


def group(questions: Iterable[Planned], work: Path, *, most: int) -> list[VideoQuestions]:
    """The questions of each video together, what takes longest first, so that no worker begins it last.

    A file's questions stay together: it is shown to the model once. A stream's need no such thing, and go in groups
    of at most `most`. `work` is the folder of the journal.
    """
    videos: dict[tuple[Video, str], list[Asked]] = {}
    for planned in questions:
        if planned.video is not None and planned.asked is not None:
            videos.setdefault((planned.video, planned.memory), []).append(planned.asked)
    groups: list[VideoQuestions] = []
    for (video, memory), asked in sorted(videos.items(), key=lambda item: -item[0][0].size):
        step = len(asked) if video.path else most
        for i in range(0, len(asked), step):
            groups.append(
                VideoQuestions(
                    video=video.name,
                    asked=tuple(asked[i : i + step]),
                    path=video.path,
                    memory=str(work / MEMORIES / memory) if video.path else "",
                    tries=str(work / TRIES / f"{len(groups)}"),
                )
            )
    return groups


def _digest(of: Any) -> str:
    return hashlib.sha256(json.dumps(of).encode()).hexdigest()[:32]
