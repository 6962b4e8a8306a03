"""A URI to sampled frames, by timestamp. Knows nothing of models, streams' names or stores.

Frame k is the picture on show at k / sample_fps, so what is sampled depends on the footage alone: a source resumed at
any of these times yields exactly what it would have yielded without the break.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain

from streamkv.decoding import KEYFRAME_HOLD_S, MAX_HOLD_S, Picture, Source, open_source
from streamkv.errors import SourceError
from streamkv.grid import Grid, OnGap
from streamkv.types import Frame
from streamkv.uris import redact_uri


@dataclass(frozen=True)
class VideoInfo:
    """What a source says of itself."""

    duration_s: float  # 0.0 when it does not say
    fps: float  # average; 0.0 when unknown
    width: int
    height: int
    codec: str
    is_live: bool = False  # goes on by itself, and its past cannot be read again


def probe(uri: str) -> VideoInfo:
    """Opens a source and decodes its first picture.

    Raises:
        SourceError: it cannot be opened, holds no video, or not one picture decodes.
    """
    with open_source(uri, threads=1) as source:
        first = next(source.pictures(), None)
        if first is None:
            raise _no_picture(uri)
        rate = source.stream.average_rate
        return VideoInfo(
            duration_s=float(source.declared_end() or 0),
            fps=float(rate) if rate else 0.0,
            width=int(first.image.width),
            height=int(first.image.height),
            codec=str(source.stream.codec_context.name),
            is_live=source.goes_on and "://" in uri,
        )


def sample_frames(
    uri: str,
    sample_fps: float,
    *,
    start_s: float = 0.0,
    on_gap: OnGap | None = None,
    threads: int = 1,
    keyframes_only: bool = False,
) -> Iterator[Frame]:
    """The frames on show at k / sample_fps for every k from start_s on.

    A damaged source yields what decodes; what is missing is told to `on_gap`, in order with the frames.
    With `keyframes_only` nothing else is decoded: a keyframe is on show until the next one.

    Raises:
        SourceError: it cannot be opened, holds no video, or (from the beginning) not one picture decodes.
    """
    if not sample_fps > 0:
        raise SourceError(f"sample_fps: got {sample_fps!r}, allowed above 0")
    hold_s = KEYFRAME_HOLD_S if keyframes_only else MAX_HOLD_S
    grid = Grid(sample_fps, start_s, _ignore if on_gap is None else on_gap, hold_s)
    with _open_at(grid.due, uri, threads=threads, keyframes_only=keyframes_only) as (source, near):
        shown: Picture | None = None
        for picture in chain(near, source.pictures()):
            yield from grid.pass_time(shown, picture)
            shown = picture
        if shown is not None:
            yield from grid.show(shown, source.end_of(shown))
        elif start_s <= 0:
            raise _no_picture(uri)
        end = source.missed_end()
        if end is not None and end - grid.due > max(Fraction(1), grid.step):
            grid.skip_to(end, f"the source ends {float(end - grid.due):.1f} s before its stated end")


def pictures_from(uri: str, start_s: float | Fraction) -> Iterator[Picture]:
    """Every picture from the one on show at that time on, perhaps with some before it.

    Raises:
        SourceError: the video cannot be opened, or holds none.
    """
    with _open_at(Fraction(start_s), uri, threads=1, keyframes_only=False) as (source, near):
        yield from chain(near, source.pictures())


@contextmanager
def _open_at(
    due: Fraction, uri: str, *, threads: int, keyframes_only: bool
) -> Iterator[tuple[Source, list[Picture]]]:
    """The source and the pictures around `due`, or one at its beginning: all before is then decoded and passed over."""
    if due > 0:
        with open_source(uri, threads=threads, keyframes_only=keyframes_only) as source:
            if near := source.jump(due):
                yield source, near
                return
    with open_source(uri, threads=threads, keyframes_only=keyframes_only) as source:
        yield source, []


def _ignore(start_s: float, end_s: float, reason: str) -> None:
    pass


def _no_picture(uri: str) -> SourceError:
    return SourceError(
        f"video {redact_uri(uri)}: not one picture decodes; the file is cut or damaged from its beginning"
    )
