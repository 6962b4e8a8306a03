"""What the catalog does to rows for the object store, within a session that its caller began."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from sqlalchemy import ColumnElement, Select, func, insert, literal_column, select
from sqlalchemy.orm import Session

from streamkv.store.layout import segment_of
from streamkv.store.records import Uploads
from streamkv.store.tables import RemovedObjectRow, SegmentRow

_IS_WAITING = SegmentRow.uploaded_at == literal_column("0")  # to the letter what the index says


def note_removed(session: Session, *which: ColumnElement[bool]) -> None:
    """Has the objects of segments go, whose rows go or come to name other files in this transaction."""
    paths = select(SegmentRow.path).where(*which, SegmentRow.uploaded_at > 0)
    session.execute(insert(RemovedObjectRow).from_select(["path"], paths))


def waiting(*columns: Any) -> Select[Any]:
    return select(*columns).where(_IS_WAITING)


def uploaded(session: Session, paths: Iterable[str]) -> set[str]:
    numbers = defaultdict(list)
    for path in paths:
        stream_id, segment_no = segment_of(path)
        numbers[stream_id].append(segment_no)
    found: set[str] = set()
    for stream_id, nos in numbers.items():
        query = select(SegmentRow.path).where(
            SegmentRow.stream_id == stream_id, SegmentRow.segment_no.in_(nos), SegmentRow.uploaded_at > 0
        )
        found.update(session.scalars(query))
    return found


def counts(session: Session) -> Uploads:
    sums = (func.count(), func.coalesce(func.sum(SegmentRow.file_bytes), 0))
    all_segments, all_bytes = session.execute(select(*sums).select_from(SegmentRow)).one()
    num_waiting, waiting_bytes = session.execute(waiting(*sums)).one()
    removed = session.scalar(select(func.count()).select_from(RemovedObjectRow)) or 0
    return Uploads(
        num_uploaded=all_segments - num_waiting,
        uploaded_bytes=int(all_bytes - waiting_bytes),  # PostgreSQL sums BIGINT to NUMERIC
        num_waiting=num_waiting,
        waiting_bytes=int(waiting_bytes),
        num_removed=removed,
    )
