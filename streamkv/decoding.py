"""A container to the pictures of its first real video stream, in stream time. The only module that decodes.

Stream time starts at the first picture, whatever its timestamp says.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from streamkv.errors import SourceError
from streamkv.uris import is_url, redact_uri

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


@dataclass(frozen=True)
class Picture:
    """A decoded frame in stream time."""

    time: Fraction
    until: Fraction  # the end of its own stated duration
    image: Any  # av.VideoFrame
    lost: int  # pictures that did not decode between the one before and this one


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
        waiting: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """`wants` sees every packet before it is decoded, and may refuse it. `waiting` is entered for each read."""
        self.container = container
        self.stream = stream
        self.errors = 0  # packets or reads that failed, so far
        self.failure = ""  # of the last read, in FFmpeg's words
        self.max_hold_s = KEYFRAME_HOLD_S if keyframes_only else MAX_HOLD_S
        self._keyframes_only = keyframes_only
        self._wants = wants
        self._max_read_errors = max_read_errors
        self._waiting = waiting
        self.origin: Fraction | None = None  # the first picture's own timestamp
        rate = stream.average_rate or stream.guessed_rate or 25
        self.picture_s = min(1 / Fraction(rate), MAX_STATED_S)
        self._shift = Fraction(0)  # added to timestamps since the last change of clock
        self._fed: set[int] = set()  # timestamps of packets whose picture has not come out
        self._last: Fraction | None = None
        self._frames: Generator[Any, None, None] = self._decode()

    def close(self) -> None:
        """Lets the decoder go, and all pictures that it refers to.

        They would wait for a full collection of Python else, which comes the more rarely the more a process has loaded.
        """
        self._frames.close()
        self._wants = None
        self.container.close()

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

    def _decode(self) -> Generator[Any, None, None]:
        """Every frame that decodes; failures are counted and passed over."""
        import av

        failed_reads = 0
        while failed_reads < self._max_read_errors:
            try:
                packets = self.container.demux(self.stream)
                while True:
                    with self._waiting():
                        packet = next(packets, None)
                    if packet is None:
                        return
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
    if not is_url(path):
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
        source = Source(container, pick_video(container, shown, threads), keyframes_only=keyframes_only)
        try:
            yield source
        finally:
            source.close()


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
