"""What the catalog does to rows, within a session that its caller began."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

from sqlalchemy import ColumnElement, delete, func, select
from sqlalchemy.orm import Session

from streamkv.config import RetentionConfig
from streamkv.errors import FencedError, UnknownStreamError
from streamkv.store import migrations
from streamkv.store.layout import is_later_id
from streamkv.store.records import NEXT, Gap, ModelIdentity, SegmentPlace, StreamInfo, StreamRecord
from streamkv.store.tables import GapRow, SegmentRow, StoreRow, StreamRow
from streamkv.types import Geometry

_KNOWN_SHOWN = 8


@dataclass(frozen=True)
class StoredIdentity:
    """Which store a catalog is of."""

    store_id: str
    format_version: int
    model: ModelIdentity


@dataclass(frozen=True)
class RestoredStream:
    """A stream as its files tell it."""

    stream_id: str
    name: str
    places: tuple[SegmentPlace, ...]  # by segment number; at least one
    committed_at: tuple[float, ...]  # of each, seconds since 1970
    uploaded_at: tuple[float, ...]  # of each; 0.0: its file is not in the object store
    gaps: tuple[Gap, ...]
    detail: str


def identity_of(row: StoreRow) -> StoredIdentity:
    model = ModelIdentity(row.model_fingerprint, Geometry(**row.geometry), row.dtype)
    return StoredIdentity(row.store_id, row.format_version, model)


def store_row(session: Session, identity: StoredIdentity) -> StoreRow:
    """The store's row; made, and the tables too, when there is none."""
    migrations.upgrade(session.connection())
    row = session.scalars(select(StoreRow).with_for_update()).first()
    if row is None:
        row = StoreRow(
            store_id=identity.store_id,
            format_version=identity.format_version,
            model_fingerprint=identity.model.fingerprint,
            geometry=asdict(identity.model.geometry),
            dtype=identity.model.dtype,
            last_epoch=0,
        )
        session.add(row)
    return row


def restore_stream(session: Session, stream: RestoredStream, fingerprint: str) -> None:
    last = stream.places[-1]
    session.add(
        StreamRow(
            id=stream.stream_id,
            name=stream.name,
            uri="",
            state="stopped",
            detail=stream.detail,
            created_at=min(stream.committed_at),
            born_epoch=next_epoch(session),
            epoch=max(place.epoch for place in stream.places),
            config={},
            fingerprint=fingerprint,
            first_segment_no=stream.places[0].segment_no,
            next_segment_no=last.segment_no + 1,
            resume_s=last.resume_s,
        )
    )
    session.flush()  # rows that name the stream come after it
    times = zip(stream.places, stream.committed_at, stream.uploaded_at, strict=True)
    for place, committed_at, uploaded_at in times:
        session.add(SegmentRow(**asdict(place), committed_at=committed_at, uploaded_at=uploaded_at))
    for gap in stream.gaps:
        session.add(GapRow(stream_id=stream.stream_id, **asdict(gap)))


def next_epoch(session: Session) -> int:
    """One counter for all streams: an epoch of a removed stream never fits a later one of the same id."""
    store = session.scalars(select(StoreRow).with_for_update()).one()
    store.last_epoch += 1
    return store.last_epoch


def known(session: Session, stream_id: str) -> StreamRow:
    stream = session.get(StreamRow, stream_id)
    if stream is None:
        raise unknown(session, stream_id)
    return stream


def locked(session: Session, stream_id: str) -> StreamRow:
    """The stream's row, which no other transaction changes until this one ends."""
    stream = session.get(StreamRow, stream_id, with_for_update=True)
    if stream is None:
        raise unknown(session, stream_id)
    return stream


def check_writer(stream: StreamRow, epoch: int) -> None:
    if epoch != stream.epoch:
        raise FencedError(
            f"stream {stream.id!r}: epoch {epoch} may not commit, the writer is epoch {stream.epoch} now; "
            "stop this writer"
        )


def over_limit(session: Session, stream: StreamRow, num_bytes: int, limits: RetentionConfig) -> str:
    """Which limit so many bytes more would exceed; empty when none."""
    stored = select(func.coalesce(func.sum(SegmentRow.file_bytes), 0))
    if limits.stream_bytes:
        found = int(session.scalar(stored.where(SegmentRow.stream_id == stream.id)) or 0)
        if found + num_bytes > limits.stream_bytes:
            return _too_many(f"stream {stream.id!r}", found, num_bytes, "stream_bytes", limits.stream_bytes)
    if limits.tenant_bytes:
        of_tenant = stored.join(StreamRow, StreamRow.id == SegmentRow.stream_id)
        found = int(session.scalar(of_tenant.where(StreamRow.tenant == stream.tenant)) or 0)
        if found + num_bytes > limits.tenant_bytes:
            return _too_many(
                f"tenant {stream.tenant!r}", found, num_bytes, "tenant_bytes", limits.tenant_bytes
            )
    return ""


