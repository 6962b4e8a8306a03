"""A span of an archive as an MP4 that browsers play: packets as they are where they can be, else encoded anew.

    asked                 |from                to|
    packets       K . . . . . . . K . . . . . . . . K .      K: a keyframe
    copied        |------------------------------|           from the keyframe before
    encoded               |----------------------|

Video only. Written with the index at its front (faststart), so the file is complete before anybody reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

from streamkv.decoding import MAX_JUMP_S, SEEK_MARGIN_S, SEEKABLE, Picture, Source, open_source, to_rgb
from streamkv.errors import SourceError
from streamkv.sources import Part, parts_between
from streamkv.uris import redact_uri
from streamkv.video import pictures_from

CODEC, PIXELS = "h264", ("yuv420p", "yuvj420p")
"""What every browser plays out of an MP4; anything else is encoded anew."""
MAX_LEAD_S = Fraction(12)
"""A keyframe further before the asked beginning than this makes it an encoding: a file may have one in an hour."""
MAX_LEAD_PACKETS = 2000
"""Held in memory while the last keyframe before is looked for."""
MAX_BYTES = 200_000_000
"""A clip ends where it would grow beyond this."""
MAX_SIDE = 1280
"""Longer side of pictures that are encoded anew: that is work for the processor, which others wait for."""
BASE = Fraction(1, 90_000)
ENCODER = {"preset": "veryfast", "crf": "23"}
FASTSTART = {"movflags": "faststart"}

Check = Callable[[], None]
"""Called for every packet and picture; what it raises ends the work."""


@dataclass(frozen=True)
class Clip:
    """What was written, in stream time."""

    start_s: float  # of the first picture: up to `MAX_LEAD_S` before what was asked if copied
    end_s: float  # when the last one goes; earlier than asked at the source's end, or at `MAX_BYTES`
    is_copy: bool


class _CopyError(Exception):
    """These packets cannot be copied; not an error of the source."""


def write_clip(uri: str, start_s: float, end_s: float, path: Path, check: Check = lambda: None) -> Clip:
    """Replaces the file. A folder's files follow each other as in its stream; `uri` must be no live source.

    Raises:
        SourceError: the source cannot be opened, or shows nothing in that span.
    """
    import av

    parts = parts_between(uri, start_s, end_s)
    try:
        found = _copy(parts, path, check)
    except (_CopyError, av.error.FFmpegError):  # a muxer's complaint, or a damaged file's
        found = _encode(parts, path, check)
    if found is None:
        raise SourceError(
            f"video {redact_uri(uri)}: shows nothing from {start_s:g} to {end_s:g} s; ask for another time"
        )
    return found


# ---- copying


def _copy(parts: Sequence[Part], path: Path, check: Check) -> Clip | None:
    """None: there is no picture. `_CopyError` where packets cannot be taken as they are."""
    import av

    with av.open(str(path), "w", format="mp4", options=FASTSTART) as container:
        output: Any = None
        extradata, begin, end, num_bytes = b"", Fraction(0), Fraction(0), 0
        for part in parts:
            with open_source(part.uri, threads=1) as source:
                origin = _origin_of(source)
                head = _head_of(source)
                if output is None:
                    output, extradata = container.add_stream_from_template(source.stream, opaque=True), head
                elif head != extradata:
                    raise _CopyError("files of different settings")
                for packet in _packets_of(source, part, origin):
                    check()
                    base = packet.time_base
                    time = part.begins_s + packet.pts * base - origin
                    if num_bytes == 0:
                        begin = time
                    num_bytes += packet.size
                    end = max(end, time + packet.duration * base)
                    shift = round((part.begins_s - origin - begin) / base)
                    packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, output
                    container.mux(packet)
                    if num_bytes > MAX_BYTES:
                        return Clip(float(begin), float(end), is_copy=True)
        return Clip(float(begin), float(end), is_copy=True) if num_bytes else None


def _origin_of(source: Source) -> Fraction:
    """The timestamp at the file's time 0; `_CopyError` unless its packets can be found and played as they are."""
    context = source.stream.codec_context
    if not source.container.format.name.startswith(SEEKABLE):
        raise _CopyError(f"no index: {source.container.format.name}")
    if context.name != CODEC or context.pix_fmt not in PIXELS:
        raise _CopyError(f"{context.name} {context.pix_fmt}")
    first = next(source.pictures(), None)
    if first is None or source.origin is None or first.image.rotation:
        raise _CopyError("no picture, no clock, or on its side")
    return source.origin


def _head_of(source: Source) -> bytes:
    """What must be the same for files to be played as one."""
    context = source.stream.codec_context
    return f"{context.width}x{context.height} ".encode() + bytes(context.extradata or b"")


