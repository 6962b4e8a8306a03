"""A question log and its footage to what is asked: each question once, the questions of a video together."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from actors.video_answerer import Asked, VideoQuestions
from pipeline.batch.footage import Footage, Video
from pipeline.batch.question_log import LogRow
from streamkv.config import PipelineConfig
from streamkv.errors import SourceError, UnknownStreamError

REVISION = 1
"""Of what an answer means; a new one makes every question be asked again."""


@dataclass(frozen=True)
class Planned:
    """A row of the log: what its answer is called, or why there is none."""

    row: LogRow
    asked: Asked | None
    video: Video | None
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
    videos: dict[str, Video | str] = {}
    source = config.source
    seen = [source.sample_fps, source.batch_frames, source.keyframes_only, config.store.codec]
    of = [REVISION, fingerprint, asdict(config.method), seen]
    planned = []
    for row in rows:
        found: Video | str = row.error
        if not row.error:
            if row.video not in videos:
                videos[row.video] = _find(footage, row.video)
            found = videos[row.video]
        if isinstance(found, str):
            planned.append(Planned(row, None, None, found))
            continue
        room = row.max_new_tokens or config.serve.max_new_tokens
        key = _digest([*of, found.identity, row.question, room])
        planned.append(Planned(row, Asked(key, row.question, room), found))
    return Plan(tuple(planned))


def _find(footage: Footage, name: str) -> Video | str:
    """The video, or what is wrong with its name."""
    try:
        return footage.find(name)
    except (SourceError, UnknownStreamError) as exc:
        return f"{type(exc).__name__}: {exc}"


def group(questions: Iterable[Planned], memories: Path, *, most: int) -> list[VideoQuestions]:
    """The questions of each video together, what takes longest first, so that no worker begins it last.

    A file's questions stay together: it is shown to the model once. A stream's need no such thing, and go in groups
    of at most `most`.
    """
    videos: dict[Video, list[Asked]] = {}
    for planned in questions:
        if planned.video is not None and planned.asked is not None:
            videos.setdefault(planned.video, []).append(planned.asked)
    groups = []
    for video, asked in sorted(videos.items(), key=lambda pair: -pair[0].size):
        if video.path:
            memory = memories / _digest(video.identity)
            groups.append(VideoQuestions(video.name, tuple(asked), video.path, str(memory)))
        else:
            parts = (asked[i : i + most] for i in range(0, len(asked), most))
            groups += [VideoQuestions(video.name, tuple(part)) for part in parts]
    return groups


def _digest(of: Any) -> str:
    return hashlib.sha256(json.dumps(of).encode()).hexdigest()[:32]
