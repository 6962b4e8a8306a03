"""The wall clock of an HLS playlist: its `EXT-X-PROGRAM-DATE-TIME`, which FFmpeg reads over.

A date belongs to the first picture of a media segment, and timestamps go on from one to the next; so one segment that
has a date, and its first timestamp, date them all (RFC 8216, 4.3.2.6).
"""

from __future__ import annotations

import io
import logging
import time
from fractions import Fraction

import av
import httpx
import m3u8

log = logging.getLogger(__name__)

MAX_BYTES = 32 << 20
"""Of a playlist, and of a segment."""


def date_of_zero(uri: str, *, timeout_s: float) -> Fraction | None:
    """Seconds since 1970 at timestamp 0 of a playlist's video; None when it does not say, or cannot be asked.

    Asks for the playlist and for one segment of it. Of a master playlist the first variant: all have the same times.
    """
    until = time.monotonic() + timeout_s
    try:
        with httpx.Client(timeout=timeout_s, follow_redirects=True) as client:
            playlist = _read(client, uri, until)
            if playlist.is_variant:
                playlist = _read(client, playlist.playlists[0].absolute_uri, until)
            for segment in reversed(playlist.segments):
                if segment.current_program_date_time is not None and _is_plain(segment):
                    date = Fraction(segment.current_program_date_time.timestamp())
                    return date - _first_timestamp(_bytes_of(client, segment, until))
    except (httpx.HTTPError, httpx.InvalidURL, av.error.FFmpegError, ValueError, LookupError) as exc:
        log.debug(
            "a playlist's dates cannot be read: %s", type(exc).__name__
        )  # its words may hold a password
    return None


def _read(client: httpx.Client, uri: str, until: float) -> m3u8.M3U8:
    data, at = _fetch(client, uri, until)
    return m3u8.loads(data.decode(), uri=at)


def _fetch(client: httpx.Client, uri: str, until: float) -> tuple[bytearray, str]:
    """A resource and where it is; ValueError when it is too large, or not there by `until` (time.monotonic())."""
    found = bytearray()
    with client.stream("GET", uri) as response:
        for chunk in response.raise_for_status().iter_bytes():
            found += chunk
            if len(found) > MAX_BYTES or time.monotonic() > until:
                raise ValueError("too large, or too slow")
        return found, str(response.url)


def _is_plain(segment: m3u8.Segment) -> bool:
    """Whether its bytes are all of one resource, and can be read without a key."""
    return not segment.byterange and (segment.key is None or segment.key.method in (None, "NONE"))


def _bytes_of(client: httpx.Client, segment: m3u8.Segment, until: float) -> bytes:
    """With what MP4 segments need before them."""
    parts = [segment.init_section.absolute_uri] if segment.init_section else []
    return b"".join(_fetch(client, uri, until)[0] for uri in (*parts, segment.absolute_uri))


def _first_timestamp(data: bytes) -> Fraction:
    """Of the picture that is shown first, in seconds."""
    with av.open(io.BytesIO(data)) as container:
        video = container.streams.video[0]
        stamps = [
            packet.pts * packet.time_base for packet in container.demux(video) if packet.pts is not None
        ]
    return Fraction(min(stamps))
