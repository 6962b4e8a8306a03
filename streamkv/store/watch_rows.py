"""What the catalog knows of standing questions: the watches, their last answers, and the events that they fired.

An event is written in the transaction that commits its segment, so it is there once if the segment is.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from sqlalchemy import ColumnElement, Select, delete, func, literal_column, select, update
from sqlalchemy.orm import Session

from streamkv.errors import UnknownWatchError, WatchLimitError
from streamkv.store import rows
from streamkv.store.layout import name_of
from streamkv.store.records import SegmentPlace
from streamkv.store.tables import WatchEventRow, WatchRow
from streamkv.types import Evidence
from streamkv.watches import (
    Delivery,
    DeliveryState,
    OpenAnswers,
    Watch,
    WatchAnswer,
    WatchEvent,
    is_change,
    shown,
)

Transaction = Callable[[], AbstractContextManager[Session]]

_WATCH = tuple(getattr(WatchRow, f.name) for f in fields(Watch))
_IS_WAITING = WatchEventRow.delivery == literal_column("'waiting'")  # to the letter what the index says


@dataclass(frozen=True)
class WatchRecord:
    """A watch and how it has fared."""

    watch: Watch
    answer: str  # the last one; empty: not shown
    segment_no: int  # the last one that it was asked of; -1: none yet
    num_events: dict[DeliveryState, int]  # by how far they are on their way


@dataclass(frozen=True)
class Due:
    """The next event of a watch for its webhook."""

    event: WatchEvent
    url: str
    secret: str


# ---- within the transactions of streams


def note_answers(session: Session, place: SegmentPlace, answers: Sequence[WatchAnswer]) -> None:
    """Has watches hear what the segment answers. Those that were removed meanwhile are passed over."""
    if not answers:
        return
    told = _told_in(session, place.stream_id, place.segment_no)
    for row, answer, now in _heard(session, place.stream_id, answers):
        row.segment_no = place.segment_no
        if row.id in told:
            continue  # while it was open; what it says now, if that is something else, is told with the next one
        if is_change(row.answer, now, when_gone=row.when_gone):
            session.add(_fired(row, answer, now, place.segment_no, (place.start_s, place.end_s)))
        row.answer = now


def _heard(
    session: Session, stream_id: str, answers: Sequence[WatchAnswer]
) -> list[tuple[WatchRow, WatchAnswer, str]]:
    """Each watch that there is with its answer, and with that as it counts."""
    by_id = {answer.watch_id: answer for answer in answers}
    found = session.scalars(select(WatchRow).where(WatchRow.stream_id == stream_id, WatchRow.id.in_(by_id)))
    return [(row, by_id[row.id], shown(by_id[row.id], row.min_confidence)) for row in found.all()]


def _told_in(session: Session, stream_id: str, segment_no: int) -> set[str]:
    """Watches that have fired in that segment."""
    query = select(WatchEventRow.watch_id).where(
        WatchEventRow.watch_id.in_(_ids_of(stream_id)), WatchEventRow.segment_no == segment_no
    )
    return set(session.scalars(query))


def forget_events(session: Session, stream_id: str, stop: int) -> None:
    """Takes away what rests on segments before number `stop`, but for what is still on its way."""
    before = (WatchEventRow.watch_id.in_(_ids_of(stream_id)), WatchEventRow.segment_no < stop)
    session.execute(delete(WatchEventRow).where(*before, WatchEventRow.delivery != "waiting"))


def forget_watches(session: Session, stream_id: str) -> None:
    session.execute(delete(WatchEventRow).where(WatchEventRow.watch_id.in_(_ids_of(stream_id))))
    session.execute(delete(WatchRow).where(WatchRow.stream_id == stream_id))


def give_watches(session: Session, old_id: str, new_id: str) -> None:
    """Watches go on with the memory that takes a stream's place, and keep what they told."""
    session.execute(update(WatchRow).where(WatchRow.stream_id == old_id).values(stream_id=new_id))


def _ids_of(stream_id: str) -> Select[Any]:
    return select(WatchRow.id).where(WatchRow.stream_id == stream_id)


