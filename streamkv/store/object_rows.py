"""What the catalog knows of the object store: which segments are there, and which objects are to go."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from contextlib import AbstractContextManager
from dataclasses import fields
from typing import Any

from sqlalchemy import ColumnElement, Select, delete, func, insert, literal_column, select
from sqlalchemy.orm import Session

from streamkv.store.layout import segment_of
from streamkv.store.records import SegmentPlace, Uploads
from streamkv.store.tables import RemovedObjectRow, SegmentRow, StreamRow

PLACE = tuple(getattr(SegmentRow, f.name) for f in fields(SegmentPlace))
"""A segment's row as a `SegmentPlace`."""
_IS_WAITING = SegmentRow.uploaded_at == literal_column("0")  # to the letter what the index says

Transaction = Callable[[], AbstractContextManager[Session]]


def note_removed(session: Session, *which: ColumnElement[bool]) -> None:
    """Has the objects of segments go, whose rows go or come to name other files in this transaction."""
    paths = select(SegmentRow.path).where(*which, SegmentRow.uploaded_at > 0)
    session.execute(insert(RemovedObjectRow).from_select(["path"], paths))


class ObjectRows:
    """A part of the catalog; each method is one transaction."""

    def __init__(self, reading: Transaction, writing: Transaction) -> None:
        self._reading = reading
        self._writing = writing

    def waiting(self, limit: int) -> list[SegmentPlace]:
        """Up to `limit` segments that are not in the object store, the oldest first."""
        with self._reading() as session:
            order = (SegmentRow.committed_at, SegmentRow.stream_id, SegmentRow.segment_no)
            query = _waiting(*PLACE).order_by(*order).limit(limit)
            return [SegmentPlace(*row) for row in session.execute(query)]

    def num_waiting(self) -> int:
        with self._reading() as session:
            return session.scalar(_waiting(func.count())) or 0

    def note_uploaded(self, place: SegmentPlace) -> bool:
        """Says that the segment's file is in the object store; False, and the object is to go, when it is not its file
        any more."""
        with self._writing() as session:
            row = session.get(SegmentRow, (place.stream_id, place.segment_no), with_for_update=True)
            if row is None or row.path != place.path:
                session.merge(RemovedObjectRow(path=place.path))
                return False
            row.uploaded_at = time.time()
            return True

    def upload_again(self, place: SegmentPlace) -> None:
        """Says that the segment's object is lost or damaged."""
        with self._writing() as session:
            row = session.get(SegmentRow, (place.stream_id, place.segment_no), with_for_update=True)
            if row is not None and row.path == place.path:
                row.uploaded_at = 0.0

    def uploaded(self, paths: Iterable[str], codecs: Collection[str] = ()) -> set[str]:
        """Those of some segment files whose bytes are in the object store, and that rows name.

        `codecs`: only those of one of these, or on hold, which stay as they are.
        """
        numbers = defaultdict(list)
        for path in paths:
            stream_id, segment_no = segment_of(path)
            numbers[stream_id].append(segment_no)
        found: set[str] = set()
        with self._reading() as session:
            for stream_id, nos in numbers.items():
                of_stream = (SegmentRow.stream_id == stream_id, SegmentRow.segment_no.in_(nos))
                query = select(SegmentRow.path).where(*of_stream, SegmentRow.uploaded_at > 0)
                if codecs:
                    is_held = select(StreamRow.legal_hold != "").where(StreamRow.id == stream_id)
                    query = query.where(SegmentRow.codec.in_(codecs) | is_held.scalar_subquery())
                found.update(session.scalars(query))
        return found

    def all_uploaded(self, stream_id: str | None = None) -> set[str]:
        """Files of all streams, or of one, that are in the object store."""
        query = select(SegmentRow.path).where(SegmentRow.uploaded_at > 0)
        if stream_id is not None:
            query = query.where(SegmentRow.stream_id == stream_id)
        with self._reading() as session:
            return set(session.scalars(query))

    def uploads(self) -> Uploads:
        sums = (func.count(), func.coalesce(func.sum(SegmentRow.file_bytes), 0))
        with self._reading() as session:
            all_segments, all_bytes = session.execute(select(*sums).select_from(SegmentRow)).one()
            num_waiting, waiting_bytes = session.execute(_waiting(*sums)).one()
            removed = session.scalar(select(func.count()).select_from(RemovedObjectRow)) or 0
        return Uploads(
            num_uploaded=all_segments - num_waiting,
            uploaded_bytes=int(all_bytes - waiting_bytes),  # PostgreSQL sums BIGINT to NUMERIC
            num_waiting=num_waiting,
            waiting_bytes=int(waiting_bytes),
            num_removed=removed,
        )

    def removed(self) -> list[str]:
        """Paths of objects that are to go."""
        with self._reading() as session:
            return list(session.scalars(select(RemovedObjectRow.path).order_by(RemovedObjectRow.path)))

    def is_gone(self, path: str) -> None:
        """Says that such an object has gone."""
        with self._writing() as session:
            session.execute(delete(RemovedObjectRow).where(RemovedObjectRow.path == path))


def _waiting(*columns: Any) -> Select[Any]:
    return select(*columns).where(_IS_WAITING)