def _too_many(who: str, found: int, more: int, limit: str, allowed: int) -> str:
    return (
        f"{who} has {found:,} bytes and its next segment some {more:,}, allowed are {allowed:,} "
        f"(store.retention.{limit}); remove or release streams, or raise it"
    )


def widen_gap(session: Session, stream_id: str, start_s: float, end_s: float, reason: str) -> None:
    """Notes the gap up to `end_s`, in place of all that lie within it or that it continues."""
    earlier = session.scalars(
        select(GapRow).where(GapRow.stream_id == stream_id, GapRow.end_s <= end_s).order_by(GapRow.start_s)
    ).all()
    start_s = min([start_s, *(gap.start_s for gap in earlier)])
    session.execute(delete(GapRow).where(GapRow.stream_id == stream_id, GapRow.end_s <= end_s))
    session.add(GapRow(stream_id=stream_id, start_s=start_s, end_s=end_s, reason=reason))


def named(ref: str) -> ColumnElement[bool]:
    """The stream that is meant by a name, or by the id of a later generation."""
    return StreamRow.id == ref if is_later_id(ref) else StreamRow.name == ref


def by_name(session: Session, ref: str) -> StreamRow:
    """UnknownStreamError when there is no stream of that name, or of that later id."""
    return session.scalars(select(StreamRow).where(named(ref))).first() or fail_unknown(session, ref)


def fail_unknown(session: Session, ref: str) -> NoReturn:
    raise unknown(session, ref)


def unknown(session: Session, stream_id: str) -> UnknownStreamError:
    asked = ~StreamRow.name.endswith(NEXT, autoescape=True)
    query = select(StreamRow.name).where(asked).order_by(StreamRow.name).limit(_KNOWN_SHOWN + 1)
    ids = session.scalars(query).all()
    known = ", ".join(ids[:_KNOWN_SHOWN]) + (" ..." if len(ids) > _KNOWN_SHOWN else "")
    return UnknownStreamError(f"stream {stream_id!r}: unknown; known: {known or 'none yet'}")


def records(session: Session, *which: ColumnElement[bool]) -> list[StreamRecord]:
    """Of streams, by id. Two queries, however many they are."""
    return [StreamRecord(**fields) for fields in _fields(session, which)]


def infos(session: Session, *which: ColumnElement[bool]) -> list[StreamInfo]:
    """As `records`, with what is summed up over each stream's segments. Three queries."""
    sums = (
        select(
            SegmentRow.stream_id,
            func.count(),
            func.sum(SegmentRow.num_frames),
            func.sum(SegmentRow.num_source_frames),
            func.sum(SegmentRow.kv_bytes),
            func.sum(SegmentRow.file_bytes),
            func.max(SegmentRow.end_s),
        )
        .where(SegmentRow.stream_id.in_(select(StreamRow.id).where(*which)))
        .group_by(SegmentRow.stream_id)
    )
    nothing: list[Any] = [0, 0, 0, 0, 0, 0.0]
    found = {stream_id: rest for stream_id, *rest in session.execute(sums)}
    made = []
    for fields in _fields(session, which):
        count, frames, source_frames, kv_bytes, file_bytes, as_of_s = found.get(fields["stream_id"], nothing)
        made.append(
            StreamInfo(
                **fields,
                num_segments=count,
                num_frames=int(frames),  # PostgreSQL sums BIGINT to NUMERIC
                num_source_frames=int(source_frames),
                kv_bytes=int(kv_bytes),
                file_bytes=int(file_bytes),
                as_of_s=as_of_s,
            )
        )
    return made


def _fields(session: Session, which: Sequence[ColumnElement[bool]]) -> list[dict[str, Any]]:
    """Of `StreamRecord`s, by id."""
    gaps: dict[str, list[Gap]] = defaultdict(list)
    of_them = select(GapRow).where(GapRow.stream_id.in_(select(StreamRow.id).where(*which)))
    for row in session.scalars(of_them.order_by(GapRow.start_s, GapRow.end_s)):
        gaps[row.stream_id].append(Gap(row.start_s, row.end_s, row.reason))
    return [
        {
            "stream_id": stream.id,
            "name": stream.name,
            "uri": stream.uri,
            "state": stream.state,
            "detail": stream.detail,
            "created_at": stream.created_at,
            "epoch": stream.epoch,
            "resume_s": stream.resume_s,
            "next_segment_no": stream.next_segment_no,
            "gaps": tuple(gaps[stream.id]),
            "config": stream.config,
            "tenant": stream.tenant,
            "legal_hold": stream.legal_hold,
        }
        for stream in session.scalars(select(StreamRow).where(*which).order_by(StreamRow.id))
    ]
