"""A corpus of damaged videos, made anew from seeds: real files of many containers, and what goes wrong with them.

BASES x BYTE_DAMAGE x seeds      bits flipped, cut, zeroed, shuffled, spliced ...
the rest                         clocks, sizes, rates, rotations, pixel formats, and what is no video at all
"""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, partial
from itertools import chain

import av
import numpy as np

RATE, SECONDS = 10, 6
BASES = {  # by the name's ending; keyframes each second
    "mp4": "libx264",
    "mkv": "libx264",
    "ts": "libx264",
    "avi": "mpeg4",
    "webm": "libvpx",
    "flv": "flv",
    "mov": "mjpeg",
    "mpg": "mpeg2video",
    "h264": "libx264",
    "wmv": "wmv2",
}
FORMATS = {"mkv": "matroska", "ts": "mpegts", "mpg": "mpeg", "wmv": "asf"}
HEADER_BYTES = 64
TEN_HOURS_S = 36_000


@dataclass(frozen=True)
class Damaged:
    """One file of the corpus."""

    kind: str
    name: str  # of the file
    make: Callable[[], bytes]


def encode(
    suffix: str,
    codec: str = "",
    *,
    times_s: Sequence[float] = (),
    rate: Fraction | int = RATE,
    size: tuple[int, int] = (64, 48),
    pix_fmt: str = "",
    is_still: bool = False,
    options: dict[str, str] | None = None,
    **codec_options: str,
) -> bytes:
    """A whole video: noise over a grey that gets lighter. `times_s`: of each picture, else a steady `rate`."""
    rng = np.random.default_rng(0)
    written = io.BytesIO()
    width, height = size
    codec = codec or BASES[suffix]
    with av.open(written, "w", format=FORMATS.get(suffix, suffix), options=options or {}) as container:
        stream = container.add_stream(
            codec, rate=25 if codec == "mpeg2video" else rate, options=codec_options
        )
        stream.width, stream.height = width, height
        stream.pix_fmt = pix_fmt or ("yuvj420p" if codec == "mjpeg" else "yuv420p")
        stream.codec_context.gop_size = RATE
        if times_s:
            stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for k, time in enumerate(times_s or range(RATE * SECONDS)):
            picture = np.full((height, width, 3), 100 if is_still else 2 * k % 200, np.uint8)
            if not is_still:
                picture[: height // 2] += rng.integers(0, 50, (height // 2, width, 3), dtype=np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if times_s:
                frame.time_base, frame.pts = Fraction(1, 1000), round(time * 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return written.getvalue()


@cache
def base(suffix: str) -> bytes:
    return encode(suffix)


def steady(start_s: float, seconds: float, fps: float = RATE) -> tuple[float, ...]:
    return tuple(start_s + k / fps for k in range(round(seconds * fps)))


# ---------------------------------------------------------------- damage to bytes


def flip_bits(data: bytes, rng: random.Random) -> bytes:
    """A few or very many; the header is spared half of the time."""
    bad = bytearray(data)
    first = rng.choice((0, min(600, len(data) // 2)))
    for _ in range(rng.choice((1, 20, 400))):
        bad[rng.randrange(first, len(bad))] ^= 1 << rng.randrange(8)
    return bytes(bad)


def cut_end(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(HEADER_BYTES, len(data))]


def cut_header(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(1, HEADER_BYTES)]


def cut_beginning(data: bytes, rng: random.Random) -> bytes:
    return data[rng.randrange(1, len(data)) :]


def zero(data: bytes, rng: random.Random) -> bytes:
    at, size = rng.randrange(len(data)), rng.randrange(1, len(data) // 2)
    return data[:at] + bytes(len(data[at : at + size])) + data[at + size :]


def drop(data: bytes, rng: random.Random) -> bytes:
    """Bytes are missing, so that all behind them lie where they should not."""
    at, size = rng.randrange(len(data)), rng.randrange(1, len(data) // 3)
    return data[:at] + data[at + size :]


def shuffle(data: bytes, rng: random.Random) -> bytes:
    blocks = [data[k : k + 512] for k in range(0, len(data), 512)]
    head, rest = blocks[:2], blocks[2:]
    rng.shuffle(rest)
    return b"".join(head + rest)


def splice(data: bytes, rng: random.Random) -> bytes:
    """Goes on, mid-file, as a file of another codec and container."""
    other = base(rng.choice(sorted(BASES)))
    return data[: rng.randrange(len(data) // 4, len(data))] + other[rng.randrange(len(other) // 2) :]


def repeat(data: bytes, rng: random.Random) -> bytes:
    return data + data[: rng.randrange(1, len(data))]


BYTE_DAMAGE: dict[Callable[[bytes, random.Random], bytes], int] = {
    flip_bits: 9, cut_end: 3, cut_header: 1, cut_beginning: 2, zero: 2, drop: 2, shuffle: 2, splice: 2, repeat: 1,
}  # fmt: skip
"""How many of each, of every base."""


def bytes_damaged() -> Iterator[Damaged]:
    for damage, count in BYTE_DAMAGE.items():
        for suffix in BASES:
            for seed in range(count):
                make = partial(_damage, damage, suffix, seed)
                yield Damaged(damage.__name__, f"{damage.__name__}-{suffix}-{seed}.{suffix}", make)


def _damage(damage: Callable[[bytes, random.Random], bytes], suffix: str, seed: int) -> bytes:
    return damage(base(suffix), random.Random(f"{damage.__name__}{suffix}{seed}"))


# ---------------------------------------------------------------- clocks


def transport(*starts_s: float) -> bytes:
    """A transport stream that begins anew at each of these times, two seconds each."""
    return b"".join(encode("ts", times_s=steady(s, 2), options={"output_ts_offset": "0"}) for s in starts_s)


WRAP_S = 2**33 / 90_000
"""A transport stream's clock starts over after this."""


def patch(data: bytes, box: bytes, skip: int, values: Sequence[int]) -> bytes:
    """Big-endian 32-bit values in place of those `skip` bytes behind a box's name."""
    at = data.index(box) + 4 + skip
    new = struct.pack(f">{len(values)}I", *values)
    return data[:at] + new + data[at + len(new) :]


def retime(data: bytes, deltas: Sequence[int]) -> bytes:
    """An MP4 whose runs of sample durations are these, of one sample each until the last takes the rest."""
    at = data.index(b"stts")
    (runs,) = struct.unpack(">I", data[at + 8 : at + 12])
    assert runs >= 1
    return patch(data, b"stts", 8, [RATE * SECONDS, deltas[0]])


def stamp_tags(data: bytes, rng: random.Random) -> bytes:
    """An FLV whose tags carry any times."""
    bad, at = bytearray(data), 13
    while at + 15 < len(bad):
        size = int.from_bytes(bad[at + 1 : at + 4], "big")
        bad[at + 4 : at + 7] = rng.choice((0, 5, 100, 4000, 2**24 - 1, rng.randrange(2**24))).to_bytes(
            3, "big"
        )
        at += 15 + size
    return bytes(bad)


def stamp_clusters(data: bytes, rng: random.Random) -> bytes:
    """A Matroska file whose blocks are at any time within their cluster."""
    bad, at = bytearray(data), 0
    while (at := bad.find(b"\x81\x00", at + 1)) > 0:  # a block of track 1
        if at > 400:
            bad[at + 1 : at + 3] = rng.randrange(2**16).to_bytes(2, "big")
    return bytes(bad)


def clocks() -> Iterator[Damaged]:
    def one(kind: str, suffix: str, make: Callable[[], bytes]) -> Damaged:
        return Damaged(kind, f"{kind}.{suffix}", make)

    yield one("clock-restarts", "ts", partial(transport, 0, 0, 0))
    yield one("clock-goes-back", "ts", partial(transport, 500, 20, 3))
    yield one("clock-goes-back-a-little", "ts", partial(transport, 10, 11.5, 10.7))
    yield one("clock-leaps-a-day", "ts", partial(transport, 0, 86_400))
    yield one("clock-leaps-many-times", "ts", partial(transport, 0, 50, 3000, 90, 7000))
    yield one("clock-wraps", "ts", partial(transport, WRAP_S - 1))
    yield one("clock-wraps-at-once", "ts", partial(transport, WRAP_S - 2, 0, 2))
    for suffix in ("mp4", "mkv"):
        yield one(f"clock-negative-{suffix}", suffix, partial(encode, suffix, times_s=steady(-3, 4)))
        hole = (*steady(0, 2), *steady(3000, 2), *steady(9000, 2))
        yield one(f"clock-holes-{suffix}", suffix, partial(encode, suffix, times_s=hole))
        bursts = tuple(sorted({*steady(0, 6, 2), *steady(2, 0.05, 1000)}))
        yield one(f"clock-bursts-{suffix}", suffix, partial(encode, suffix, times_s=bursts))
        far = (0.0, 0.1, 100_000.0, 100_000.1)
        yield one(f"clock-far-{suffix}", suffix, partial(encode, suffix, times_s=far))
    for name, delta in {"zero": 0, "one": 1, "huge": 2**31, "negative": 2**32 - 5, "all": 2**32 - 1}.items():
        yield one(f"durations-{name}", "mp4", lambda delta=delta: retime(base("mp4"), [delta]))
    for name, scale in {"zero": 0, "one": 1, "huge": 2**31 - 1, "all": 2**32 - 1}.items():
        yield one(f"timescale-{name}", "mp4", lambda scale=scale: patch(base("mp4"), b"mdhd", 12, [scale]))
    for name, length in {"zero": 0, "huge": 2**32 - 2}.items():
        yield one(f"length-{name}", "mp4", lambda length=length: patch(base("mp4"), b"mdhd", 16, [length]))
    for seed in range(6):
        flv, mkv = partial(_seeded, stamp_tags, "flv", seed), partial(_seeded, stamp_clusters, "mkv", seed)
        yield Damaged("clock-any", f"clock-any-{seed}.flv", flv)
        yield Damaged("clock-any", f"clock-any-{seed}.mkv", mkv)


def _seeded(damage: Callable[[bytes, random.Random], bytes], suffix: str, seed: int) -> bytes:
    return damage(base(suffix), random.Random(seed))


# ---------------------------------------------------------------- sizes, rates, pixels


def declare_size(width: int, height: int) -> bytes:
    """An MP4 whose sample entry claims that size."""
    data = base("mp4")
    at = data.index(b"avc1", data.index(b"stsd")) + 4 + 24
    return data[:at] + struct.pack(">HH", width, height) + data[at + 4 :]


def bomb(side: int) -> bytes:
    """A black PNG of that many pixels square in a few kilobytes."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    packer, row = zlib.compressobj(), bytes(1 + (side + 7) // 8)
    pixels = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return remux_png(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


def remux_png(png: bytes) -> bytes:
    written = io.BytesIO()
    with av.open(written, "w", format="mov") as container:
        stream = container.add_stream("png", rate=1)
        stream.width = stream.height = 64
        stream.pix_fmt = "rgb24"
        for k in range(3):
            packet = av.Packet(png)
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, k, k, Fraction(1)
            container.mux(packet)
    return written.getvalue()


def turned(degrees: int) -> bytes:
    matrix = {90: (0, 1, 0, -1, 0, 0), 180: (-1, 0, 0, 0, -1, 0), 270: (0, -1, 0, 1, 0, 0), 0: (0,) * 6}[
        degrees
    ]
    return patch(base("mp4"), b"tkhd", 40, [value * 65536 % 2**32 for value in matrix])


PIXELS = {
    "gray": "ffv1", "gray16le": "ffv1", "yuva444p": "ffv1", "gbrp12le": "ffv1", "bgr0": "ffv1", "yuv410p": "ffv1",
    "yuv444p": "libx264", "yuv422p10le": "libx264", "rgb24": "png", "monob": "png", "rgb48be": "png",
}  # fmt: skip


def shapes() -> Iterator[Damaged]:
    sizes = {"tiny": (2, 2), "wide": (4096, 2), "tall": (2, 4096), "odd": (70, 46)}
    for name, size in sizes.items():
        yield Damaged("size", f"size-{name}.mp4", partial(encode, "mp4", size=size, times_s=steady(0, 1)))
    yield Damaged("size", "size-one-pixel.mov", partial(encode, "mov", "png", size=(1, 2), pix_fmt="rgb24"))
    for claim in ((0, 0), (65535, 65535), (1, 1), (16, 65535)):
        yield Damaged("claimed-size", f"claims-{claim[0]}x{claim[1]}.mp4", partial(declare_size, *claim))
    for side in (9_000, 20_000):
        yield Damaged("bomb", f"bomb-{side}.mov", partial(bomb, side))
    for name, rate in {
        "slow": Fraction(1, 5000),
        "fast": Fraction(100_000),
        "odd": Fraction(30000, 1001),
    }.items():
        for suffix in ("mkv", "avi", "mov"):
            make = partial(encode, suffix, BASES[suffix] if suffix != "avi" else "mjpeg", rate=rate)
            yield Damaged("rate", f"rate-{name}.{suffix}", make)
    for degrees in (0, 90, 180, 270):
        yield Damaged("rotation", f"turned-{degrees}.mp4", partial(turned, degrees))
    for pix_fmt, codec in PIXELS.items():
        suffix = "mov" if codec == "png" else "mkv"
        make = partial(encode, suffix, codec, pix_fmt=pix_fmt)
        yield Damaged("pixels", f"pixels-{pix_fmt}.{suffix}", make)
    for suffix in ("h264", "ts"):
        make = partial(_resized, suffix)
        yield Damaged("resized", f"resized-{suffix}.{suffix}", make)


def _resized(suffix: str) -> bytes:
    return b"".join(encode(suffix, size=size) for size in ((64, 48), (128, 96), (32, 80), (64, 48)))


# ---------------------------------------------------------------- no video at all, and too much of one


def sound(suffix: str) -> bytes:
    written = io.BytesIO()
    with av.open(written, "w", format=FORMATS.get(suffix, suffix)) as container:
        stream = container.add_stream("aac", rate=16_000, layout="mono")
        for k in range(20):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16_000, 1024 * k
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return written.getvalue()


def frameless(suffix: str) -> bytes:
    """A container with a video stream that holds no frame."""
    written = io.BytesIO()
    with av.open(written, "w", format=FORMATS.get(suffix, suffix)) as container:
        stream = container.add_stream(BASES[suffix], rate=RATE)
        stream.width, stream.height = 64, 48
        container.start_encoding()
    return written.getvalue()


def still(seconds: float, every_s: float) -> bytes:
    return encode("mkv", times_s=tuple(k * every_s for k in range(round(seconds / every_s))), is_still=True)


def not_videos() -> Iterator[Damaged]:
    for suffix in ("mp4", "mkv", "ts", "flv"):
        yield Damaged("sound", f"sound.{suffix}", partial(sound, suffix))
    for suffix in ("mp4", "mkv", "avi", "flv"):
        yield Damaged("frameless", f"frameless.{suffix}", partial(frameless, suffix))
    for suffix in ("mp4", "avi", "webm"):
        yield Damaged("empty", f"empty.{suffix}", bytes)
        yield Damaged("text", f"text.{suffix}", partial(bytes, b"this is no video\n" * 200))
    noise = random.Random(5).randbytes
    for suffix in BASES:
        yield Damaged("noise", f"noise.{suffix}", partial(noise, 20_000))
    for suffix, other in zip(BASES, [*list(BASES)[1:], "mp4"], strict=True):
        yield Damaged("misnamed", f"misnamed-{other}.{suffix}", partial(base, other))
    yield Damaged("archive", "zip.mp4", partial(bytes, b"PK\x03\x04" + bytes(500)))
    yield Damaged("ten-hours", "ten-hours.mkv", partial(still, TEN_HOURS_S, 8.0))


CORPUS: list[Damaged] = list(chain(bytes_damaged(), clocks(), shapes(), not_videos()))
