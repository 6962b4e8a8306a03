"""A segment file's header: what it holds, for which model, and the checksum of each of its buffers."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from streamkv.errors import CorruptSegmentError, ForeignStoreError, StoreError
from streamkv.store.records import FORMAT_VERSION, READABLE, ModelIdentity
from streamkv.types import Geometry

HEADER = b"streamkv.header"
HEADER_CRC32 = b"streamkv.header_crc32"


@dataclass(frozen=True)
class LayerHeader:
    """One layer's record batch."""

    num_blocks: int
    crc32: Mapping[str, int]  # of each column's buffer


@dataclass(frozen=True)
class SegmentHeader:
    """Everything about a segment but its tensors. Keeps the JSON of docs/format.md, section Header."""

    identity: ModelIdentity
    codec: str
    stream_id: str
    segment_no: int
    epoch: int
    start_s: float
    end_s: float
    num_frames: int
    num_source_frames: int
    resume_s: float
    similarities: tuple[float, ...]
    summary_vectors_crc32: int
    layers: tuple[LayerHeader, ...]

    def to_metadata(self) -> dict[bytes, bytes]:
        """As Arrow schema metadata; StoreError when a time is not finite."""
        identity = asdict(self.identity)
        fields = asdict(self) | {
            "format_version": FORMAT_VERSION,
            "model_fingerprint": identity["fingerprint"],
            "geometry": identity["geometry"],
            "dtype": identity["dtype"],
            # JSON has no NaN, and a frame without features has no cosine
            "similarities": [x if math.isfinite(x) else None for x in self.similarities],
        }
        del fields["identity"]
        try:
            text = json.dumps(fields, allow_nan=False, sort_keys=True).encode()
        except ValueError as exc:
            raise StoreError(
                f"segment {self.segment_no} of {self.stream_id!r}: times must be finite, got "
                f"start_s {self.start_s}, end_s {self.end_s}, resume_s {self.resume_s}"
            ) from exc
        return {HEADER: text, HEADER_CRC32: f"{zlib.crc32(text):08x}".encode()}

    @classmethod
    def from_metadata(cls, metadata: Mapping[bytes, bytes], where: str) -> SegmentHeader:
        """The inverse of `to_metadata`; `where` names the file in errors."""
        text, crc32 = metadata.get(HEADER, b""), metadata.get(HEADER_CRC32, b"")
        if f"{zlib.crc32(text):08x}".encode() != crc32:
            raise CorruptSegmentError(f"{where}: the header does not match its checksum")
        fields: dict[str, Any] = json.loads(text)
        version = fields.pop("format_version")
        if version not in READABLE:
            raise ForeignStoreError(
                f"{where}: format version {version}, this program reads {', '.join(map(str, READABLE))}; "
                "use the release that wrote it, or ingest the stream again"
            )
        return cls._from_fields(fields)

    @classmethod
    def _from_fields(cls, fields: dict[str, Any]) -> SegmentHeader:
        geometry = Geometry(**fields.pop("geometry"))
        identity = ModelIdentity(fields.pop("model_fingerprint"), geometry, fields.pop("dtype"))
        similarities = tuple(math.nan if x is None else x for x in fields.pop("similarities"))
        layers = tuple(LayerHeader(**layer) for layer in fields.pop("layers"))
        return cls(identity=identity, similarities=similarities, layers=layers, **fields)
