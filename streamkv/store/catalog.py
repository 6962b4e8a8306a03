"""The catalog: which streams there are, and which segments count. The only module that speaks SQL.

SQLite by default, any SQLAlchemy URL otherwise. Each public method is one transaction; one that writes takes
its lock before it reads, so that two processes never decide on the same state.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from typing import Any, cast

from sqlalchemy import URL, delete, func, inspect, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from streamkv.errors import (
    FencedError,
    ForeignStoreError,
    StoreError,
    StreamExistsError,
    UnknownStreamError,
)
from streamkv.store import migrations
from streamkv.store.database import WRITES, hide_password, make_engine
from streamkv.store.records import Gap, ModelIdentity, SegmentPlace, StreamInfo, StreamState
from streamkv.store.tables import GapRow, RemovedRow, SegmentRow, StoreRow, StreamRow
from streamkv.types import Geometry

_KNOWN_SHOWN = 8

_PLACE = tuple(getattr(SegmentRow, f.name) for f in fields(SegmentPlace))


@dataclass(frozen=True)
class StoredIdentity:
    """Which store a catalog is of."""

    store_id: str
    format_version: int
    model: ModelIdentity


@dataclass(frozen=True)
class Progress:
    """What a reader compares to learn that there is something new."""

    born_epoch: int  # another one: the stream was removed and added again
    next_segment_no: int


@dataclass(frozen=True)
class Held:
    """A stream that nobody else changes for now."""

    stream_id: str
    epoch: int  # of its writer
    next_segment_no: int
    _session: Session

    def paths(self) -> set[str]:
        """Files that its rows name."""
        query = select(SegmentRow.path).where(SegmentRow.stream_id == self.stream_id)
        return set(self._session.scalars(query))


@dataclass(frozen=True)
class RestoredStream:
    """A stream as its files tell it."""

    stream_id: str
    places: tuple[SegmentPlace, ...]  # by segment number; at least one
    committed_at: tuple[float, ...]  # of each, seconds since 1970
    gaps: tuple[Gap, ...]
    detail: str


_EPOCHS_AHEAD = 1_000
"""Epochs that are passed over in a restored catalog: some may have been taken by writers that left no file."""


class Catalog:
    """The catalog of one store. Threads may share one; each process opens its own."""

    def __init__(self, url: str | URL, *, read_only: bool = False) -> None:
        """Connects when first used; nothing is created before `create`."""
        self.name = hide_password(url)
        self._engine = make_engine(url, read_only=read_only)

    def close(self) -> None:
        self._engine.dispose()

    # ---- the store

    def identity(self) -> StoredIdentity | None:
        """None when the catalog is new."""
        with self._reading() as session:
            if not inspect(session.connection()).has_table(StoreRow.__tablename__):
                return None
            row = session.scalars(select(StoreRow)).first()
            return _identity_of(row) if row else None

    def create(self, identity: StoredIdentity) -> StoredIdentity:
        """Makes the tables and the store's row; returns the row of whoever came first when several try."""
        with self._writing() as session:
            return _identity_of(_store_row(session, identity))

    def restore(self, identity: StoredIdentity, streams: Sequence[RestoredStream]) -> None:
        """Makes a catalog with these streams and segments, in one transaction; StoreError when it has streams."""
        with self._writing() as session:
            store = _store_row(session, identity)
            if session.scalars(select(StreamRow)).first():
                raise StoreError(f"catalog {self.name}: has streams already; nothing was restored")
            last = max((place.epoch for stream in streams for place in stream.places), default=0)
            store.last_epoch = max(store.last_epoch, last) + _EPOCHS_AHEAD
            for stream in streams:
                _restore_stream(session, stream, identity.model.fingerprint)

    def bring_up_to_date(self, *, read_only: bool) -> None:
        """Migrates an earlier release's tables; ForeignStoreError for a later one's, and when only reading."""
        with self._reading() as session:
            found = migrations.revision(session.connection())
        if found == migrations.HEAD:
            return
        if found > migrations.HEAD:
            raise ForeignStoreError(
                f"catalog {self.name}: its tables are of revision {found}, this program's of "
                f"{migrations.HEAD}; use the release that wrote it"
            )
        if read_only:
            raise ForeignStoreError(
                f"catalog {self.name}: its tables are of revision {found}, this program reads "
                f"{migrations.HEAD}; open the store once for writing, as `streamkv up` does"
            )
        with self._writing() as session:
            migrations.upgrade(session.connection())

    def upgrade(self, format_version: int) -> None:
        """Tables of earlier versions are the same; only what may stand in files differs."""
        with self._writing() as session:
            session.scalars(select(StoreRow).with_for_update()).one().format_version = format_version

    # ---- streams

    def add_stream(self, stream_id: str, uri: str, config: Mapping[str, Any], fingerprint: str) -> None:
        """StreamExistsError when the id is taken."""
        with self._writing() as session:
            if session.get(StreamRow, stream_id):
                raise StreamExistsError(
                    f"stream {stream_id!r} exists already; choose another id, or remove it first"
                )
            session.execute(delete(RemovedRow).where(RemovedRow.stream_id == stream_id))
            session.add(
                StreamRow(
                    id=stream_id,
                    uri=uri,
                    created_at=time.time(),
                    born_epoch=_next_epoch(session),
                    config=dict(config),
                    fingerprint=fingerprint,
                )
            )

    def remove_stream(self, stream_id: str) -> int:
        """Takes the stream's rows away and notes that its files, up to the epoch returned, are to go."""
        with self._writing() as session:
            stream = _locked(session, stream_id)
            for table in (SegmentRow, GapRow):
                session.execute(delete(table).where(table.stream_id == stream_id))
            session.delete(stream)
            return session.merge(RemovedRow(stream_id=stream_id, epoch=_next_epoch(session))).epoch

    def removed(self) -> dict[str, int]:
        """Removed streams, and the epoch up to which files in their folders are theirs."""
        with self._reading() as session:
            return {row.stream_id: row.epoch for row in session.scalars(select(RemovedRow))}

    def streams(self, stream_id: str | None = None) -> list[StreamInfo]:
        """All streams by id, or the one named; UnknownStreamError when that one is not there."""
        with self._reading() as session:
            if stream_id is not None:
                return [_info(session, _known(session, stream_id))]
            return [_info(session, row) for row in session.scalars(select(StreamRow).order_by(StreamRow.id))]

    def set_state(self, stream_id: str, state: StreamState, detail: str) -> None:
        with self._writing() as session:
            stream = _locked(session, stream_id)
            stream.state, stream.detail = state, detail

    def add_gap(self, stream_id: str, gap: Gap) -> None:
        """The same span again changes nothing."""
        with self._writing() as session:
            _locked(session, stream_id)
            if not session.get(GapRow, (stream_id, gap.start_s, gap.end_s)):
                session.add(GapRow(stream_id=stream_id, **asdict(gap)))

    # ---- writers

    def take_epoch(self, stream_id: str) -> int:
        """Makes the caller the stream's writer; whoever wrote before can commit no more."""
        with self._writing() as session:
            stream = _locked(session, stream_id)
            stream.epoch = _next_epoch(session)
            return stream.epoch

    def check_writer(self, stream_id: str, epoch: int) -> None:
        """FencedError unless the epoch is that of the stream's writer."""
        with self._reading() as session:
            _check_writer(_known(session, stream_id), epoch)

    def commit(self, place: SegmentPlace) -> bool:
        """Adds the segment's row; False when it is there already. FencedError when the epoch is stale."""
        with self._writing() as session:
            stream = _locked(session, place.stream_id)
            _check_writer(stream, place.epoch)
            if place.segment_no < stream.next_segment_no:
                return False
            if place.segment_no > stream.next_segment_no:
                raise StoreError(
                    f"stream {place.stream_id!r}: got segment {place.segment_no}, the next is "
                    f"{stream.next_segment_no}; commit segments in order"
                )
            session.add(SegmentRow(**asdict(place), committed_at=time.time()))
            stream.next_segment_no += 1
            stream.resume_s = place.resume_s
            return True

    def switch(self, old: SegmentPlace, new: SegmentPlace, publish: Callable[[], object]) -> bool:
        """Has a segment's row name another file of it; False when it does not name the old one any more.

        `publish` gives the new file its name, within the transaction: whoever holds the stream sees a new name
        only together with its row.
        """
        with self._writing() as session:
            _locked(session, old.stream_id)
            row = session.get(SegmentRow, (old.stream_id, old.segment_no))
            if row is None or row.path != old.path:
                return False
            publish()
            row.path, row.checksum, row.file_bytes = new.path, new.checksum, new.file_bytes
            row.codec = new.codec
            return True

    @contextmanager
    def holding(self, stream_id: str) -> Iterator[Held]:
        """While it lasts nobody commits to the stream, takes it over or switches its files."""
        with self._writing() as session:
            stream = _locked(session, stream_id)
            yield Held(stream_id, stream.epoch, stream.next_segment_no, session)

    def lose(self, place: SegmentPlace, reason: str) -> bool:
        """Takes away the row of a segment whose file is lost, and notes the gap; False when it has changed."""
        with self._writing() as session:
            _locked(session, place.stream_id)
            row = session.get(SegmentRow, (place.stream_id, place.segment_no))
            if row is None or row.path != place.path:
                return False
            session.delete(row)
            session.merge(
                GapRow(stream_id=place.stream_id, start_s=row.start_s, end_s=row.end_s, reason=reason)
            )
            return True

    # ---- readers

    def progress(self, stream_id: str) -> Progress:
        """One small query. UnknownStreamError when there is no such stream."""
        with self._reading() as session:
            columns = (StreamRow.born_epoch, StreamRow.next_segment_no)
            row = session.execute(select(*columns).where(StreamRow.id == stream_id)).first()
            if row is None:
                raise _unknown(session, stream_id)
            return Progress(*row)

    def segments_between(self, stream_id: str, start: int, end: Progress) -> list[SegmentPlace]:
        """The stream's segments from `start` up to `end`, in order; none when it was removed meanwhile."""
        query = (
            select(*_PLACE)
            .join(StreamRow, StreamRow.id == SegmentRow.stream_id)
            .where(SegmentRow.stream_id == stream_id, StreamRow.born_epoch == end.born_epoch)
            .where(SegmentRow.segment_no >= start, SegmentRow.segment_no < end.next_segment_no)
            .order_by(SegmentRow.segment_no)
        )
        with self._reading() as session:
            return [SegmentPlace(*row) for row in session.execute(query)]

    def segment(self, stream_id: str, segment_no: int) -> SegmentPlace | None:
        """As its row is now."""
        query = select(*_PLACE).where(SegmentRow.stream_id == stream_id, SegmentRow.segment_no == segment_no)
        with self._reading() as session:
            row = session.execute(query).first()
            return SegmentPlace(*row) if row else None

    def committed_before(self, stream_id: str, seconds: float) -> list[tuple[SegmentPlace, float]]:
        """Segments committed before a time, seconds since 1970, each with its own; in order."""
        query = (
            select(*_PLACE, SegmentRow.committed_at)
            .where(SegmentRow.stream_id == stream_id, SegmentRow.committed_at <= seconds)
            .order_by(SegmentRow.segment_no)
        )
        with self._reading() as session:
            _known(session, stream_id)
            return [(SegmentPlace(*row[:-1]), row[-1]) for row in session.execute(query)]

    def all_segments(self, stream_id: str | None = None) -> list[SegmentPlace]:
        """Of all streams, or of the one named; in order."""
        query = select(*_PLACE).order_by(SegmentRow.stream_id, SegmentRow.segment_no)
        if stream_id is not None:
            query = query.where(SegmentRow.stream_id == stream_id)
        with self._reading() as session:
            return [SegmentPlace(*row) for row in session.execute(query)]

    # ---- transactions

    @contextmanager
    def _reading(self) -> Iterator[Session]:
        with self._translated(), Session(self._engine) as session:
            yield session

    @contextmanager
    def _writing(self) -> Iterator[Session]:
        engine = self._engine.execution_options(**{WRITES: True})
        with self._translated(), Session(engine) as session, session.begin():
            yield session

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except SQLAlchemyError as exc:
            cause = getattr(exc, "orig", None) or exc
            raise StoreError(f"catalog {self.name}: {cause}") from exc


