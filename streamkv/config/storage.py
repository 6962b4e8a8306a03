"""The segment store: where, in what codec, for how long."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from streamkv.config.checks import check, need


@dataclass(frozen=True)
class AgeingStep:
    """From which age on a segment is stored in which codec, and in how many blocks."""

    after_s: float = 0.0
    """Seconds since it was committed."""
    codec: str = "int8"
    """A name of `store.codec`. One that would not make the file smaller changes nothing."""
    keep_ratio: float = 1.0
    """Blocks that are left, as a share of the segment's frames in all layers, summaries counted: those that are most
    like a neighbour go. Summaries stay, and a block a layer. 1: all that are stored."""

    def __post_init__(self) -> None:
        check(
            [
                need(self.after_s >= 0, "store.ageing.after_s", self.after_s, ">= 0"),
                need(
                    0 < self.keep_ratio <= 1, "store.ageing.keep_ratio", self.keep_ratio, "above 0, up to 1"
                ),
            ]
        )


@dataclass(frozen=True)
class RetentionConfig:
    """How long and how much is kept. Nothing is deleted of a stream on legal hold."""

    max_age_s: float = 0.0
    """Segments committed longer ago are deleted; 0: none is."""
    stream_bytes: int = 0
    """Bytes of segment files that a stream may have; 0: any."""
    tenant_bytes: int = 0
    """Bytes that the streams of a tenant may have together, held ones too; those without one share one. 0: any."""
    when_full: Literal["pause", "oldest"] = "pause"
    """When a limit of bytes is reached or the disk is full: `pause` the stream's ingest until there is room, or delete
    the `oldest` segments, of the stream for its own limit, else of its tenant."""

    def __post_init__(self) -> None:
        least = {
            "max_age_s": self.max_age_s,
            "stream_bytes": self.stream_bytes,
            "tenant_bytes": self.tenant_bytes,
        }
        check(need(value >= 0, f"store.retention.{name}", value, ">= 0") for name, value in least.items())


@dataclass(frozen=True)
class S3Config:
    """How a bucket is reached. Its credentials are not here: AWS_ACCESS_KEY_ID and the like, ~/.aws, or a role."""

    endpoint_override: str = ""
    """`host:port` of a server that is not Amazon's."""
    scheme: Literal["https", "http"] = "https"
    region: str = ""
    """Empty: as the environment or ~/.aws/config says."""
    timeout_s: float = 10.0
    """For connecting, and for how long no byte may come."""
    attempts: int = 3
    """For each request, with pauses in between."""

    def __post_init__(self) -> None:
        check(
            [
                need(self.timeout_s > 0, "store.s3.timeout_s", self.timeout_s, "> 0"),
                need(self.attempts >= 1, "store.s3.attempts", self.attempts, ">= 1"),
            ]
        )


@dataclass(frozen=True)
class StoreConfig:
    root: str = ".streamkv/store"
    """Folder of the segment store."""
    catalog_url: str = ""
    """SQLAlchemy URL; empty: SQLite in the store's folder."""
    codec: str = "fp16"
    """How keys and values are stored: `raw`, `fp16`, `int8`, `int4`, `int2`; each file says which (docs/format.md)."""
    ageing: list[AgeingStep] = field(default_factory=list)
    """What becomes of old segments, as in `[{after_s: 86400, codec: int4}, {after_s: 2592000, keep_ratio: 0.1}]`; none:
    nothing."""
    retention: RetentionConfig = field(default_factory=RetentionConfig)
    upkeep_s: float = 600.0
    """Seconds between two rounds in which a server deletes and ages what is due; 0: it leaves that to
    `streamkv store retain` and `streamkv store age`."""
    remote: str = ""
    """Where committed segments go as objects, behind the local disk: `s3://bucket/prefix`, `file:///folder` or another
    URI of pyarrow.fs; empty: nowhere."""
    s3: S3Config = field(default_factory=S3Config)
    local_bytes: int = 0
    """Bytes of segment files on the local disk. Above it those that are in `remote` leave it, the least recently used
    first; 0: none leaves."""
    remote_codec: str = ""
    """In what codec segments leave the local disk, a name of `codec`; empty: in what they have. If that has fewer bytes
    they are uploaded once more before they go."""
    offload_s: float = 10.0
    """Seconds between two rounds in which a server uploads what waits, longer while that fails; 0: it leaves that to
    `streamkv store offload`."""

    def __post_init__(self) -> None:
        check(
            [
                need(self.upkeep_s >= 0, "store.upkeep_s", self.upkeep_s, ">= 0"),
                need(self.offload_s >= 0, "store.offload_s", self.offload_s, ">= 0"),
                need(self.local_bytes >= 0, "store.local_bytes", self.local_bytes, ">= 0"),
                need(
                    not self.local_bytes or bool(self.remote),
                    "store.local_bytes",
                    self.local_bytes,
                    "0 without store.remote: files would have nowhere to go",
                ),
                need(
                    not self.remote_codec or bool(self.local_bytes),
                    "store.remote_codec",
                    self.remote_codec,
                    "nothing without store.local_bytes: no file leaves then",
                ),
            ]
        )
