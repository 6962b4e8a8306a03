"""Watches in the catalog: they hear each committed segment once, and tell what changed once."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest
from store_samples import IDENTITY, filled, make_kv, on_both
from test_crash import Disk, Stopped

from streamkv.config import RetentionConfig
from streamkv.errors import (
    FencedError,
    StoreFullError,
    UnknownStreamError,
    UnknownWatchError,
    WatchLimitError,
)
from streamkv.store import SegmentStore, write_segment
from streamkv.types import Evidence
from streamkv.watches import OpenAnswers, Watch, WatchAnswer, WatchEvent

pytestmark = on_both

COLOUR = Watch("colour", "cam", "what colour is the bus?", min_confidence=0.5, created_at=1.0)
POSTED = Watch("posted", "cam", "is there a bus?", url="http://a/b", secret="whsec_x", created_at=2.0)
PLENTY = 100


def answers(segment_no: int, *texts: str, confidence: float = 0.9) -> list[WatchAnswer]:
    """Of `colour`, `posted` and so on, in this order."""
    evidence = (Evidence(segment_no, 4.0 * segment_no, 4.0 * segment_no + 4, 1.0, 3),)
    names = ("colour", "posted", "third")
    return [WatchAnswer(names[i], text, confidence, evidence) for i, text in enumerate(texts)]


def commit(store: SegmentStore, epoch: int, segment_no: int, heard: list[WatchAnswer]) -> bool:
    return store.commit(write_segment(store.root, IDENTITY, "cam", epoch, make_kv(segment_no)), heard)


def events_of(store: SegmentStore, watch_id: str, after: int = -1) -> list[WatchEvent]:
    (events,) = store.watches.events([(watch_id, after)], PLENTY)
    assert events is not None
    return events


def told(store: SegmentStore, watch_id: str) -> list[tuple[int, str, str]]:
    return [(e.segment_no, e.previous, e.answer) for e in events_of(store, watch_id)]


def test_watches_tell_what_changed_and_nothing_else(store: SegmentStore) -> None:
    gone = replace(COLOUR, id="third", when_gone=True, created_at=3.0)
    for watch in (COLOUR, POSTED, gone):
        store.watches.add(watch, PLENTY)
    epoch = store.begin_writing("cam")
    for no, said in enumerate(["red", "Red ", "blue", "", "blue", "blue"]):
        commit(store, epoch, no, answers(no, said, "no", said))
    commit(store, epoch, 6, answers(6, "green", "no", "green", confidence=0.4))
    assert told(store, "colour") == [(0, "", "red"), (2, "Red", "blue"), (4, "", "blue")]
    assert told(store, "posted") == [(0, "", "no")]
    assert told(store, "third") == [
        *told(store, "colour")[:2],
        (3, "blue", ""),
        (4, "", "blue"),
        (6, "blue", ""),
    ]
    event = events_of(store, "colour", after=0)[0]
    assert (event.stream_id, event.start_s, event.end_s, event.confidence) == ("cam", 8.0, 12.0, 0.9)
    assert event.evidence == answers(2, "")[0].evidence
    assert [e.delivery.state for e in (event, *events_of(store, "posted"))] == ["none", "waiting"]
    first, second, third = store.watches.records("cam")
    assert (first.watch, first.answer, first.segment_no) == (COLOUR, "", 6)
    assert (second.watch, second.answer, second.num_events) == (POSTED, "no", {"waiting": 1})
    assert third.num_events == {"none": 5}


def test_an_answer_without_evidence_is_that_of_its_segment(store: SegmentStore) -> None:
    store.watches.add(COLOUR, PLENTY)
    commit(store, store.begin_writing("cam"), 0, [WatchAnswer("colour", "red", None, ())])
    (event,) = events_of(store, "colour")
    assert (event.start_s, event.end_s, event.confidence, event.evidence) == (0.0, 4.0, None, ())


def test_a_repeated_commit_tells_nothing_again(store: SegmentStore) -> None:
    store.watches.add(COLOUR, PLENTY)
    epoch = store.begin_writing("cam")
    assert commit(store, epoch, 0, answers(0, "red"))
    assert not commit(store, epoch, 0, answers(0, "blue"))
    assert told(store, "colour") == [(0, "", "red")]
    assert store.watches.record("colour").answer == "red"


def look(store: SegmentStore, epoch: int, segment_no: int, heard: list[WatchAnswer]) -> int:
    span_s = 4.0 * segment_no, 4.0 * segment_no + 1
    return store.watches.hear_open(OpenAnswers("cam", epoch, segment_no, span_s, heard))


def test_an_open_segment_tells_at_once_and_once(store: SegmentStore) -> None:
    for watch in (COLOUR, POSTED):
        store.watches.add(watch, PLENTY)
    epoch = store.begin_writing("cam")
    assert look(store, epoch, 0, answers(0, "", "no", confidence=0.9)) == 1
    assert look(store, epoch, 0, answers(0, "red", "no", confidence=0.4)) == 0, "not sure enough"
    assert look(store, epoch, 0, answers(0, "red", "yes")) == 1, "the other has told in this segment"
    assert look(store, epoch, 0, answers(0, "blue", "no")) == 0
    assert store.watches.record("colour").segment_no == -1, "it has not heard the whole of it"
    commit(store, epoch, 0, answers(0, "blue", "no"))
    assert (told(store, "colour"), told(store, "posted")) == ([(0, "", "red")], [(0, "", "no")])
    assert store.watches.record("colour").segment_no == 0
    commit(store, epoch, 1, answers(1, "blue", "no"))
    assert told(store, "colour") == [(0, "", "red"), (1, "red", "blue")], (
        "what it turned to is told with the next"
    )
    assert told(store, "posted") == [(0, "", "no")]


def test_what_is_gone_is_gone_when_the_segment_is_whole(store: SegmentStore) -> None:
    gone = replace(COLOUR, when_gone=True)
    store.watches.add(gone, PLENTY)
    epoch = store.begin_writing("cam")
    commit(store, epoch, 0, answers(0, "red"))
    assert look(store, epoch, 1, answers(1, "")) == 0
    commit(store, epoch, 1, answers(1, ""))
    assert told(store, "colour") == [(0, "", "red"), (1, "red", "")]


def test_an_open_segment_of_another_time_or_writer_tells_nothing(store: SegmentStore) -> None:
    store.watches.add(COLOUR, PLENTY)
    old = store.begin_writing("cam")
    commit(store, old, 0, answers(0, "red"))
    assert look(store, old, 0, answers(0, "blue")) == 0, "it is committed"
    assert look(store, old, 2, answers(2, "blue")) == 0, "there is one before it"
    store.begin_writing("cam")
    with pytest.raises(FencedError):
        look(store, old, 1, answers(1, "blue"))
    assert told(store, "colour") == [(0, "", "red")]
    assert store.watches.record("colour").answer == "red"


def test_a_refused_commit_tells_nothing(store: SegmentStore) -> None:
    store.watches.add(COLOUR, PLENTY)
    old, _ = store.begin_writing("cam"), store.begin_writing("cam")
    place = write_segment(store.root, IDENTITY, "cam", old, make_kv(0))
    with pytest.raises(FencedError):
        store.commit(place, answers(0, "red"))
    store.retention = RetentionConfig(stream_bytes=1)
    with pytest.raises(StoreFullError):
        commit(store, store.begin_writing("cam"), 0, answers(0, "red"))
    assert told(store, "colour") == []
    assert store.watches.record("colour").segment_no == -1


@pytest.mark.parametrize("stop_at", ["during rename", "before insert", "during insert"])
def test_a_writer_that_stops_anywhere_loses_and_repeats_no_event(
    tmp_path: Path, catalog_url: str, monkeypatch: pytest.MonkeyPatch, stop_at: str
) -> None:
    root = tmp_path / "root"
    with SegmentStore.open(root, catalog_url=catalog_url, identity=IDENTITY) as store:
        store.add_stream("cam", "file:x")
        store.watches.add(COLOUR, PLENTY)
        epoch = store.begin_writing("cam")
        commit(store, epoch, 0, answers(0, "red"))
        disk = Disk(stop_at)
        with disk.in_place(monkeypatch), pytest.raises(Stopped):
            commit(store, epoch, 1, answers(1, "blue"))
    with SegmentStore.open(root, catalog_url=catalog_url, identity=IDENTITY) as store:
        is_there = stop_at == "during insert"
        assert told(store, "colour")[1:] == ([(1, "red", "blue")] if is_there else [])
        epoch = store.begin_writing("cam")
        assert commit(store, epoch, 1, answers(1, "blue")) is not is_there
        commit(store, epoch, 2, answers(2, "blue"))
        assert told(store, "colour") == [(0, "", "red"), (1, "red", "blue")]


def test_a_watch_that_goes_takes_its_events_and_is_not_heard_of_again(store: SegmentStore) -> None:
    for watch in (COLOUR, POSTED):
        store.watches.add(watch, PLENTY)
    epoch = store.begin_writing("cam")
    commit(store, epoch, 0, answers(0, "red", "no"))
    assert store.watches.remove("colour") == "cam"
    assert commit(store, epoch, 1, answers(1, "blue", "yes")), "it was asked before it went"
    assert store.watches.events([("colour", -1), ("posted", 0)], PLENTY)[0] is None
    assert told(store, "posted") == [(0, "", "no"), (1, "no", "yes")]
    for call in (store.watches.remove, store.watches.record):
        with pytest.raises(UnknownWatchError, match="'colour': unknown"):
            call("colour")


def test_a_removed_stream_takes_its_watches(store: SegmentStore) -> None:
    for watch in (COLOUR, POSTED):
        store.watches.add(watch, PLENTY)
    commit(store, store.begin_writing("cam"), 0, answers(0, "red", "no"))
    store.remove_stream("cam")
    assert store.watches.records() == []
    assert store.watches.events([("colour", -1), ("posted", -1)], PLENTY) == [None, None]
    assert store.watches.receivers(now=1e12) == []
    with pytest.raises(UnknownStreamError):
        store.watches.of("cam")
    store.add_stream("cam", "file:other.mp4")
    assert store.watches.of("cam") == []


def test_events_go_with_the_segments_that_they_rest_on(store: SegmentStore) -> None:
    for watch in (COLOUR, POSTED):
        store.watches.add(watch, PLENTY)
    epoch = store.begin_writing("cam")
    for no in range(4):
        commit(store, epoch, no, answers(no, str(no), str(no)))
    store.watches.note_delivered(events_of(store, "posted")[1])
    store.retain(
        RetentionConfig(stream_bytes=2 * store.segments("cam", 0, 1)[0].file_bytes, when_full="oldest")
    )
    assert [no for no, _, _ in told(store, "colour")] == [2, 3]
    assert [no for no, _, _ in told(store, "posted")] == [0, 2, 3], "what was not delivered yet stays"


def test_a_stream_has_so_many_watches_and_no_more_whoever_adds_them(store: SegmentStore) -> None:
    refused: list[str] = []

    def add(number: int) -> None:
        try:
            store.watches.add(replace(COLOUR, id=f"w{number}"), 3)
        except WatchLimitError as exc:
            refused.append(str(exc))

    threads = [threading.Thread(target=add, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 3
    assert "has 3 watches, allowed are 3" in refused[0]
    store.watches.add(store.watches.of("cam")[0], 3)  # once more changes nothing
    assert len(store.watches.of("cam")) == 3
    with pytest.raises(UnknownStreamError):
        store.watches.add(replace(COLOUR, stream_id="nobody"), PLENTY)


def test_a_webhook_gets_each_watchs_events_in_order(store: SegmentStore) -> None:
    elsewhere = replace(POSTED, id="third", url="http://c")
    for watch in (COLOUR, POSTED, elsewhere):
        store.watches.add(watch, PLENTY)
    epoch = store.begin_writing("cam")
    for no in range(3):
        commit(store, epoch, no, answers(no, str(no), str(no), "same"))
    rows, later = store.watches, 1e12
    assert sorted(rows.receivers(later)) == ["http://a/b", "http://c"]
    due = rows.due("http://a/b", later)
    assert due is not None
    assert (due.event.watch_id, due.event.segment_no, due.secret) == ("posted", 0, "whsec_x")
    rows.note_failed(due.event, "no", next_try_at=later + 10)
    assert rows.due("http://a/b", later) is None, "the later ones wait for it"
    assert rows.receivers(later) == ["http://c"]
    again = rows.due("http://a/b", later + 10)
    assert again is not None
    assert (again.event.segment_no, again.event.delivery.tries, again.event.delivery.detail) == (0, 1, "no")
    rows.note_failed(again.event, "gone", next_try_at=None)
    third = rows.due("http://a/b", later)
    assert third is not None
    assert third.event.segment_no == 1
    rows.note_delivered(third.event)
    assert rows.record("posted").num_events == {"failed": 1, "delivered": 1, "waiting": 1}
    states = [(e.delivery.state, e.delivery.tries, e.delivery.detail) for e in events_of(store, "posted")]
    assert states == [("failed", 2, "gone"), ("delivered", 1, ""), ("waiting", 0, "")]


def test_a_store_that_is_only_read_shows_watches(store: SegmentStore, catalog_url: str) -> None:
    store.watches.add(COLOUR, PLENTY)
    filled(store, 1)
    with SegmentStore.open(store.root, catalog_url=catalog_url, read_only=True) as reading:
        assert reading.watches.of("cam") == [COLOUR]