# ---------------------------------------------------------------- rows


def _identity_of(row: StoreRow) -> StoredIdentity:
    model = ModelIdentity(row.model_fingerprint, Geometry(**row.geometry), row.dtype)
    return StoredIdentity(row.store_id, row.format_version, model)


def _store_row(session: Session, identity: StoredIdentity) -> StoreRow:
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


def _restore_stream(session: Session, stream: RestoredStream, fingerprint: str) -> None:
    last = stream.places[-1]
    session.add(
        StreamRow(
            id=stream.stream_id,
            uri="",
            state="stopped",
            detail=stream.detail,
            created_at=min(stream.committed_at),
            born_epoch=_next_epoch(session),
            epoch=max(place.epoch for place in stream.places),
            config={},
            fingerprint=fingerprint,
            next_segment_no=last.segment_no + 1,
            resume_s=last.resume_s,
        )
    )
    session.flush()  # rows that name the stream come after it
    for place, committed_at in zip(stream.places, stream.committed_at, strict=True):
        session.add(SegmentRow(**asdict(place), committed_at=committed_at))
    for gap in stream.gaps:
        session.add(GapRow(stream_id=stream.stream_id, **asdict(gap)))


def _next_epoch(session: Session) -> int:
    """One counter for all streams: an epoch of a removed stream never fits a later one of the same id."""
    store = session.scalars(select(StoreRow).with_for_update()).one()
    store.last_epoch += 1
    return store.last_epoch


