"""A live source to sampled frames, for as long as it lives. Knows PyAV; knows nothing of streams' names or stores.

Stream time is wall-clock time since `origin_s`, so that a source that was away, or whose reader was, goes on at
the right moment. Within one connection pictures follow the source's own timestamps; each connection is anchored at
the arrival of its first picture.

    pictures    |a    |b  |c   (connection refused x 3)   |d     |e
    grid        0     1     2     3     4     5     6     7     8
    frames      a     b     c  ^ gap (3, 8), with its wall-clock span ^ d ...

It never waits for whoever takes its frames; what to do when they are taken too slowly is the taker's to say.
"""

from __future__ import annotations

import logging
import math
import re
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from fractions import Fraction
from typing import Any, Literal
from urllib.parse import urlsplit, urlunsplit

from streamkv.decoding import Picture, Source, pick_video, strerror
from streamkv.errors import SourceError
from streamkv.grid import NEAR_S, Grid, OnGap
from streamkv.types import Frame
from streamkv.uris import redact_uri
from streamkv.video import VideoInfo

Waiting = Callable[[], AbstractContextManager[None]]

Clock = Literal["sender", "arrival"]
"""Whose wall clock dates a frame: the source's own (RTP reports, an HLS playlist's dates), or ours when it arrived."""

SCHEMES = ("rtsp", "rtsps", "rtmp", "rtmps", "rtmpt", "rtmpts", "rtp", "srt", "tcp", "udp", "v4l2")
"""Of URIs that are live whatever they say. `http` and `https` are when nothing says how long they last."""
BACKOFF_S = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
"""Pauses before one attempt to connect and the next."""
STEADY_S = 30.0
"""A connection that lasted this long has the pauses begin anew; a shorter one does not, or it would flap."""
LOG_EVERY_S = 60.0
"""A source says no more than one line in this time."""
MAX_SKEW_S = Fraction(30)
"""A clock further off than this is not believed: the sender's as a date, timestamps as the passing of time."""
FIRST_S = 1.0
"""How long FFmpeg may study a source before its first picture is handed out."""
UDP_BUFFER_BYTES = 4_000_000
REMEMBERED_PACKETS = 4096
"""Of a playlist: read again after a break, they are not news."""

_DEVICE = re.compile(r"(v4l2://)?/dev/video\d+")


def is_live(uri: str) -> bool:
    """Whether the URI alone says that the source is live."""
    return uri.partition("://")[0].lower() in SCHEMES if "://" in uri else bool(_DEVICE.fullmatch(uri))


@dataclass(frozen=True)
class LiveFrame(Frame):
    """A frame and its date."""

    wall_s: float  # seconds since 1970 at which its picture was taken, by that clock
    clock: Clock


@dataclass(frozen=True)
class Outage:
    """A source that is away."""

    since_s: float  # seconds since 1970
    attempts: int
    reason: str

    def __str__(self) -> str:
        tries = f", {self.attempts} attempts" if self.attempts > 1 else ""
        return f"away since {utc(self.since_s)}: {self.reason}{tries}"


class AwayError(Exception):
    """The connection cannot be made, or is over; the message says why, without the URI."""


class EndedError(Exception):
    """The broadcast has come to its end."""


def probe_live(uri: str, *, timeout_s: float) -> VideoInfo:
    """Connects and waits for one picture.

    Raises:
        SourceError: it does not connect, shows no picture in time, or holds no video.
    """
    try:
        with Connection(uri, timeout_s=timeout_s) as connection:
            picture = next(connection.pictures(), None)
            if picture is None:
                raise AwayError(connection.failure)
            rate = connection.stream.average_rate
            return VideoInfo(
                duration_s=0.0,
                fps=float(rate) if rate else 0.0,
                width=int(picture.image.width),
                height=int(picture.image.height),
                codec=str(connection.stream.codec_context.name),
                is_live=True,
            )
    except AwayError as exc:
        raise SourceError(
            f"video {redact_uri(uri)}: no picture ({exc}); see that it is on and sends, then try again"
        ) from None


