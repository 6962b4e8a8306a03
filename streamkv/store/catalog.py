"""The catalog: which streams there are, and which segments count. The only module that speaks SQL.

SQLite by default, any SQLAlchemy URL otherwise. Each public method is one transaction; one that writes takes
its lock before it reads, so that two processes never decide on the same state.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import URL, ColumnElement, delete, func, inspect, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from streamkv.config import RetentionConfig
from streamkv.errors import ForeignStoreError, StoreError, StoreFullError, StreamExistsError
from streamkv.store import migrations, rows
from streamkv.store.adoption import Adoption
from streamkv.store.database import WRITES, hide_password, is_full, make_engine
from streamkv.store.generations import Generations, Removed, next_of, take_away
from streamkv.store.object_rows import PLACE, ObjectRows, note_removed
from streamkv.store.records import (
    RETENTION,
    Front,
    Gap,
    SegmentPlace,
    StreamInfo,
    StreamRecord,
    StreamState,
    check_not_held,
)
from streamkv.store.rows import RestoredStream, StoredIdentity
from streamkv.store.tables import GapRow, RemovedRow, SegmentRow, StoreRow, StreamRow
from streamkv.store.watch_rows import WatchRows, forget_events, note_answers
from streamkv.watches import WatchAnswer


@dataclass(frozen=True)
class Progress:
    """What a reader compares to learn that there is something new."""

    born_epoch: int  # another one: the stream was removed and added again
    next_segment_no: int
    first_segment_no: int = 0  # larger than before: retention took some away
    stream_id: str = ""  # of the stream that has the name now
    num_exchanged: int = 0  # more than before: segments have other files, which `exchanged` tells


@dataclass(frozen=True)
class Stored:
    """A segment as retention sees it."""

    stream_id: str
    segment_no: int
    file_bytes: int


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


def _key(place: SegmentPlace) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return SegmentRow.stream_id == place.stream_id, SegmentRow.segment_no == place.segment_no


_EPOCHS_AHEAD = 1_000
"""Epochs that are passed over in a restored catalog: some may have been taken by writers that left no file."""


class Catalog:
    """The catalog of one store. Threads may share one; each process opens its own."""

    def __init__(self, url: str | URL, *, read_only: bool = False) -> None:
        """Connects when first used; nothing is created before `create`."""
        self.name = hide_password(url)
        self._engine = make_engine(url, read_only=read_only)
        self.objects = ObjectRows(self._reading, self._writing)
        self.watches = WatchRows(self._reading, self._writing)
        self.generations = Generations(self._reading, self._writing)
        self.adoption = Adoption(self._reading, self._writing)

    def close(self) -> None:
        self._engine.dispose()

    # ---- the store

    def identity(self) -> StoredIdentity | None:
        """None when the catalog is new."""
        with self._reading() as session:
            if not inspect(session.connection()).has_table(StoreRow.__tablename__):
                return None
            row = session.scalars(select(StoreRow)).first()
            return rows.identity_of(row) if row else None

    def create(self, identity: StoredIdentity) -> StoredIdentity:
        """Makes the tables and the store's row; returns the row of whoever came first when several try."""
        with self._writing() as session:
            return rows.identity_of(rows.store_row(session, identity))

    def restore(self, identity: StoredIdentity, streams: Sequence[RestoredStream]) -> None:
        """Makes a catalog with these streams and segments, in one transaction; StoreError when it has streams."""
        with self._writing() as session:
            store = rows.store_row(session, identity)
            if session.scalars(select(StreamRow)).first():
                raise StoreError(f"catalog {self.name}: has streams already; nothing was restored")
            last = max((place.epoch for stream in streams for place in stream.places), default=0)
            store.last_epoch = max(store.last_epoch, last) + _EPOCHS_AHEAD
            for stream in streams:
                rows.restore_stream(session, stream, identity.model.fingerprint)

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

    def add_stream(
        self, stream_id: str, uri: str, config: Mapping[str, Any], fingerprint: str, tenant: str
    ) -> None:
        """StreamExistsError when the id is taken."""
        with self._writing() as session:
            # First, since it locks: of two at once the later then sees the row of the earlier.
            born_epoch = rows.next_epoch(session)
            is_taken = (StreamRow.name == stream_id) | (StreamRow.id == stream_id)
            if session.scalars(select(StreamRow.id).where(is_taken)).first():
                raise StreamExistsError(
                    f"stream {stream_id!r} exists already; choose another id, or remove it first"
                )
            session.execute(delete(RemovedRow).where(RemovedRow.stream_id == stream_id))
            session.add(
                StreamRow(
                    id=stream_id,
                    name=stream_id,
                    uri=uri,
                    created_at=time.time(),
                    born_epoch=born_epoch,
                    config=dict(config),
                    fingerprint=fingerprint,
                    tenant=tenant,
                )
            )

    def remove_stream(self, stream_id: str) -> list[Removed]:
        """Takes away the rows of a stream and of its next generation, and notes that their files are to go.

        LegalHoldError when it is held.
        """
        with self._writing() as session:
            stream = rows.locked(session, stream_id)
            check_not_held(stream.name, stream.legal_hold)
            coming = next_of(session, stream)
            epoch = rows.next_epoch(session)
            return [take_away(session, each, epoch) for each in (coming, stream) if each is not None]

    def removed(self) -> dict[str, int]:
        """Removed streams, and the epoch up to which files in their folders are theirs."""
        with self._reading() as session:
            return {row.stream_id: row.epoch for row in session.scalars(select(RemovedRow))}

    def streams(self, name: str | None = None) -> list[StreamInfo]:
        """All streams by id, or the one of that name; UnknownStreamError when that one is not there."""
        with self._reading() as session:
            if name is None:
                return rows.infos(session)
            return rows.infos(session, rows.named(name)) or rows.fail_unknown(session, name)

    def record(self, name: str) -> StreamRecord:
        """UnknownStreamError when it is not there."""
        with self._reading() as session:
            return (rows.records(session, rows.named(name)) or rows.fail_unknown(session, name))[0]

    def records(self) -> list[StreamRecord]:
        """All streams, by id."""
        with self._reading() as session:
            return rows.records(session)

    def set_state(self, stream_id: str, state: StreamState, detail: str) -> None:
        with self._writing() as session:
            stream = rows.locked(session, stream_id)
            stream.state, stream.detail = state, detail

    def set_hold(self, stream_id: str, reason: str) -> None:
        """Empty: the stream is released."""
        with self._writing() as session:
            rows.locked(session, stream_id).legal_hold = reason

    def add_gap(self, stream_id: str, gap: Gap) -> None:
        """The same span again changes nothing."""
        with self._writing() as session:
            rows.locked(session, stream_id)
            if not session.get(GapRow, (stream_id, gap.start_s, gap.end_s)):
                session.add(GapRow(stream_id=stream_id, **asdict(gap)))

    # ---- writers

    def take_epoch(self, stream_id: str) -> int:
        """Makes the caller the stream's writer; whoever wrote before can commit no more."""
        with self._writing() as session:
            stream = rows.locked(session, stream_id)
            stream.epoch = rows.next_epoch(session)
            return stream.epoch

    def check_writer(self, stream_id: str, epoch: int) -> None:
        """FencedError unless the epoch is that of the stream's writer."""
        with self._reading() as session:
            rows.check_writer(rows.known(session, stream_id), epoch)

    def commit(
        self, place: SegmentPlace, limits: RetentionConfig, answers: Sequence[WatchAnswer] = ()
    ) -> bool:
        """Adds the segment's row, and has its stream's watches hear what it answers; False when it is there already.

        FencedError when the epoch is stale, StoreFullError when the stream or its tenant would have too many bytes.
        """
        with self._writing() as session:
            stream = rows.locked(session, place.stream_id)
            rows.check_writer(stream, place.epoch)
            if place.segment_no < stream.next_segment_no:
                return False
            if place.segment_no > stream.next_segment_no:
                raise StoreError(
                    f"stream {place.stream_id!r}: got segment {place.segment_no}, the next is "
                    f"{stream.next_segment_no}; commit segments in order"
                )
            if problem := rows.over_limit(session, stream, place.file_bytes, limits):
                raise StoreFullError(problem)
            session.add(SegmentRow(**asdict(place), committed_at=time.time()))
            stream.next_segment_no += 1
            stream.resume_s = place.resume_s
            note_answers(session, place, answers)
            return True

    def switch(self, old: SegmentPlace, new: SegmentPlace, publish: Callable[[], object]) -> bool:
        """Has a segment's row name another file of it; False when it does not name the old one any more, or is held.

        `publish` gives the new file its name, within the transaction: whoever holds the stream sees a new name
        only together with its row.
        """
        with self._writing() as session:
            stream = rows.locked(session, old.stream_id)
            row = session.get(SegmentRow, (old.stream_id, old.segment_no))
            if row is None or row.path != old.path or stream.legal_hold:
                return False
            publish()
            note_removed(session, *_key(old))
            row.uploaded_at = 0.0
            row.path, row.checksum, row.file_bytes = new.path, new.checksum, new.file_bytes
            row.codec, row.kv_bytes = new.codec, new.kv_bytes
            stream.num_exchanged += 1
            row.exchange_no = stream.num_exchanged
            return True

    @contextmanager
    def holding(self, stream_id: str) -> Iterator[Held]:
        """While it lasts nobody commits to the stream, takes it over or switches its files."""
        with self._writing() as session:
            stream = rows.locked(session, stream_id)
            yield Held(stream_id, stream.epoch, stream.next_segment_no, session)

    def lose(self, place: SegmentPlace, reason: str) -> bool:
        """Takes away the row of a segment whose file is lost, and notes the gap; False when it has changed."""
        with self._writing() as session:
            rows.locked(session, place.stream_id)
            row = session.get(SegmentRow, (place.stream_id, place.segment_no))
            if row is None or row.path != place.path:
                return False
            note_removed(session, *_key(place))
            session.delete(row)
            session.merge(
                GapRow(stream_id=place.stream_id, start_s=row.start_s, end_s=row.end_s, reason=reason)
            )
            return True

    # ---- readers

    def progress(self, name: str) -> Progress:
        """Of the stream that has the name now. One small query. UnknownStreamError when there is none."""
        with self._reading() as session:
            columns = (
                StreamRow.born_epoch,
                StreamRow.next_segment_no,
                StreamRow.first_segment_no,
                StreamRow.id,
                StreamRow.num_exchanged,
            )
            row = session.execute(select(*columns).where(rows.named(name))).first()
            if row is None:
                raise rows.unknown(session, name)
            return Progress(*row)

    def segments_between(self, start: int, end: Progress) -> list[SegmentPlace]:
        """The stream's segments from `start` up to `end`, in order; none when it was removed meanwhile."""
        return self._places(end, SegmentRow.segment_no >= start, SegmentRow.segment_no < end.next_segment_no)

    def exchanged(self, since: Progress, end: Progress) -> list[SegmentPlace]:
        """The stream's segments that have come to have another file since then, in order."""
        return self._places(
            end, SegmentRow.exchange_no > since.num_exchanged, SegmentRow.segment_no < since.next_segment_no
        )

    def _places(self, of: Progress, *which: ColumnElement[bool]) -> list[SegmentPlace]:
        query = (
            select(*PLACE)
            .join(StreamRow, StreamRow.id == SegmentRow.stream_id)
            .where(SegmentRow.stream_id == of.stream_id, StreamRow.born_epoch == of.born_epoch, *which)
            .order_by(SegmentRow.segment_no)
        )
        with self._reading() as session:
            return [SegmentPlace(*row) for row in session.execute(query)]

    def segments_from(self, stream_id: str, start: int, limit: int) -> list[SegmentPlace]:
        """Up to `limit` of the stream's segments from number `start` on, in order."""
        query = (
            select(*PLACE)
            .where(SegmentRow.stream_id == stream_id, SegmentRow.segment_no >= start)
            .order_by(SegmentRow.segment_no)
            .limit(limit)
        )
        with self._reading() as session:
            rows.known(session, stream_id)
            return [SegmentPlace(*row) for row in session.execute(query)]

    def segment(self, stream_id: str, segment_no: int) -> SegmentPlace | None:
        """As its row is now."""
        query = select(*PLACE).where(SegmentRow.stream_id == stream_id, SegmentRow.segment_no == segment_no)
        with self._reading() as session:
            row = session.execute(query).first()
            return SegmentPlace(*row) if row else None

    def committed_before(self, stream_id: str, seconds: float) -> list[tuple[SegmentPlace, float]]:
        """Segments committed before a time, seconds since 1970, each with its own; in order. Of a held stream none."""
        query = (
            select(*PLACE, SegmentRow.committed_at)
            .where(SegmentRow.stream_id == stream_id, SegmentRow.committed_at <= seconds)
            .order_by(SegmentRow.segment_no)
        )
        with self._reading() as session:
            if rows.known(session, stream_id).legal_hold:
                return []
            return [(SegmentPlace(*row[:-1]), row[-1]) for row in session.execute(query)]

    # ---- retention

    def first_younger(self, stream_id: str, seconds: float) -> int:
        """The number after the last segment committed before a time, seconds since 1970; 0 when there is none."""
        last = select(func.max(SegmentRow.segment_no)).where(
            SegmentRow.stream_id == stream_id, SegmentRow.committed_at <= seconds
        )
        with self._reading() as session:
            found = session.scalar(last)
            return 0 if found is None else found + 1

    def front(self, stream_id: str, stop: int) -> Front:
        """What a stream has before segment number `stop`."""
        sums = select(
            func.count(),
            func.coalesce(func.sum(SegmentRow.file_bytes), 0),
            func.coalesce(func.max(SegmentRow.end_s), 0.0),
        ).where(SegmentRow.stream_id == stream_id, SegmentRow.segment_no < stop)
        with self._reading() as session:
            count, file_bytes, until_s = session.execute(sums).one()
            return Front(count, int(file_bytes), until_s)

    def oldest(self, stream_ids: Sequence[str]) -> Generator[Stored, None, None]:
        """All segments of some streams, the oldest first."""
        query = (
            select(SegmentRow.stream_id, SegmentRow.segment_no, SegmentRow.file_bytes)
            .where(SegmentRow.stream_id.in_(stream_ids))
            .order_by(SegmentRow.committed_at, SegmentRow.stream_id, SegmentRow.segment_no)
        )
        with self._reading() as session:
            for row in session.execute(query).yield_per(1000):
                yield Stored(*row)

    def delete_front(self, stream_id: str, stop: int) -> list[SegmentPlace]:
        """Takes away the rows of segments before number `stop` and notes the gap; returns what they were.

        Of a stream that is held, or gone, nothing.
        """
        front = (SegmentRow.stream_id == stream_id, SegmentRow.segment_no < stop)
        with self._writing() as session:
            stream = session.get(StreamRow, stream_id, with_for_update=True)
            if stream is None or stream.legal_hold:
                return []
            query = select(*PLACE).where(*front).order_by(SegmentRow.segment_no)
            places = [SegmentPlace(*row) for row in session.execute(query)]
            if places:
                note_removed(session, *front)
                session.execute(delete(SegmentRow).where(*front))
                forget_events(session, stream_id, stop)
                stream.first_segment_no = places[-1].segment_no + 1
                rows.widen_gap(session, stream_id, places[0].start_s, places[-1].end_s, RETENTION)
            return places

    def largest(self, stream_id: str) -> int:
        """Bytes of the stream's largest segment; 0 when it has none."""
        query = select(func.max(SegmentRow.file_bytes)).where(SegmentRow.stream_id == stream_id)
        with self._reading() as session:
            return session.scalar(query) or 0

    def trimmed(self) -> dict[str, int]:
        """Streams that retention took from, and the first segment that it left."""
        query = select(StreamRow.id, StreamRow.first_segment_no).where(StreamRow.first_segment_no > 0)
        with self._reading() as session:
            return {row.id: row.first_segment_no for row in session.execute(query)}

    def why_full(self, stream_id: str, num_bytes: int, limits: RetentionConfig) -> str:
        """Why so many bytes more would be too many for the stream or its tenant; empty when they are not."""
        with self._reading() as session:
            return rows.over_limit(session, rows.known(session, stream_id), num_bytes, limits)

    # ---- all of it

    def all_segments(self, stream_id: str | None = None) -> list[SegmentPlace]:
        """Of all streams, or of the one named; in order."""
        query = select(*PLACE).order_by(SegmentRow.stream_id, SegmentRow.segment_no)
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
            kind = StoreFullError if is_full(cause) else StoreError
            raise kind(f"catalog {self.name}: {cause}") from exc