def _known(session: Session, stream_id: str) -> StreamRow:
    stream = session.get(StreamRow, stream_id)
    if stream is None:
        raise _unknown(session, stream_id)
    return stream


def _locked(session: Session, stream_id: str) -> StreamRow:
    """The stream's row, which no other transaction changes until this one ends."""
    stream = session.get(StreamRow, stream_id, with_for_update=True)
    if stream is None:
        raise _unknown(session, stream_id)
    return stream


def _check_writer(stream: StreamRow, epoch: int) -> None:
    if epoch != stream.epoch:
        raise FencedError(
            f"stream {stream.id!r}: epoch {epoch} may not commit, the writer is epoch {stream.epoch} now; "
            "stop this writer"
        )


def _unknown(session: Session, stream_id: str) -> UnknownStreamError:
    query = select(StreamRow.id).order_by(StreamRow.id).limit(_KNOWN_SHOWN + 1)
    ids = session.scalars(query).all()
    known = ", ".join(ids[:_KNOWN_SHOWN]) + (" ..." if len(ids) > _KNOWN_SHOWN else "")
    return UnknownStreamError(f"stream {stream_id!r}: unknown; known: {known or 'none yet'}")


def _info(session: Session, stream: StreamRow) -> StreamInfo:
    sums = select(
        func.count(),
        func.coalesce(func.sum(SegmentRow.num_frames), 0),
        func.coalesce(func.sum(SegmentRow.num_source_frames), 0),
        func.coalesce(func.sum(SegmentRow.kv_bytes), 0),
        func.coalesce(func.sum(SegmentRow.file_bytes), 0),
        func.coalesce(func.max(SegmentRow.end_s), 0.0),
    ).where(SegmentRow.stream_id == stream.id)
    count, frames, source_frames, kv_bytes, file_bytes, as_of_s = session.execute(sums).one()
    gaps = session.scalars(
        select(GapRow).where(GapRow.stream_id == stream.id).order_by(GapRow.start_s, GapRow.end_s)
    )
    return StreamInfo(
        stream_id=stream.id,
        uri=stream.uri,
        state=cast(StreamState, stream.state),
        detail=stream.detail,
        created_at=stream.created_at,
        epoch=stream.epoch,
        num_segments=count,
        num_frames=int(frames),  # PostgreSQL sums BIGINT to NUMERIC
        num_source_frames=int(source_frames),
        kv_bytes=int(kv_bytes),
        file_bytes=int(file_bytes),
        as_of_s=as_of_s,
        resume_s=stream.resume_s,
        next_segment_no=stream.next_segment_no,
        gaps=tuple(Gap(row.start_s, row.end_s, row.reason) for row in gaps),
        config=stream.config,
    )