def _packets_of(source: Source, part: Part, origin: Fraction) -> Iterator[Any]:
    """Those of the span in decoding order, from the last keyframe before it on."""
    base = source.stream.time_base
    start, end = (part.start_s + origin) / base, (part.end_s + origin) / base
    source.container.seek(
        int(start - Fraction(SEEK_MARGIN_S) / base), stream=source.stream, backward=True, any_frame=False
    )
    packets = _timed(source)
    lead: list[Any] = []
    for packet in packets:
        if packet.is_keyframe and (packet.pts <= start or not lead):
            lead = [packet]
        elif lead:
            lead.append(packet)
        if packet.dts is not None and packet.dts > start:  # so nothing after it is shown earlier
            break
        if len(lead) > MAX_LEAD_PACKETS:
            raise _CopyError("keyframes too far apart")
    if lead and (start - lead[0].pts) * base > MAX_LEAD_S:
        raise _CopyError("keyframes too far apart")
    if not lead or all(p.pts + p.duration <= start for p in lead):
        return
    _fill_in(lead)
    first_pts = lead[0].pts  # now, since who takes a packet changes its times
    held: list[Any] = []  # shown after the end, but perhaps needed for one that is not
    for packet in chain(lead, packets):
        if packet.dts >= end:
            return
        if packet.pts < first_pts:
            continue  # shown before its keyframe: it needs what was left out
        held.append(packet)
        if packet.pts < end:
            yield from held
            held = []


def _timed(source: Source) -> Iterator[Any]:
    """Packets that hold something; `_CopyError` where their clock is none or changes. The first may lack a `dts`."""
    latest: int | None = None
    for packet in source.container.demux(source.stream):
        if packet.size == 0:
            continue  # the end
        if packet.pts is None or packet.is_corrupt or (packet.dts is None and latest is not None):
            raise _CopyError("a packet without a time, or damaged")
        if latest is not None and not 0 < (packet.dts - latest) * packet.time_base <= MAX_JUMP_S:
            raise _CopyError("the clock changes")
        latest = packet.dts
        yield packet


def _fill_in(packets: Sequence[Any]) -> None:
    """Decoding times of the first ones, which Matroska does not store: each comes a picture before the next."""
    if packets[-1].dts is None:
        raise _CopyError("packets without a decoding time")
    for packet, following in reversed(list(pairwise(packets))):
        if packet.dts is None:
            packet.dts = following.dts - max(packet.duration, 1)


# ---- encoding


def _encode(parts: Sequence[Part], path: Path, check: Check) -> Clip | None:
    """None: there is no picture."""
    import av

    with av.open(str(path), "w", format="mp4", options=FASTSTART) as container:
        output: Any = None
        begin, end, num_bytes, latest = Fraction(0), Fraction(0), 0, -1
        for time, until, picture in _shown(parts):
            check()
            if output is None:
                output, begin = _encoder(container, picture), time
            stamp = max(round((time - begin) / BASE), latest + 1)
            image = _upright(picture.image).reformat(output.width, output.height, "yuv420p")
            image.time_base, image.pts, latest = BASE, stamp, stamp
            # Else the source's own keyframes would be kept as such.
            image.pict_type = av.video.frame.PictureType.NONE
            for packet in output.encode(image):
                num_bytes += packet.size
                container.mux(packet)
            end = until
            if num_bytes > MAX_BYTES:
                break
        if output is None:
            return None
        container.mux(output.encode(None))
        return Clip(float(begin), float(end), is_copy=False)


def _shown(parts: Sequence[Part]) -> Iterator[tuple[Fraction, Fraction, Picture]]:
    """Each picture of the span, and from when until when it is on show in it."""
    for part in parts:
        for picture in pictures_from(part.uri, part.start_s):
            if picture.time >= part.end_s:
                break
            if picture.until > part.start_s:
                time, until = max(picture.time, part.start_s), min(picture.until, part.end_s)
                yield part.begins_s + time, part.begins_s + until, picture


def _encoder(container: Any, first: Picture) -> Any:
    image = _upright(first.image)
    scale = min(1.0, MAX_SIDE / max(image.width, image.height))
    rate = 1 / max(first.until - first.time, Fraction(1, 120))
    stream = container.add_stream("libx264", rate=rate.limit_denominator(1_001), options=ENCODER)
    stream.width, stream.height = (
        max(2, round(side * scale) // 2 * 2) for side in (image.width, image.height)
    )
    stream.pix_fmt = "yuv420p"
    stream.codec_context.time_base = BASE
    stream.codec_context.thread_count = 1
    return stream


def _upright(image: Any) -> Any:
    """Cameras that lie on their side say so beside the picture."""
    import av

    return av.VideoFrame.from_ndarray(to_rgb(image), format="rgb24") if image.rotation else image
