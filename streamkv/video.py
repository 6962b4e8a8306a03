"""A URI to sampled frames, by timestamp. Knows PyAV; knows nothing of models, streams' names or stores.

Stream time starts at the first picture, whatever its timestamp says. Frame k is the picture on show at
k / sample_fps, so what is sampled depends on the footage alone: a source resumed at any of these times yields
exactly what it would have yielded without the break.

    pictures   |a    |b  |c                  (lost)      |d     |e
    grid       0     1     2     3     4     5     6     7     8
    frames     a     b     c     c     c  ^ gap (5, 7) ^ d     e      c is held while it says so
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

import numpy as np

from streamkv.errors import SourceError
from streamkv.types import Frame

OnGap = Callable[[float, float, str], None]
"""Hears of footage that is missing: from, until (stream time, on the sampling grid), and why."""

NEAR_S = Fraction(1, 1000)
"""A picture this little after a sampling time still counts as on show: containers round their timestamps."""
MAX_HOLD_S = Fraction(10)
"""A picture without a stated duration is on show until the next one, but for no longer than this."""
KEYFRAME_HOLD_S = Fraction(60)
"""The same where only keyframes are looked at."""
MAX_STATED_S = Fraction(600)
"""A stated duration counts up to this: a slide stands for minutes, an absurd rate would have it stand for years."""
MAX_JUMP_S = Fraction(3600)
"""Timestamps that leap further ahead, or back by a second, are another clock; time goes on by one picture."""
MAX_PIXELS = 64_000_000
"""Larger pictures are refused: one of them, decoded, would take a fifth of a gigabyte."""
LIMITS = {"max_pixels": str(MAX_PIXELS)}
"""For FFmpeg, which would otherwise decode such a picture before anybody can ask how large it is."""
SEEK_MARGIN_S = 2.0
"""How far before the wanted time a seek aims: containers seek by decoding time, which runs ahead."""
SEEKABLE = ("mov", "matroska")
"""Containers whose index finds a keyframe by time; others are decoded from their beginning to be exact."""
MAX_REORDER = 1000
"""Packets whose pictures may be outstanding; a decoder holds back a few dozen."""
MAX_READ_ERRORS = 8
"""Failed reads in a row after which a source counts as ended."""
OPEN_TIMEOUT_S, READ_TIMEOUT_S = 10.0, 30.0

_SECRET = re.compile(r"token|key|secret|pass|pwd|sig|auth|cred|user|streamid", re.IGNORECASE)
_PAIR = re.compile(r"([A-Za-z]+)=([^_&;,/]*)")
"""Some cameras want their user in the path: `/user=admin_password=1234_channel=1`."""
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


@dataclass(frozen=True)
class VideoInfo:
    """What a source says of itself."""

    duration_s: float  # 0.0 when it does not say
    fps: float  # average; 0.0 when unknown
    width: int
    height: int
    codec: str
    is_live: bool = False  # goes on by itself, and its past cannot be read again


@dataclass(frozen=True)
class Picture:
    """A decoded frame in stream time."""

    time: Fraction
    until: Fraction  # the end of its own stated duration
    image: Any  # av.VideoFrame
    lost: int  # pictures that did not decode between the one before and this one


def redact_uri(uri: str) -> str:
    """The URI as it may be shown: no user, no password, no tokens in its query or path."""
    if not _URL.match(uri):
        return uri
    try:
        parts = urlsplit(uri)
    except ValueError:
        return uri.split("://", 1)[0] + "://***"
    host = parts.netloc.rpartition("@")[2]
    netloc = f"***@{host}" if "@" in parts.netloc else host
    query = "&".join(map(_hide_value, parts.query.split("&")))
    path = "/".join(_PAIR.sub(_hide_pair, step) for step in parts.path.split("/"))
    return urlunsplit((parts.scheme, netloc, path, query, parts.fragment))


def _hide_value(pair: str) -> str:
    name, is_pair, _ = pair.partition("=")
    return f"{name}=***" if is_pair and _SECRET.search(unquote(name)) else pair


def _hide_pair(pair: re.Match[str]) -> str:
    return f"{pair[1]}=***" if _SECRET.search(pair[1]) else pair[0]


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


def _ignore(start_s: float, end_s: float, reason: str) -> None:
    pass


class Grid:
    """Walks the sampling times; `due` is the next one."""

    def __init__(
        self,
        sample_fps: float,
        start_s: float | Fraction,
        on_gap: OnGap,
        max_hold_s: Fraction = MAX_HOLD_S,
    ) -> None:
        self.max_hold_s = max_hold_s
        self.step = 1 / Fraction(sample_fps).limit_denominator(1_000_000)
        self.index = max(0, math.ceil((Fraction(start_s) - NEAR_S) / self.step))
        self.on_gap = on_gap

    @property
    def due(self) -> Fraction:
        return self.index * self.step

    def pass_time(self, shown: Picture | None, coming: Picture) -> Iterator[Frame]:
        """Yields what `shown` covers until `coming` is on show; reports what nothing covers."""
        starts = coming.time - NEAR_S
        if shown is None:
            self.skip_to(starts, why_missing(coming, coming.time - self.due))
            return
        silence = coming.time - shown.until
        if coming.lost or silence > self.max_hold_s:
            yield from self.show(shown, min(shown.until, starts))
            self.skip_to(starts, why_missing(coming, silence))
        else:
            yield from self.show(shown, starts)

    def show(self, picture: Picture, until: Fraction) -> Iterator[Frame]:
        """The picture at each sampling time before `until`."""
        rgb: np.ndarray | None = None
        while self.due < until:
            if rgb is None:
                rgb = to_rgb(picture.image)
            self.index += 1
            yield Frame(rgb=rgb, start_s=float(self.due - self.step), end_s=float(self.due))

    def skip_to(self, time: Fraction, reason: str) -> None:
        """Passes the sampling times before `time`, as a gap if there are any."""
        start = self.due
        self.index = max(self.index, math.ceil(time / self.step))
        if self.due > start:
            self.on_gap(float(start), float(self.due), reason)


def why_missing(coming: Picture, silence: Fraction) -> str:
    if coming.lost:
        return f"{coming.lost} picture{'s' if coming.lost > 1 else ''} did not decode"
    return f"no picture for {float(silence):.1f} s"


class Source:
    """An open container and the clock of its first real video stream."""

    def __init__(
        self,
        container: Any,
        stream: Any,
        *,
        keyframes_only: bool = False,
        wants: Callable[[Any], bool] | None = None,
        max_read_errors: int = MAX_READ_ERRORS,
    ) -> None:
        """`wants` sees every packet before it is decoded, and may refuse it."""
        self.container = container
        self.stream = stream
        self.errors = 0  # packets or reads that failed, so far
        self.failure = ""  # of the last read, in FFmpeg's words
        self.max_hold_s = KEYFRAME_HOLD_S if keyframes_only else MAX_HOLD_S
        self._keyframes_only = keyframes_only
        self._wants = wants
        self._max_read_errors = max_read_errors
        self.origin: Fraction | None = None  # the first picture's own timestamp
        rate = stream.average_rate or stream.guessed_rate or 25
        self.picture_s = min(1 / Fraction(rate), MAX_STATED_S)
        self._shift = Fraction(0)  # added to timestamps since the last change of clock
        self._fed: set[int] = set()  # timestamps of packets whose picture has not come out
        self._last: Fraction | None = None
        self._frames = self._decode()

    @property
    def goes_on(self) -> bool:
        """Whether neither a duration nor a length says where it ends."""
        is_sized = self.container.format.name != "hls" and self.container.size > 0
        return self.declared_end() is None and not is_sized

    def pictures(self) -> Iterator[Picture]:
        """Those that come next, in order of showing."""
        while (picture := self._next_picture()) is not None:
            yield picture

    def jump(self, seek_s: Fraction) -> list[Picture]:
        """Goes there; the pictures on both sides of `seek_s`, which those of `pictures` follow.

        Empty when they need not be what an unbroken run shows, and the source is then of no more use: the container
        cannot jump, its index led too far, or what was passed is damaged, and a decoder fills holes with what it had
        seen before.
        """
        import av

        first = self._next_picture()
        is_far = first is not None and seek_s > first.time + Fraction(SEEK_MARGIN_S)
        if not is_far or not self.container.format.name.startswith(SEEKABLE):
            return []
        target = int((seek_s - Fraction(SEEK_MARGIN_S) + (self.origin or 0)) / self.stream.time_base)
        try:
            self.container.seek(target, stream=self.stream, backward=True, any_frame=False)
        except av.error.FFmpegError:
            return []
        self._frames, self._last = self._decode(), None
        self._fed.clear()
        return self._walk_to(seek_s)

    def _walk_to(self, seek_s: Fraction) -> list[Picture]:
        errors, near = self.errors, list[Picture]()
        for picture in self.pictures():
            near = [*near[-1:], picture]
            if picture.lost or picture.image.is_corrupt:
                return []
            if picture.time > seek_s:
                break
        is_whole = self.errors == errors and not self._shift
        return near if is_whole and near and near[0].time <= seek_s else []

    def end_of(self, last: Picture) -> Fraction:
        """Until when the last picture was on show: with keyframes only, others came after it."""
        end = self.declared_end()
        if self._keyframes_only and end is not None:
            return max(last.until, min(end, last.until + self.max_hold_s))
        return last.until

    def missed_end(self) -> Fraction | None:
        """Stream time up to which there should have been pictures, as far as can be said after the last one.

        A container's own duration may be its audio's, and that of a file whose clock was set anew says nothing.
        """
        if self._shift:
            return None
        is_trusted = self.errors > 0 or len(self.container.streams) == 1
        return self.declared_end(trust_container=is_trusted)

    def declared_end(self, *, trust_container: bool = True) -> Fraction | None:
        """Stream time at which the source says it ends."""
        base = Fraction(self.stream.time_base or 0)
        if self.stream.duration and base:
            end = Fraction(self.stream.duration) * base
            lead = (self.origin or Fraction(0)) - Fraction(self.stream.start_time or 0) * base
            return end - max(lead, Fraction(0))
        if trust_container and self.container.duration:
            return Fraction(self.container.duration, 1_000_000)
        return None

    def _next_picture(self) -> Picture | None:
        errors = self.errors
        for image in self._frames:
            if image.width * image.height > MAX_PIXELS:
                raise _too_large(image.width, image.height)
            time = self._stream_time(image)
            if time is None:
                continue  # shown at the time of another picture
            base = image.time_base or self.stream.time_base
            length = Fraction(image.duration) * base if image.duration and base else self.picture_s
            until = time + min(length, MAX_STATED_S)
            return Picture(time, until, image, max(self.errors - errors, self._lost_before(image)))
        return None

    def _lost_before(self, image: Any) -> int:
        """Packets due before this picture that never came out: decoders drop some in silence."""
        if image.pts is None:
            return 0
        lost = sum(1 for stamp in self._fed if stamp < image.pts)
        self._fed = {stamp for stamp in self._fed if stamp > image.pts}
        return lost

    def _stream_time(self, image: Any) -> Fraction | None:
        """Rises from one picture to the next, whatever the timestamps do; None for one that does not."""
        base = image.time_base or self.stream.time_base
        follows = Fraction(0) if self._last is None else self._last + self.picture_s
        if image.pts is None or not base:
            time = follows
        else:
            stamp = Fraction(image.pts) * base
            if self.origin is None:
                self.origin = stamp
            time = stamp - self.origin + self._shift
        if self._last is not None:
            leap = time - self._last
            if leap < -1 or leap > MAX_JUMP_S:
                self._fed.clear()
                self._shift += follows - time
                time = follows
            elif leap <= 0:
                return None
        self._last = time
        return time

    def _decode(self) -> Iterator[Any]:
        """Every frame that decodes; failures are counted and passed over."""
        import av

        failed_reads = 0
        while failed_reads < self._max_read_errors:
            try:
                for packet in self.container.demux(self.stream):
                    failed_reads = 0
                    if self._wants is not None and not self._wants(packet):
                        continue
                    if self._keyframes_only and not packet.is_keyframe:
                        continue
                    if packet.pts is not None and len(self._fed) < MAX_REORDER:
                        self._fed.add(packet.pts)
                    try:
                        yield from self._decode_packet(packet)
                    except av.error.EOFError:
                        continue
                    except av.error.FFmpegError:
                        self.errors += 1
                return
            except av.error.EOFError:
                return
            except av.error.FFmpegError as exc:
                failed_reads += 1
                self.errors += 1
                self.failure = strerror(exc)

    def _decode_packet(self, packet: Any) -> list[Any]:
        """What comes out. A keyframe that is decoded alone is not to wait for the ones after it."""
        frames = list(packet.decode())
        if self._keyframes_only:
            context = self.stream.codec_context
            frames += context.decode(None)
            context.flush_buffers()
        return frames


@contextmanager
def open_source(uri: str, *, threads: int, keyframes_only: bool = False) -> Iterator[Source]:
    """An archive's. SourceError when it cannot be opened or holds no video."""
    import av

    shown = redact_uri(uri)
    path = uri.removeprefix("file://")
    if not _URL.match(path):
        _check_file(path, shown)
    try:
        container = av.open(path, timeout=(OPEN_TIMEOUT_S, READ_TIMEOUT_S), options=LIMITS)
    except (av.error.FFmpegError, OSError, ValueError) as exc:
        # the cause carries the URI as it is, so it is not chained
        raise SourceError(
            f"video {shown}: cannot be opened ({strerror(exc)}); "
            "give a file or URL of a video that ffmpeg reads"
        ) from None
    with container:
        yield Source(container, pick_video(container, shown, threads), keyframes_only=keyframes_only)


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