class Connection:
    """One connection to a live source, as a context manager."""

    def __init__(
        self,
        uri: str,
        *,
        timeout_s: float,
        keyframes_only: bool = False,
        threads: int = 1,
        repeats: Repeats | None = None,
        is_first: bool = True,
        waiting: Waiting = nullcontext,
    ) -> None:
        """Connects.

        Raises:
            AwayError: that fails.
            SourceError: there is no video.
            EndedError: the broadcast is over; not `is_first`, for which all of it is news.
        """
        import av

        self._timeout_s = timeout_s
        self._keyframes_only = keyframes_only
        self._repeats = repeats
        self._sender: Fraction | None = None  # the sender's wall clock at timestamp 0
        place, arguments = _how_to_open(uri)
        try:
            with waiting():
                self._container = av.open(place, timeout=timeout_s, **arguments)
        except (av.error.FFmpegError, OSError, ValueError) as exc:
            raise AwayError(strerror(exc)) from None
        self._is_playlist = self._container.format.name == "hls"
        try:
            if not is_first and self._is_playlist and self._container.duration:
                raise EndedError
            self.stream = pick_video(self._container, redact_uri(uri), threads)
            for other in self._container.streams:
                if other is not self.stream:
                    other.discard = av.stream.Discard.all  # else sound alone would pass for a sign of life
        except BaseException:
            self._container.close()
            raise
        self._source = Source(
            self._container,
            self.stream,
            keyframes_only=keyframes_only,
            wants=self._look_at,
            max_read_errors=1,
            waiting=waiting,
        )
        if self._is_playlist:
            from streamkv.hls import date_of_zero

            self._sender = date_of_zero(uri, timeout_s=timeout_s)
        self._alive = time.monotonic()  # of the last picture

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *exc: object) -> None:
        self._source.close()

    @property
    def failure(self) -> str:
        """Why the pictures came to their end."""
        return self._source.failure or "the source closed the connection"

    @property
    def max_hold_s(self) -> Fraction:
        return self._source.max_hold_s

    def pictures(self) -> Iterator[Picture]:
        """Until the source ends; AwayError when it falls silent."""
        for picture in self._source.pictures():
            yield picture
            self._alive = time.monotonic()

    def sent_at(self, picture: Picture) -> Fraction | None:
        """When the sender says that the picture was taken, in seconds since 1970."""
        if self._sender is None or picture.image.pts is None:
            return None
        base = Fraction(picture.image.time_base or self.stream.time_base)
        stamp: Fraction = picture.image.pts * base
        return self._sender + stamp

    def _look_at(self, packet: Any) -> bool:
        """Of every packet before it is decoded: whether it is news."""
        if time.monotonic() - self._alive > self._timeout_s:
            raise AwayError(f"no picture for {self._timeout_s:g} s")
        if packet.has_sidedata("prft") and packet.pts is not None:
            wall_us = struct.unpack_from("q", bytes(packet.get_sidedata("prft")))[0]
            self._sender = Fraction(wall_us, 1_000_000) - packet.pts * packet.time_base
        if self._keyframes_only:
            self._alive = time.monotonic()  # keyframes may be far apart
        return not (self._is_playlist and self._repeats is not None and self._repeats.has(packet))


class Repeats:
    """What was read of a playlist. One whose maker has died is served on, and would be read over and over."""

    def __init__(self) -> None:
        self._packets: dict[tuple[int, int], None] = {}

    def has(self, packet: Any) -> bool:
        """Whether the packet was read before; from now on it was."""
        if packet.pts is None:
            return False
        key = (packet.pts, packet.size)
        if key in self._packets:
            return True
        self._packets[key] = None
        if len(self._packets) > REMEMBERED_PACKETS:
            del self._packets[next(iter(self._packets))]
        return False


class Timeline:
    """Pictures of any number of connections to stream time, which only ever rises."""

    def __init__(self) -> None:
        self.last: Fraction | None = None
        self._base: Fraction | None = None  # stream time of the connection's own time 0
        self._least: Fraction | None = None  # arrival at time 0 by the picture that was delayed least

    def begin_connection(self) -> None:
        self._base = self._least = None

    def place(self, own: Fraction, arrival: Fraction) -> Fraction | None:
        """The stream time of a picture of that own time; None for one that does not come after the last."""
        if self._base is None or abs(self._base + own - arrival) > MAX_SKEW_S:
            self._base = max(arrival, self.last or arrival) - own
        time = self._base + own
        if self.last is not None and time <= self.last:
            return None
        self.last = time
        return time

    def taken_at(self, own: Fraction, now: Fraction) -> Fraction:
        """When a picture that arrives now was sent, judged by the one that was under way for the least time."""
        self._least = now - own if self._least is None else min(self._least, now - own)
        return self._least + own