def _fired(
    watch: WatchRow, answer: WatchAnswer, now: str, segment_no: int, span_s: tuple[float, float]
) -> WatchEventRow:
    """`span_s`: when it was, where there is no evidence."""
    if answer.evidence:
        span_s = answer.evidence[0].start_s, answer.evidence[0].end_s
    return WatchEventRow(
        watch_id=watch.id,
        segment_no=segment_no,
        start_s=span_s[0],
        end_s=span_s[1],
        answer=now,
        previous=watch.answer,
        confidence=answer.confidence,
        evidence=[asdict(evidence) for evidence in answer.evidence],
        fired_at=time.time(),
        delivery="waiting" if watch.url else "none",
    )


# ---- by themselves


class WatchRows:
    """A part of the catalog; each method is one transaction."""

    def __init__(self, reading: Transaction, writing: Transaction) -> None:
        self._reading = reading
        self._writing = writing

    def add(self, watch: Watch, limit: int) -> None:
        """Registers a watch; once more changes nothing.

        UnknownStreamError without its stream, WatchLimitError when that has `limit` watches.
        """
        with self._writing() as session:
            stream_id = rows.by_name(session, watch.stream_id).id
            rows.locked(session, stream_id)
            if session.get(WatchRow, watch.id):
                return
            count = select(func.count()).where(WatchRow.stream_id == stream_id)
            if (found := session.scalar(count) or 0) >= limit:
                raise WatchLimitError(
                    f"stream {watch.stream_id!r} has {found} watches, allowed are {limit} (watch.max_per_stream); "
                    "remove some, or raise it"
                )
            session.add(WatchRow(**(asdict(watch) | {"stream_id": stream_id})))

    def remove(self, watch_id: str) -> str:
        """Takes a watch and its events away; returns its stream. UnknownWatchError when there is none."""
        with self._writing() as session:
            stream_id = _known(session, watch_id).stream_id
            rows.locked(session, stream_id)  # or a commit might write an event of what is just going
            session.execute(delete(WatchEventRow).where(WatchEventRow.watch_id == watch_id))
            session.execute(delete(WatchRow).where(WatchRow.id == watch_id))
            return stream_id

    def of(self, stream_id: str) -> list[Watch]:
        """A stream's watches, the oldest first. UnknownStreamError when there is no such stream."""
        with self._reading() as session:
            rows.known(session, stream_id)
            query = select(*_WATCH).where(WatchRow.stream_id == stream_id)
            return [_watch(row) for row in session.execute(query.order_by(WatchRow.created_at, WatchRow.id))]

    def records(self, stream_id: str | None = None) -> list[WatchRecord]:
        """All watches, the oldest first, or those of one stream; UnknownStreamError when that is not there."""
        with self._reading() as session:
            if stream_id is None:
                return _records(session)
            stream_id = rows.by_name(session, stream_id).id
            return _records(session, WatchRow.stream_id == stream_id)

    def record(self, watch_id: str) -> WatchRecord:
        """UnknownWatchError when there is none of that id."""
        with self._reading() as session:
            _known(session, watch_id)
            return _records(session, WatchRow.id == watch_id)[0]

    def events(self, after: Sequence[tuple[str, int]], limit: int) -> list[list[WatchEvent] | None]:
        """For each watch and segment number: up to `limit` events of later segments, in order; None: no such watch."""
        with self._reading() as session:
            return [_events_after(session, watch_id, number, limit) for watch_id, number in after]

    def hear_open(self, heard: OpenAnswers) -> int:
        """Tells what the open segment shows that is new; returns how many watches fired. Each does once a segment.

        What is not shown is left to the segment's commit, and so is everything when it is committed already.
        FencedError when another writer has taken the stream over. Where nothing is new, nothing is written.
        """

        def news(session: Session) -> list[tuple[WatchRow, WatchAnswer, str]]:
            told = _told_in(session, heard.stream_id, heard.segment_no)
            now = _heard(session, heard.stream_id, heard.answers)
            return [n for n in now if n[0].id not in told and is_change(n[0].answer, n[2], when_gone=False)]

        with self._reading() as session:
            if not news(session):
                return 0
        with self._writing() as session:
            stream = rows.locked(session, heard.stream_id)
            rows.check_writer(stream, heard.epoch)
            fired = news(session) if heard.segment_no == stream.next_segment_no else []
            for row, answer, now in fired:
                session.add(_fired(row, answer, now, heard.segment_no, heard.span_s))
                row.answer = now
            return len(fired)

    # ---- webhooks

    def receivers(self, now: float) -> list[str]:
        """URLs for which an event is due. A watch's events are sent in order: the oldest that waits comes first."""
        query = select(WatchRow.url).join(WatchEventRow, WatchEventRow.watch_id == WatchRow.id)
        with self._reading() as session:
            return list(session.scalars(query.where(*_is_due(now)).distinct()))

    def due(self, url: str, now: float) -> Due | None:
        """What was fired first of all that is due there; None when nothing is."""
        query = (
            select(WatchEventRow, WatchRow)
            .join(WatchRow, WatchEventRow.watch_id == WatchRow.id)
            .where(WatchRow.url == url, *_is_due(now))
            .order_by(WatchEventRow.fired_at, WatchEventRow.watch_id)
            .limit(1)
        )
        with self._reading() as session:
            found = session.execute(query).first()
            if found is None:
                return None
            event, watch = found
            return Due(_event(event, watch), watch.url, watch.secret)

    def note_delivered(self, event: WatchEvent) -> None:
        self._note(event, delivery="delivered", detail="")

    def note_failed(self, event: WatchEvent, detail: str, next_try_at: float | None) -> None:
        """`next_try_at`: seconds since 1970; None: it is given up."""
        if next_try_at is None:
            self._note(event, delivery="failed", detail=detail)
        else:
            self._note(event, delivery="waiting", detail=detail, next_try_at=next_try_at)

    def _note(self, event: WatchEvent, **values: Any) -> None:
        which = (WatchEventRow.watch_id == event.watch_id, WatchEventRow.segment_no == event.segment_no)
        with self._writing() as session:
            session.execute(
                update(WatchEventRow).where(*which).values(tries=event.delivery.tries + 1, **values)
            )


