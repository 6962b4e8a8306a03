"""The catalog's tables, for `catalog.py` alone: nothing else sees a row. docs/format.md describes them.

Another column is also another step of `migrations/`, which is what makes the tables.
"""

from __future__ import annotations

from typing import Any, ClassVar

from sqlalchemy import JSON, BigInteger, Double, ForeignKey, Index, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    type_annotation_map: ClassVar[dict[Any, Any]] = {dict[str, Any]: JSON, int: BigInteger, float: Double}


class StoreRow(Base):
    """One row: what the store is, and the last epoch that any writer got."""

    __tablename__ = "store"

    store_id: Mapped[str] = mapped_column(primary_key=True)
    format_version: Mapped[int]
    model_fingerprint: Mapped[str]
    geometry: Mapped[dict[str, Any]]
    dtype: Mapped[str]
    last_epoch: Mapped[int] = mapped_column(default=0)


class StreamRow(Base):
    __tablename__ = "streams"
    __table_args__ = (Index("streams_by_name", "name", unique=True),)

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(default="", server_default="")  # what it is asked by; see `generations`
    uri: Mapped[str]
    state: Mapped[str] = mapped_column(default="registered")
    detail: Mapped[str] = mapped_column(default="")
    created_at: Mapped[float]
    born_epoch: Mapped[int]  # tells the stream from an earlier one of the same id
    epoch: Mapped[int] = mapped_column(default=0)
    config: Mapped[dict[str, Any]]
    fingerprint: Mapped[str]
    tenant: Mapped[str] = mapped_column(default="", server_default="")
    legal_hold: Mapped[str] = mapped_column(default="", server_default="")  # the reason; empty: none
    # Where retention and the writer stand. Not derived from the segments: there may be none left.
    first_segment_no: Mapped[int] = mapped_column(default=0, server_default="0")
    next_segment_no: Mapped[int] = mapped_column(default=0)
    resume_s: Mapped[float] = mapped_column(default=0.0)
    num_exchanged: Mapped[int] = mapped_column(default=0, server_default="0")  # files, ever


class SegmentRow(Base):
    """A `SegmentPlace`, field by field, and when it was committed and came into the object store."""

    __tablename__ = "segments"
    __table_args__ = (
        Index(  # what waits for its upload is found without reading all that does not
            "segments_waiting",
            "committed_at",
            sqlite_where=text("uploaded_at = 0"),
            postgresql_where=text("uploaded_at = 0"),
        ),
        Index(  # and what has another file than a reader knows of
            "segments_exchanged",
            "stream_id",
            "exchange_no",
            sqlite_where=text("exchange_no > 0"),
            postgresql_where=text("exchange_no > 0"),
        ),
    )

    stream_id: Mapped[str] = mapped_column(ForeignKey("streams.id"), primary_key=True)
    segment_no: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    epoch: Mapped[int]
    path: Mapped[str]
    start_s: Mapped[float]
    end_s: Mapped[float]
    num_frames: Mapped[int]
    num_source_frames: Mapped[int]
    resume_s: Mapped[float]
    kv_bytes: Mapped[int]
    file_bytes: Mapped[int]
    checksum: Mapped[str]
    codec: Mapped[str] = mapped_column(server_default="raw")
    committed_at: Mapped[float] = mapped_column(server_default="0")  # seconds since 1970
    uploaded_at: Mapped[float] = mapped_column(
        default=0.0, server_default="0"
    )  # the same; 0: it is not there
    exchange_no: Mapped[int] = mapped_column(
        default=0, server_default="0"
    )  # which of the stream's exchanges gave it its file; 0: it has its first


class GapRow(Base):
    __tablename__ = "gaps"

    stream_id: Mapped[str] = mapped_column(ForeignKey("streams.id"), primary_key=True)
    start_s: Mapped[float] = mapped_column(primary_key=True)
    end_s: Mapped[float] = mapped_column(primary_key=True)
    reason: Mapped[str]


class RemovedRow(Base):
    """A stream that was removed: files that its writers left, up to this epoch, are to go."""

    __tablename__ = "removed_streams"

    stream_id: Mapped[str] = mapped_column(primary_key=True)
    epoch: Mapped[int]


class RemovedObjectRow(Base):
    """An object that no segment needs any more, and that is to go from the object store."""

    __tablename__ = "removed_objects"

    path: Mapped[str] = mapped_column(primary_key=True)


class WatchRow(Base):
    """A `Watch`, field by field, its last answer, and the last segment that it was asked of."""

    __tablename__ = "watches"
    __table_args__ = (Index("watches_of_stream", "stream_id"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    stream_id: Mapped[str] = mapped_column(ForeignKey("streams.id"))
    question: Mapped[str]
    min_confidence: Mapped[float]
    when_gone: Mapped[bool]
    url: Mapped[str]
    secret: Mapped[str]
    created_at: Mapped[float]  # seconds since 1970
    answer: Mapped[str] = mapped_column(default="")  # empty: not shown
    segment_no: Mapped[int] = mapped_column(default=-1)  # -1: of none yet


class WatchEventRow(Base):
    """A `WatchEvent`, and how far it is on its way to the webhook."""

    __tablename__ = "watch_events"
    __table_args__ = (
        Index(  # a watch's next one is found without reading all that were delivered
            "watch_events_waiting",
            "watch_id",
            "segment_no",
            sqlite_where=text("delivery = 'waiting'"),
            postgresql_where=text("delivery = 'waiting'"),
        ),
    )

    watch_id: Mapped[str] = mapped_column(ForeignKey("watches.id"), primary_key=True)
    segment_no: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    start_s: Mapped[float]
    end_s: Mapped[float]
    answer: Mapped[str]
    previous: Mapped[str]
    confidence: Mapped[float | None]
    evidence: Mapped[list[dict[str, Any]]] = mapped_column(JSON)  # heaviest first
    fired_at: Mapped[float]  # seconds since 1970
    delivery: Mapped[str]  # none, waiting, delivered, failed
    tries: Mapped[int] = mapped_column(default=0)
    next_try_at: Mapped[float] = mapped_column(default=0.0)  # seconds since 1970
    detail: Mapped[str] = mapped_column(default="")  # why the last try failed
