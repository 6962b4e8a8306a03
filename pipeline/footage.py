"""What is stored of a stream, and pictures and clips of its source. Knows no model."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path
from typing import IO

from PIL import Image

from pipeline.dialogue import CancelledError, ClipHead, Picture
from pipeline.schemas import Segment, SegmentList
from streamkv.clip import write_clip
from streamkv.config import PipelineConfig
from streamkv.errors import SourceError, SourceGoneError
from streamkv.live import is_live
from streamkv.sources import sample_archive
from streamkv.store import SegmentStore, StreamRecord
from streamkv.uris import is_url

PICTURES_PER_S = 1000
"""How finely a picture is found: the one on show within this part of a second."""
QUALITY = 85


class Footage:
    """One thread may look at segments and pictures while another makes clips."""

    def __init__(self, config: PipelineConfig) -> None:
        self._config = config
        self._store: SegmentStore | None = None
        self._opening = threading.Lock()

    def segments(self, stream_id: str, after: int, limit: int) -> SegmentList:
        """Up to `limit` segments with larger numbers than `after`. UnknownStreamError when there is no stream."""
        places = self._opened().segments(stream_id, after + 1, limit + 1)
        shown = [
            Segment(
                segment=place.segment_no,
                start_s=place.start_s,
                end_s=place.end_s,
                frames=place.num_frames,
                source_frames=place.num_source_frames,
                kv_bytes=place.kv_bytes,
                file_bytes=place.file_bytes,
            )
            for place in places[:limit]
        ]
        return SegmentList(segments=shown, next_after=shown[-1].segment if len(places) > limit else None)

    def picture(self, stream_id: str, at_s: float, width: int | None = None) -> Picture:
        """The picture on show at that stream time, or the next where footage is missing, from the source.

        `width`: in pixels; a wider picture is made smaller.

        Raises:
            UnknownStreamError: no such stream.
            SourceError: the source is live, gone, or has no picture there.
        """
        info = self._opened().record(stream_id)
        _check_stays(info)
        return _picture(info, at_s, width)

    def thumbnails(self, stream_id: str, times_s: Sequence[float], width: int) -> list[bytes | None]:
        """A picture of each time; None where there is none."""
        info = self._opened().record(stream_id)
        _check_stays(info)
        found = list[bytes | None]()
        for at_s in times_s:
            try:
                found.append(_picture(info, at_s, width).jpeg)
            except SourceError:
                found.append(None)
        return found

    def clip(
        self, stream_id: str, start_s: float, end_s: float, cancelled: threading.Event
    ) -> tuple[ClipHead, IO[bytes]]:
        """An MP4 of that span, as a file that is gone once it is closed.

        Raises:
            UnknownStreamError: no such stream.
            SourceError: the source is live, gone, or shows nothing there; or the span is none, or too long.
            CancelledError: `cancelled` was set before the end.
        """
        info = self._opened().record(stream_id)
        _check_stays(info)
        _check_span(info, start_s, end_s, self._config.serve.max_clip_s)

        def check() -> None:
            if cancelled.is_set():
                raise CancelledError

        with ExitStack() as until_whole:
            file = until_whole.enter_context(tempfile.NamedTemporaryFile(prefix="streamkv-", suffix=".mp4"))
            clip = write_clip(info.uri, start_s, end_s, Path(file.name), check)
            num_bytes = file.seek(0, 2)
            file.seek(0)
            until_whole.pop_all()  # from here on it is the caller's
        return ClipHead(clip.start_s, clip.end_s, num_bytes, "copied" if clip.is_copy else "encoded"), file

    def _opened(self) -> SegmentStore:
        with self._opening:
            if self._store is None:  # made by the ingest plane, perhaps after this process started
                self._store = SegmentStore.configured(self._config.store, read_only=True)
            return self._store


def _picture(info: StreamRecord, at_s: float, width: int | None) -> Picture:
    for frame in sample_archive(info.uri, PICTURES_PER_S, start_s=at_s):
        image = Image.fromarray(frame.rgb)
        if width is not None:
            image.thumbnail((width, image.height))
        buffer = BytesIO()
        image.save(buffer, "JPEG", quality=QUALITY)
        return Picture(buffer.getvalue(), frame.start_s)
    raise SourceError(f"at_s: got {at_s:g}, but {_length(info)}; ask for an earlier time")


def _duration_s(info: StreamRecord) -> float:
    return float(info.config.get("duration_s", 0.0))


def _length(info: StreamRecord) -> str:
    duration_s = _duration_s(info)
    return f"the source lasts {duration_s:g} s" if duration_s else "the source ends before"


def _check_stays(info: StreamRecord) -> None:
    """That the source's past can be seen again."""
    if info.config.get("is_live", is_live(info.uri)):
        raise SourceError(f"stream {info.name!r}: a live source, whose pictures are not kept")
    path = info.uri.removeprefix("file://")
    if not is_url(path) and not Path(path).exists():
        raise SourceGoneError(
            f"stream {info.name!r}: its source {path} is not there any more, so it has no pictures; put it back "
            "where it was. Questions are answered without it"
        )


def _check_span(info: StreamRecord, start_s: float, end_s: float, max_clip_s: float) -> None:
    if not start_s < end_s:
        raise SourceError(f"from, to: got {start_s:g} and {end_s:g}; `from` must come before `to`")
    if end_s - start_s > max_clip_s:
        raise SourceError(
            f"from, to: got {end_s - start_s:g} s, allowed {max_clip_s:g} (serve.max_clip_s); ask for a part of it"
        )
    if 0 < _duration_s(info) <= start_s:
        raise SourceError(f"from: got {start_s:g}, but {_length(info)}; ask for an earlier time")