def _known(session: Session, watch_id: str) -> WatchRow:
    row = session.get(WatchRow, watch_id)
    if row is None:
        raise UnknownWatchError(f"watch {watch_id!r}: unknown; GET /v1/watches lists those that there are")
    return row


def _records(session: Session, *which: ColumnElement[bool]) -> list[WatchRecord]:
    counts: dict[str, dict[Any, int]] = defaultdict(dict)
    by_state = (
        select(WatchRow.id, WatchEventRow.delivery, func.count())
        .join(WatchEventRow, WatchEventRow.watch_id == WatchRow.id)
        .where(*which)
        .group_by(WatchRow.id, WatchEventRow.delivery)
    )
    for watch_id, state, count in session.execute(by_state):
        counts[watch_id][state] = count
    query = select(*_WATCH, WatchRow.answer, WatchRow.segment_no).where(*which)
    return [
        WatchRecord(_watch(row[:-2]), row.answer, row.segment_no, counts.get(row.id, {}))
        for row in session.execute(query.order_by(WatchRow.created_at, WatchRow.id))
    ]


def _events_after(session: Session, watch_id: str, number: int, limit: int) -> list[WatchEvent] | None:
    watch = session.get(WatchRow, watch_id)
    if watch is None:
        return None
    query = (
        select(WatchEventRow)
        .where(WatchEventRow.watch_id == watch_id, WatchEventRow.segment_no > number)
        .order_by(WatchEventRow.segment_no)
        .limit(limit)
    )
    return [_event(row, watch) for row in session.scalars(query)]


def _is_due(now: float) -> tuple[ColumnElement[bool], ...]:
    """Of the first event of each watch that waits, whether it waits no longer."""
    other = WatchEventRow.__table__.alias()
    first = (
        select(func.min(other.c.segment_no))
        .where(other.c.watch_id == WatchEventRow.watch_id, other.c.delivery == literal_column("'waiting'"))
        .scalar_subquery()
    )
    return _IS_WAITING, WatchEventRow.next_try_at <= now, WatchEventRow.segment_no == first


def _watch(row: Sequence[Any]) -> Watch:
    """As users see it: of a stream by its name, whichever memory it has."""
    watch = Watch(*row)
    return replace(watch, stream_id=name_of(watch.stream_id))


def _event(row: WatchEventRow, watch: WatchRow) -> WatchEvent:
    state: Any = row.delivery
    return WatchEvent(
        watch_id=row.watch_id,
        stream_id=name_of(watch.stream_id),
        segment_no=row.segment_no,
        start_s=row.start_s,
        end_s=row.end_s,
        answer=row.answer,
        previous=row.previous,
        confidence=row.confidence,
        evidence=tuple(Evidence(**evidence) for evidence in row.evidence),
        fired_at=row.fired_at,
        delivery=Delivery(state, row.tries, row.detail),
    )