@dataclass(frozen=True)
class _Shown:
    """The picture on show, and its date."""

    picture: Picture
    wall_s: float
    clock: Clock


class LiveSource:
    """See the module. One thread goes through `frames`; others may look at it, and `stop` it."""

    def __init__(
        self,
        uri: str,
        sample_fps: float,
        *,
        origin_s: float,
        on_gap: OnGap,
        start_s: float = 0.0,
        timeout_s: float = 15.0,
        outage_limit_s: float = 0.0,
        keyframes_only: bool = False,
        threads: int = 1,
    ) -> None:
        """`origin_s`: seconds since 1970 at stream time 0. `start_s`: what an earlier reader has read up to.

        A source that is away for longer than `outage_limit_s` has failed; 0: it may come back at any time.
        """
        self.outage: Outage | None = None
        self.connections = 0
        self._uri = uri
        self._shown_uri = redact_uri(uri)
        self._sample_fps = sample_fps
        self._origin = Fraction(origin_s)
        self._on_gap = on_gap
        self._start_s = start_s
        self._timeout_s = timeout_s
        self._outage_limit_s = outage_limit_s
        self._keyframes_only = keyframes_only
        self._threads = threads
        self._stop = threading.Event()
        self._repeats = Repeats()
        self._timeline = Timeline()
        self._grid: Grid | None = None
        self._missing = "nobody read the source" if start_s > 0 else ""  # why the next picture comes late
        self._failures = 0  # connections in a row that did not last
        self._resumed_at = math.inf  # time.monotonic() of the connection's first picture
        self._logged_at = -math.inf
        self._unlogged = 0

    def stop(self) -> None:
        """Ends `frames` at the next picture, or when the source has been silent for `timeout_s`."""
        self._stop.set()

    def frames(self, waiting: Waiting = nullcontext) -> Iterator[LiveFrame]:
        """The picture on show at each sampling time, until the broadcast ends or `stop` is called.

        `waiting` is entered whenever the source has nothing to do but to wait for the camera.

        Raises:
            SourceError: it was away for longer than it may be.
        """
        while not self._stop.is_set():
            self._resumed_at = math.inf
            try:
                yield from self._connect(waiting)
            except EndedError:
                return
            except AwayError as exc:
                reason = str(exc)
            except SourceError as exc:
                reason = str(exc).removeprefix(f"video {self._shown_uri}: ")
            else:
                reason = "stopped"
            if not self._stop.is_set():
                with waiting():
                    self._wait(reason)

    def _connect(self, waiting: Waiting) -> Iterator[LiveFrame]:
        """Frames of one connection; always ends in an error, unless stopped."""
        with Connection(
            self._uri,
            timeout_s=self._timeout_s,
            keyframes_only=self._keyframes_only,
            threads=self._threads,
            repeats=self._repeats,
            is_first=self.connections == 0 and self._start_s <= 0,
            waiting=waiting,
        ) as connection:
            self.connections += 1
            self._timeline.begin_connection()
            shown: _Shown | None = None
            try:
                for picture in connection.pictures():
                    if self._stop.is_set():
                        return
                    coming = self._date(connection, picture)
                    if coming is None:
                        continue
                    grid = self._grid_from(coming.picture, connection.max_hold_s)
                    if shown is None:
                        self._resume(grid, coming)
                    else:
                        yield from _dated(grid.pass_time(shown.picture, coming.picture), shown)
                    shown = coming
            except AwayError:
                yield from self._last_of(shown)
                raise
            yield from self._last_of(shown)
            raise AwayError(connection.failure)

    def _date(self, connection: Connection, picture: Picture) -> _Shown | None:
        """The picture in stream time; None when it does not come after the one before."""
        now = Fraction(time.time())
        placed = self._timeline.place(picture.time, now - self._origin)
        arrived = self._timeline.taken_at(picture.time, now)
        if placed is None:
            return None
        sent = connection.sent_at(picture)
        is_sane = sent is not None and abs(sent - arrived) <= MAX_SKEW_S
        moved = Picture(placed, placed + picture.until - picture.time, picture.image, picture.lost)
        wall_s = sent if is_sane and sent is not None else arrived
        return _Shown(moved, float(wall_s), "sender" if is_sane else "arrival")

    def _grid_from(self, first: Picture, max_hold_s: Fraction) -> Grid:
        """Begins at the first picture, unless that one is late: then where it was due."""
        if self._grid is None:
            start_s = Fraction(self._start_s) if self._missing else first.time
            self._grid = Grid(self._sample_fps, start_s, self._tell_gap, max_hold_s)
        return self._grid

    def _resume(self, grid: Grid, first: _Shown) -> None:
        """Notes what was missed before the first picture of a connection."""
        tries = self.outage.attempts if self.outage is not None else 0
        attempts = f", {tries} attempts" if tries > 1 else ""
        grid.skip_to(first.picture.time - NEAR_S, (self._missing or "the source began late") + attempts)
        if self.outage is not None:
            self._log(logging.INFO, f"back after {time.time() - self.outage.since_s:.0f} s")
        self._missing, self.outage = "", None
        self._resumed_at = time.monotonic()

    def _last_of(self, shown: _Shown | None) -> Iterator[LiveFrame]:
        if shown is not None and self._grid is not None:
            yield from _dated(self._grid.show(shown.picture, shown.picture.until), shown)

    def _tell_gap(self, start_s: float, end_s: float, reason: str) -> None:
        from_s, until_s = (float(self._origin) + at for at in (start_s, end_s))
        self._on_gap(start_s, end_s, f"{reason} ({utc(from_s)} to {utc(until_s)})")

    def _wait(self, reason: str) -> None:
        """Notes the outage and pauses before the next attempt; SourceError when it has lasted too long."""
        before = self.outage
        since_s = before.since_s if before is not None else time.time()
        attempts = before.attempts + 1 if before is not None else 1
        was_steady = time.monotonic() - self._resumed_at >= STEADY_S
        self._failures = 1 if was_steady else self._failures + 1
        pause_s = BACKOFF_S[min(self._failures, len(BACKOFF_S)) - 1]
        self._missing = self._missing or reason
        self.outage = Outage(since_s, attempts, reason)
        away_s = time.time() - since_s
        if 0 < self._outage_limit_s < away_s + pause_s:
            raise SourceError(
                f"video {self._shown_uri}: away for {away_s:.0f} s ({reason}), allowed "
                f"{self._outage_limit_s:.0f} s (source.outage_limit_s); add the stream anew when it is back"
            )
        self._log(logging.WARNING, f"{reason}; trying again in {pause_s:.0f} s")
        self._stop.wait(pause_s)

    def _log(self, level: int, message: str) -> None:
        now = time.monotonic()
        if now - self._logged_at < LOG_EVERY_S:
            self._unlogged += 1
            return
        more = f" ({self._unlogged} lines like it were left out)" if self._unlogged else ""
        log.log(level, "%s: %s%s", self._shown_uri, message, more)
        self._logged_at, self._unlogged = now, 0


