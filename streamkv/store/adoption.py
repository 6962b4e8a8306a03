"""What a store takes over from one of another model: its streams, and nothing of their memory.

adopt      registers a stream as the other store has it; it is ingested anew
take_over  when nobody writes to either: what else belongs to the streams, as it is by then
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from streamkv.store import rows
from streamkv.store.generations import ages_of, keep_ages
from streamkv.store.object_rows import Transaction
from streamkv.store.records import NEXT, RETENTION, Gap
from streamkv.store.tables import GapRow, RemovedRow, StoreRow, StreamRow, WatchEventRow, WatchRow
from streamkv.store.watch_rows import forget_watches

ANEW = "its memory is another model's and was left behind"
"""Reason of the gap before a stream that goes on without one."""


class Adoption:
    """A part of the catalog; each method is one transaction of it, and reads the other store's."""

    def __init__(self, reading: Transaction, writing: Transaction) -> None:
        self._reading = reading
        self._writing = writing

    def adopt(self, old: Adoption, name: str, config: Mapping[str, Any], *, goes_on: bool = False) -> None:
        """Registers a stream that this store does not have, born when it was there.

        It begins where its memory begins there: what retention has deleted does not come back. `goes_on`: it begins
        where its memory ends there, as if all of that had been deleted; numbers and times go on.
        """
        with old._reading() as theirs, self._writing() as session:
            was = rows.by_name(theirs, name)
            first_no = was.next_segment_no if goes_on else 0
            gaps = [Gap(0.0, was.resume_s, ANEW)] if goes_on and was.resume_s else []
            if not goes_on:
                deleted = select(GapRow).where(GapRow.stream_id == was.id, GapRow.reason == RETENTION)
                gaps = [Gap(gap.start_s, gap.end_s, gap.reason) for gap in theirs.scalars(deleted)]
            epoch = rows.next_epoch(session)
            session.execute(delete(RemovedRow).where(RemovedRow.stream_id == name))
            session.add(
                StreamRow(
                    id=name,
                    name=name,
                    uri=was.uri,
                    created_at=was.created_at,
                    born_epoch=epoch,
                    config=dict(config),
                    fingerprint=session.scalars(select(StoreRow.model_fingerprint)).one(),
                    tenant=was.tenant,
                    first_segment_no=first_no,
                    next_segment_no=first_no,
                    resume_s=max((gap.end_s for gap in gaps), default=0.0),
                )
            )
            session.flush()  # rows that name the stream come after it
            for gap in gaps:
                session.add(GapRow(stream_id=name, **asdict(gap)))

    def take_over(self, old: Adoption) -> None:
        """Legal holds, the age of the footage, watches and what they told, of all streams that both have.

        Once more changes nothing.
        """
        with old._reading() as theirs, self._writing() as session:
            streams = {stream.name: stream for stream in session.scalars(select(StreamRow))}
            for was in theirs.scalars(select(StreamRow).where(~StreamRow.name.endswith(NEXT))):
                if (stream := streams.get(was.name)) is not None:
                    stream.legal_hold = was.legal_hold
                    keep_ages(session, stream.id, ages_of(theirs, was.id))
                    _copy_watches(theirs, was.id, session, stream.id)


def _copy_watches(theirs: Session, old_id: str, session: Session, stream_id: str) -> None:
    forget_watches(session, stream_id)
    for watch in theirs.scalars(select(WatchRow).where(WatchRow.stream_id == old_id)):
        session.add(WatchRow(**(_values(watch) | {"stream_id": stream_id})))
        session.flush()  # its events come after it
        for event in theirs.scalars(select(WatchEventRow).where(WatchEventRow.watch_id == watch.id)):
            session.add(WatchEventRow(**_values(event)))


def _values(row: WatchRow | WatchEventRow) -> dict[str, Any]:
    return {column.key: getattr(row, column.key) for column in row.__table__.columns}
