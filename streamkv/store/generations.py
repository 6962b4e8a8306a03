"""A stream's memory made anew beside the one that answers, and put in its place when it is whole.

    id       name          a stream's first memory has its name as its id
    lobby    lobby         answers questions
    lobby@7  lobby@next    is being made; rows, files, vectors and objects are its own

    id       name          after the switch, one transaction: the old one's rows go, the name is given on
    lobby@7  lobby

To everything that writes, deletes, ages, uploads or verifies both are streams by their ids. Names are for whoever asks.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from streamkv.errors import StoreError
from streamkv.store import rows
from streamkv.store.layout import later_id
from streamkv.store.object_rows import Transaction, note_removed
from streamkv.store.records import ENDED, NEXT, RETENTION, check_not_held
from streamkv.store.tables import GapRow, RemovedRow, SegmentRow, StreamRow
from streamkv.store.watch_rows import forget_watches, give_watches


class Removed(NamedTuple):
    """A stream whose rows are gone, and the epoch up to which files in its folder are to go."""

    stream_id: str
    epoch: int


class Generations:
    """A part of the catalog; each method is one transaction."""

    def __init__(self, reading: Transaction, writing: Transaction) -> None:
        self._reading = reading
        self._writing = writing

    def id_of(self, ref: str) -> str:
        """UnknownStreamError when there is no stream of that name."""
        with self._reading() as session:
            return rows.by_name(session, ref).id

    def begin(self, ref: str, config: Mapping[str, Any]) -> str:
        """Registers the next generation of a stream that has ended; its id.

        It begins where the old one's memory begins: what retention has deleted does not come back.

        LegalHoldError when the stream is held, StoreError when it is written or has a next generation already.
        """
        with self._writing() as session:
            old = rows.locked(session, rows.by_name(session, ref).id)
            check_not_held(old.name, old.legal_hold)
            if old.state not in ENDED:
                raise StoreError(
                    f"stream {old.name!r}: {old.state}, so that it cannot be encoded again yet; wait until it is done, "
                    "or remove it and add it anew"
                )
            if session.scalar(select(StreamRow.id).where(StreamRow.name == old.name + NEXT)):
                raise StoreError(
                    f"stream {old.name!r}: it is being encoded again already; wait, or cancel that first"
                )
            epoch = rows.next_epoch(session)
            stream_id = later_id(old.name, epoch)
            missing = session.scalars(
                select(GapRow).where(GapRow.stream_id == old.id, GapRow.reason == RETENTION)
            ).all()
            session.add(
                StreamRow(
                    id=stream_id,
                    name=old.name + NEXT,
                    uri=old.uri,
                    created_at=time.time(),
                    born_epoch=epoch,
                    config=dict(config),
                    fingerprint=old.fingerprint,
                    tenant=old.tenant,
                    resume_s=max((gap.end_s for gap in missing), default=0.0),
                )
            )
            session.flush()  # rows that name the stream come after it
            for gap in missing:
                session.add(
                    GapRow(stream_id=stream_id, start_s=gap.start_s, end_s=gap.end_s, reason=gap.reason)
                )
            return stream_id

    def switch(self, stream_id: str) -> list[Removed]:
        """Has a next generation that is done take its stream's place; the old one, whose files are to go.

        Nothing when it is in its place already. LegalHoldError while the old one is held, StoreError unless it is done.
        """
        with self._writing() as session:
            new = rows.known(session, stream_id)
            if not new.name.endswith(NEXT):
                return []
            # The old one's lock first, as in `Catalog.remove_stream`; the counter's last, as everywhere.
            old = rows.locked(session, rows.by_name(session, new.name.removesuffix(NEXT)).id)
            new = rows.locked(session, stream_id)
            if new.state != "done":
                raise StoreError(f"stream {new.name!r}: got state {new.state!r}, allowed 'done'; wait for it")
            check_not_held(old.name, old.legal_hold)
            keep_ages(session, new.id, ages_of(session, old.id))
            give_watches(session, old.id, new.id)
            name = old.name
            removed = take_away(session, old, rows.next_epoch(session))
            new.name = name
            return [removed]


def next_of(session: Session, stream: StreamRow) -> StreamRow | None:
    """The stream's next generation."""
    return session.scalars(select(StreamRow).where(StreamRow.name == stream.name + NEXT)).first()


def take_away(session: Session, stream: StreamRow, epoch: int) -> Removed:
    """A stream's rows; notes that its files and objects are to go."""
    note_removed(session, SegmentRow.stream_id == stream.id)
    forget_watches(session, stream.id)
    for table in (SegmentRow, GapRow):
        session.execute(delete(table).where(table.stream_id == stream.id))
    session.delete(stream)
    session.flush()  # its name is free from here on
    session.merge(RemovedRow(stream_id=stream.id, epoch=epoch))
    return Removed(stream.id, epoch)


def ages_of(session: Session, stream_id: str) -> list[Any]:
    """Where each segment lies in the footage and when it was committed, in order."""
    columns = (SegmentRow.segment_no, SegmentRow.start_s, SegmentRow.end_s, SegmentRow.committed_at)
    query = select(*columns).where(SegmentRow.stream_id == stream_id).order_by(SegmentRow.segment_no)
    return list(session.execute(query))


def keep_ages(session: Session, stream_id: str, before: Sequence[Any]) -> None:
    """Footage is as old as it was in the memory before (`ages_of`): else what is deleted by age would be kept longer
    by encoding it again."""
    aged = list(_aged(((s.start_s, s.committed_at) for s in before), ages_of(session, stream_id)))
    if aged:
        session.execute(
            update(SegmentRow),
            [{"stream_id": stream_id, "segment_no": no, "committed_at": at} for no, at in aged],
        )


def _aged(old: Iterable[tuple[float, float]], new: Iterable[Any]) -> Iterator[tuple[int, float]]:
    """Of each new segment the time of commit of the last old one that begins before it ends; both in time order."""
    following = iter(old)
    coming = next(following, None)
    current = coming
    for segment in new:
        while coming is not None and coming[0] < segment.end_s:
            current, coming = coming, next(following, None)
        if current is not None:
            yield segment.segment_no, current[1]
