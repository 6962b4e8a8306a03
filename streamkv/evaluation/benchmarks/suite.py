"""A suite whose questions are written down and whose videos lie in a folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from streamkv.errors import MissingVideoError
from streamkv.evaluation.types import EvalQuestion, EvalVideo

LETTER_TOKENS, SHORT_TOKENS, OPEN_TOKENS = 16, 64, 256
"""Room for a letter, yes or no, or a count; for a polled answer; for an open one (first and last are ReKV's)."""


@dataclass(frozen=True)
class AnnotatedSuite:
    """The videos of an annotation file, in its order. Travels without them: whoever gets it reads the file again."""

    name: str
    max_new_tokens: int
    folder: Path
    read: Callable[[], Sequence[EvalVideo]]
    held: Sequence[EvalVideo] | None = None

    def videos(self) -> Iterator[EvalVideo]:
        return iter(self.read() if self.held is None else self.held)

    def prepare(self, video: EvalVideo) -> Path:
        if not video.path.is_file():
            raise MissingVideoError(
                f"{self.name}: video {video.id!r}: {video.path} is not there; "
                f"download it to {self.folder}, see docs/benchmarks.md"
            )
        return video.path

    def __reduce__(self) -> tuple[type[AnnotatedSuite], tuple[object, ...]]:
        return AnnotatedSuite, (self.name, self.max_new_tokens, self.folder, self.read)


def make_suite(name: str, folder: Path, read: Callable[[], Sequence[EvalVideo]]) -> AnnotatedSuite:
    """Reads at once, so that a malformed file is seen; with room for the longest kind of answer that is asked for."""
    held = read()
    rules = {question.scoring for video in held for question in video.questions}
    polled = any("poll_of" in question.extra for video in held for question in video.questions)
    room = OPEN_TOKENS if "judge" in rules else SHORT_TOKENS if polled else LETTER_TOKENS
    return AnnotatedSuite(name, room, folder, read, held)


class VideoFolder:
    """Finds annotated paths in a folder, however much of each path the folder repeats.

    `./videos/a/1.mp4` may lie at `videos/a/1.mp4`, `a/1.mp4` or `1.mp4`; an end that two paths share is not tried.
    """

    def __init__(self, folder: Path, names: Iterable[str]) -> None:
        self._folder = folder
        self._owners = Counter(end for name in {clean(name) for name in names} for end in _ends(name))

    def find(self, name: str) -> Path:
        """The file; where it should lie, if it is not there."""
        cleaned = clean(name)
        for end in _ends(cleaned):
            if self._owners[end] == 1 and (self._folder / end).is_file():
                return self._folder / end
        return self._folder / cleaned


def clean(name: str) -> str:
    """Without `.`, `..` and `/` in front; `.npy` frames are read from the video that they were taken from."""
    path = PurePosixPath(*(part for part in PurePosixPath(name).parts if part not in ("/", ".", "..")))
    return str(path.with_suffix(".mp4") if path.suffix == ".npy" else path)


def _ends(name: str) -> list[str]:
    parts = PurePosixPath(name).parts
    return [str(PurePosixPath(*parts[k:])) for k in range(len(parts))]


def video_id(name: str) -> str:
    """A video's name in reports: its annotated path without `./`, `videos/` and the suffix."""
    return str(PurePosixPath(clean(name)).with_suffix("")).removeprefix("videos/")


def by_video(asked: Iterable[tuple[str, EvalQuestion]], folder: Path) -> list[EvalVideo]:
    """Questions with their videos' annotated paths, to videos in the order of their first question."""
    groups: dict[str, list[EvalQuestion]] = {}
    for name, question in asked:
        groups.setdefault(clean(name), []).append(question)
    files = VideoFolder(folder, groups)
    return [
        EvalVideo(video_id(name), files.find(name), tuple(sorted(questions, key=lambda q: q.asked_at_s)))
        for name, questions in groups.items()
    ]


def each_alone(polled: Iterable[tuple[str, str, tuple[EvalQuestion, ...]]], folder: Path) -> list[EvalVideo]:
    """Annotated path, name and polls of each question to a video of its own: what is polled often closes segments."""
    held = [(name, called, polls) for name, called, polls in polled if polls]
    files = VideoFolder(folder, [name for name, _, _ in held])
    return [EvalVideo(f"{video_id(name)}#{called}", files.find(name), polls) for name, called, polls in held]