def pick_video(container: Any, shown: str, threads: int) -> Any:
    """The container's first real video stream, ready to decode; SourceError when there is none."""
    videos = [s for s in container.streams.video if not _is_cover(s)]
    if not videos:
        kinds = sorted({s.type for s in container.streams}) or ["nothing"]
        raise SourceError(f"video {shown}: holds no video, only {', '.join(kinds)}; give one with pictures")
    context = videos[0].codec_context
    if context is None:
        raise SourceError(f"video {shown}: no decoder knows its codec; convert it, for example to H.264")
    if context.width * context.height > MAX_PIXELS:
        raise _too_large(context.width, context.height)
    context.options = LIMITS
    context.thread_type = "AUTO"
    context.thread_count = threads
    return videos[0]


def strerror(exc: Exception) -> str:
    """What FFmpeg says, without the URI that it says it of."""
    import av

    if isinstance(exc, av.error.ExitError):
        return "it does not answer in time"
    if isinstance(exc, av.error.ProtocolNotFoundError):
        return "this build of FFmpeg does not speak its protocol"
    return str(getattr(exc, "strerror", None) or type(exc).__name__)


def to_rgb(image: Any) -> np.ndarray:
    """(height, width, 3) uint8, upright: cameras that lie on their side say so beside the picture."""
    rgb: np.ndarray = image.to_ndarray(format="rgb24")
    turns = round(image.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(rgb, turns)) if turns else rgb


def _check_file(path: str, shown: str) -> None:
    file = Path(path)
    if not file.exists():
        raise SourceError(f"video {shown}: no such file; give the path of a video as the server sees it")
    if not file.is_file():
        raise SourceError(f"video {shown}: not a file; give the path of one video")
    if file.stat().st_size == 0:
        raise SourceError(f"video {shown}: the file is empty (0 bytes); give one that holds a video")


def _is_cover(stream: Any) -> bool:
    """Whether a video stream is the still picture of a sound file."""
    import av

    return bool(stream.disposition & av.stream.Disposition.attached_pic)


def _too_large(width: int, height: int) -> SourceError:
    return SourceError(
        f"video: a picture of {width} x {height}, allowed up to {MAX_PIXELS} pixels; scale the video down"
    )


def _no_picture(uri: str) -> SourceError:
    return SourceError(
        f"video {redact_uri(uri)}: not one picture decodes; the file is cut or damaged from its beginning"
    )