log = logging.getLogger(__name__)


def utc(wall_s: float) -> str:
    """`2026-01-31 14:07:03 UTC`."""
    return datetime.fromtimestamp(wall_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _dated(frames: Iterator[Frame], shown: _Shown) -> Iterator[LiveFrame]:
    for frame in frames:
        yield LiveFrame(frame.rgb, frame.start_s, frame.end_s, shown.wall_s, shown.clock)


def _how_to_open(uri: str) -> tuple[str, dict[str, Any]]:
    """What PyAV opens, and how: little delay, no endless study of the source."""
    options = {"analyzeduration": str(round(FIRST_S * 1e6))}
    scheme = uri.partition("://")[0].lower()
    if _DEVICE.fullmatch(uri):
        return uri.removeprefix("v4l2://"), {"format": "video4linux2,v4l2"}
    if scheme in ("rtsp", "rtsps"):
        uri, transport = _transport(uri)
        options["rtsp_transport"] = transport
    elif scheme == "udp":
        options |= {"buffer_size": str(UDP_BUFFER_BYTES), "overrun_nonfatal": "1"}
    elif scheme in ("http", "https"):
        options["live_start_index"] = "-1"
    return uri, {"options": options}


def _transport(uri: str) -> tuple[str, str]:
    """`rtsp://camera/path?udp` without its last word, and that word; TCP when there is none, which loses nothing."""
    parts = urlsplit(uri)
    words = parts.query.split("&") if parts.query else []
    chosen = [w for w in words if w in ("tcp", "udp", "udp_multicast")]
    query = "&".join(w for w in words if w not in chosen)
    return urlunsplit(parts._replace(query=query)), chosen[-1] if chosen else "tcp"
