"""What a URI stands for: a live source, a video, or a folder of videos. Knows which of them reads it, no more.

Files of a folder follow each other in the order of their names (`cam-9` before `cam-10`), each in a slot as long
as it says it is, rounded up to a second, so that a resume finds the same places at any sample rate:

    files    |a.mp4, 7.3 s     |b.mp4, 4 s  |c.mp4, 6.8 s, cut off |
    slots    0                 8            12              ^ gap  19
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

from streamkv.errors import SourceError
from streamkv.grid import OnGap
from streamkv.live import is_live, probe_live
from streamkv.types import Frame
from streamkv.video import VideoInfo, probe, sample_frames

VIDEO_SUFFIXES = frozenset(
    ".3gp .avi .flv .h264 .h265 .hevc .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .ts .webm .wmv".split()
)


def probe_source(uri: str, *, timeout_s: float) -> VideoInfo:
    """What the source is; `timeout_s` is how long a live one may take.

    Raises:
        SourceError: nothing can be read from it.
    """
    if is_live(uri):
        return probe_live(uri, timeout_s=timeout_s)
    folder = as_folder(uri)
    if folder is None:
        return probe(uri)
    infos = [info for slot in _slots(folder) if (info := slot.info) is not None]
    if not infos:
        raise SourceError(f"video {uri}: not one of the folder's videos can be read; see that they are whole")
    return replace(infos[0], duration_s=sum(info.duration_s for info in infos))


def sample_archive(
    uri: str,
    sample_fps: float,
    *,
    start_s: float = 0.0,
    on_gap: OnGap | None = None,
    keyframes_only: bool = False,
) -> Iterator[Frame]:
    """`sample_frames` of a video, or of a folder's videos as one."""
    folder = as_folder(uri)
    if folder is None:
        return sample_frames(uri, sample_fps, start_s=start_s, on_gap=on_gap, keyframes_only=keyframes_only)
    return _sample_folder(folder, sample_fps, start_s, on_gap or _ignore, keyframes_only)


@dataclass(frozen=True)
class Part:
    """A span of one video, in its own time."""

    uri: str
    begins_s: Fraction  # stream time of its time 0
    start_s: Fraction
    end_s: Fraction


def parts_between(uri: str, start_s: float, end_s: float) -> list[Part]:
    """The videos that show that span of the stream, in order. One that does not say how long it is ends the list.

    Raises:
        SourceError: the folder holds no video.
    """
    start, end = Fraction(start_s), Fraction(end_s)
    folder = as_folder(uri)
    if folder is None:
        return [Part(uri, Fraction(0), start, end)]
    parts, begins = list[Part](), Fraction(0)
    for slot in _slots(folder):
        if slot.info is None:
            continue
        length = math.ceil(slot.info.duration_s)
        if not length or begins + length > start:
            own_end = min(end - begins, Fraction(length)) if length else end - begins
            parts.append(Part(str(slot.path), begins, max(Fraction(0), start - begins), own_end))
        begins += length
        if not length or begins >= end:
            break
    return parts


def as_folder(uri: str) -> Path | None:
    """The folder that the URI names, if it names one."""
    if "://" in uri and not uri.startswith("file://"):
        return None
    path = Path(uri.removeprefix("file://"))
    return path if path.is_dir() else None


def _ignore(start_s: float, end_s: float, reason: str) -> None:
    pass


@dataclass(frozen=True)
class _Slot:
    path: Path
    info: VideoInfo | None
    problem: str = ""  # why there is no info


def _slots(folder: Path) -> Iterator[_Slot]:
    files = [f for f in folder.iterdir() if f.suffix.lower() in VIDEO_SUFFIXES and not f.name.startswith(".")]
    if not files:
        known = " ".join(sorted(VIDEO_SUFFIXES))
        raise SourceError(
            f"video {folder}: the folder holds no video; files with these endings count: {known}"
        )
    for file in sorted(files, key=_by_name):
        try:
            yield _Slot(file, probe(str(file)))
        except SourceError as exc:
            yield _Slot(file, None, str(exc))


def _by_name(file: Path) -> list[tuple[int, str]]:
    """Numbers in a name count as numbers."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", file.name)]


def _sample_folder(
    folder: Path, sample_fps: float, start_s: float, on_gap: OnGap, keyframes_only: bool
) -> Iterator[Frame]:
    begins_s = 0.0
    for slot in _slots(folder):
        if slot.info is None:
            on_gap(begins_s, begins_s, slot.problem)
            continue
        length_s = (
            math.ceil(slot.info.duration_s) or math.inf
        )  # inf: it does not say, so all of it is looked at
        if begins_s + length_s <= start_s:
            begins_s += length_s
            continue
        own_start_s = max(0.0, start_s - begins_s) if length_s < math.inf else 0.0
        end_s = 0.0
        frames = sample_frames(
            str(slot.path),
            sample_fps,
            start_s=own_start_s,
            on_gap=_Shifted(begins_s, length_s, on_gap),
            keyframes_only=keyframes_only,
        )
        for frame in frames:
            if frame.start_s >= length_s:
                break  # it is longer than it says
            end_s = min(frame.end_s, length_s)
            if begins_s + end_s > start_s:
                yield replace(frame, start_s=begins_s + frame.start_s, end_s=begins_s + end_s)
        begins_s += length_s if length_s < math.inf else end_s


class _Shifted:
    """Gaps of one file, in the folder's time."""

    def __init__(self, begins_s: float, length_s: float, on_gap: OnGap) -> None:
        self._begins_s = begins_s
        self._length_s = length_s
        self._on_gap = on_gap

    def __call__(self, start_s: float, end_s: float, reason: str) -> None:
        if start_s < self._length_s:
            self._on_gap(self._begins_s + start_s, self._begins_s + min(end_s, self._length_s), reason)
