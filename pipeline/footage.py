"""What is stored of a stream, and pictures of its source. Knows no model."""

from __future__ import annotations

from io import BytesIO

from PIL import Image

from pipeline.dialogue import Picture
from pipeline.schemas import Segment, SegmentList
from streamkv.config import StoreConfig
from streamkv.errors import SourceError
from streamkv.live import is_live
from streamkv.sources import sample_archive
from streamkv.store import SegmentStore, StreamInfo

PICTURES_PER_S = 1000
"""How finely a picture is found: the one on show within this part of a second."""
QUALITY = 85


class Footage:
    """One caller at a time."""

    def __init__(self, config: StoreConfig) -> None:
        self._config = config
        self._store: SegmentStore | None = None

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

    def picture(self, stream_id: str, at_s: float) -> Picture:
        """The picture on show at that stream time, or the next where footage is missing, from the source.

        Raises:
            UnknownStreamError: no such stream.
            SourceError: the source is live, gone, or has no picture there.
        """
        info = self._opened().stream(stream_id)
        _check_stays(info)
        for frame in sample_archive(info.uri, PICTURES_PER_S, start_s=at_s):
            buffer = BytesIO()
            Image.fromarray(frame.rgb).save(buffer, "JPEG", quality=QUALITY)
            return Picture(buffer.getvalue(), frame.start_s)
        length = (
            f"the source lasts {_duration_s(info):g} s" if _duration_s(info) else "the source ends before"
        )
        raise SourceError(f"at_s: got {at_s:g}, but {length}; ask for an earlier time")

    def _opened(self) -> SegmentStore:
        if self._store is None:  # made by the ingest plane, perhaps after this process started
            self._store = SegmentStore.configured(self._config, read_only=True)
        return self._store


def _duration_s(info: StreamInfo) -> float:
    return float(info.config.get("duration_s", 0.0))


def _check_stays(info: StreamInfo) -> None:
    """That the source's past can be seen again."""
    if info.config.get("is_live", is_live(info.uri)):
        raise SourceError(f"stream {info.stream_id!r}: a live source, whose pictures are not kept")
