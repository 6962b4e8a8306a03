"""The small plain values that the store hands out or is told; all of them pickle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

from streamkv.errors import LegalHoldError
from streamkv.types import Geometry

if TYPE_CHECKING:
    from streamkv.models.base import VideoLLM

FORMAT_VERSION = 2
"""Of segment files and of the catalog, as this program writes them; docs/format.md."""
READABLE = (1, FORMAT_VERSION)
"""Versions that it reads; any other is refused by name."""

DTYPES = ("float32", "float16", "bfloat16")

StreamState = Literal["registered", "ingesting", "paused", "done", "failed", "stopped"]
STREAM_STATES: tuple[str, ...] = get_args(StreamState)
ENDED: tuple[StreamState, ...] = ("done", "failed", "stopped")
"""Of a stream that nobody writes."""

NEXT = "@next"
"""Ends the name of a stream that is being made to take the place of another; see `generations`."""
RETENTION = "retention"
"""Reason of the gap that deleted segments leave at a stream's beginning."""


@dataclass(frozen=True)
class ModelIdentity:
    """What a cache is only good for: these weights, these shapes, this type of number."""

    fingerprint: str
    geometry: Geometry
    dtype: str  # one of DTYPES

    @classmethod
    def of(cls, model: VideoLLM) -> ModelIdentity:
        """What a store of this model's caches is marked with."""
        return cls(model.fingerprint, model.geometry, str(model.dtype).removeprefix("torch."))

    @property
    def block_bytes(self) -> int:
        """Bytes of one block's keys, which are also those of its values."""
        return self.geometry.block_bytes(self.value_bytes) // 2

    def num_blocks(self, kv_bytes: int) -> int:
        """Of all layers, whose keys and values have so many bytes before a codec."""
        return kv_bytes // (2 * self.block_bytes)

    @property
    def value_bytes(self) -> int:
        return 4 if self.dtype == "float32" else 2

    def differences(self, other: ModelIdentity) -> str:
        """`dtype: 'float32' against 'bfloat16'; ...`, mine first; empty when equal."""
        mine, theirs = asdict(self), asdict(other)
        return "; ".join(f"{k}: {mine[k]!r} against {theirs[k]!r}" for k in mine if mine[k] != theirs[k])


@dataclass(frozen=True)
class SegmentPlace:
    """A segment's durable file and what the catalog keeps of it; the message from a writer to the store."""

    stream_id: str
    segment_no: int
    epoch: int
    path: str  # relative to the store's root, with forward slashes
    start_s: float
    end_s: float
    num_frames: int
    num_source_frames: int
    resume_s: float
    kv_bytes: int
    file_bytes: int
    checksum: str  # hex; covers every byte of the file (docs/format.md)
    codec: str = "raw"


@dataclass(frozen=True)
class Gap:
    """Footage that is missing from a stream, and why."""

    start_s: float
    end_s: float
    reason: str


@dataclass(frozen=True, kw_only=True)
class StreamRecord:
    """A stream as its catalog has it at one moment, without what is summed up over its segments."""

    stream_id: str
    uri: str = field(repr=False)  # it may hold a password
    state: StreamState
    detail: str
    created_at: float  # seconds since 1970
    epoch: int  # of the writer that owns the stream; 0: none yet
    resume_s: float  # where a source continues; 0.0 when there is no segment
    next_segment_no: int
    gaps: tuple[Gap, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    tenant: str = ""  # whose it is
    legal_hold: str = ""  # why nothing of it may be deleted; empty: it may
    name: str = ""  # what it is asked by

    @property
    def is_next(self) -> bool:
        """Whether it is not asked yet: it is being made to take another one's place."""
        return self.name.endswith(NEXT)

    def check_not_held(self) -> None:
        """LegalHoldError when nothing of the stream may be deleted."""
        check_not_held(self.name or self.stream_id, self.legal_hold)


@dataclass(frozen=True, kw_only=True)
class StreamInfo(StreamRecord):
    """The same with what its segments are together; that takes a look at each of their rows."""

    num_segments: int
    num_frames: int
    num_source_frames: int
    kv_bytes: int
    file_bytes: int
    as_of_s: float  # end of the last segment; 0.0 when there is none


def check_not_held(stream_id: str, legal_hold: str) -> None:
    if legal_hold:
        raise LegalHoldError(
            f"stream {stream_id!r}: on legal hold ({legal_hold}), nothing of it is deleted; "
            f"release it first: streamkv store release {stream_id}"
        )


@dataclass(frozen=True)
class Front:
    """A stream's segments before some number: what retention takes, or would take."""

    num_segments: int
    file_bytes: int
    until_s: float  # end of the last, in stream time; 0.0 when there is none


@dataclass(frozen=True)
class NearTier:
    """Where blocks that were read lately are kept (`near.py`), and how many bytes of them."""

    device: str  # `cuda:0`; `cpu`, which is pinned where there is a GPU to copy to
    num_bytes: int


@dataclass(frozen=True)
class Uploads:
    """How far the object store is behind the catalog."""

    num_uploaded: int
    uploaded_bytes: int
    num_waiting: int  # segments that are not there yet
    waiting_bytes: int
    num_removed: int  # objects that no segment needs any more, and that are to go


@dataclass(frozen=True)
class Problem:
    """One thing that `SegmentStore.verify` found."""

    kind: Literal["missing", "corrupt", "extra"]
    path: str  # relative to the root
    detail: str
    stream_id: str = ""
    tier: Literal["disk", "objects"] = "disk"  # which copy it is about

    def __str__(self) -> str:
        return f"{self.kind}: {self.path}: {self.detail}"
