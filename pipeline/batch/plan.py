"""A question log and its footage to what is asked: each question once, the questions of a video together."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from actors.video_answerer import Asked, VideoQuestions
from pipeline.batch.footage import Footage, Video
from pipeline.batch.question_log import LogRow
from streamkv.config import PipelineConfig
from streamkv.errors import SourceError, UnknownStreamError

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


def make_plan(rows: Iterable[LogRow], footage: Footage, config: PipelineConfig, fingerprint: str) -> Plan:
    """Finds each row's video. `fingerprint` is the model's."""
    source = config.source
    seen = [source.sample_fps, source.batch_frames, source.keyframes_only, config.store.codec]
    of = [REVISION, fingerprint, asdict(config.method), seen]
    find = lru_cache(maxsize=None)(partial(_find, footage))
    planned = []
    for row in rows:
        found = row.error or find(row.video)
        if isinstance(found, str):
            planned.append(Planned(row, error=found))
            continue
        memory = _digest([*of, found.identity])
        room = row.max_new_tokens or config.serve.max_new_tokens
        depends_on = [memory, row.question, room, config.serve.min_confidence]
        asked = Asked(_digest(depends_on), row.question, room)
        planned.append(Planned(row, asked, found, memory))
    return Plan(tuple(planned))


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
