"""A store of another model takes over streams and what belongs to them, and nothing of their memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from store_samples import IDENTITY, filled, make_kv, store_segment
from test_watch_rows import COLOUR, PLENTY, POSTED, answers, commit, told

from streamkv.config import RetentionConfig
from streamkv.store import SegmentStore
from streamkv.store.adoption import ANEW
from streamkv.store.records import Gap

OTHER = replace(IDENTITY, fingerprint="town-2")


@pytest.fixture
def new(tmp_path: Path) -> Iterator[SegmentStore]:
    with SegmentStore.open(tmp_path / "new", identity=OTHER) as opened:
        yield opened


def ages(store: SegmentStore) -> list[float]:
    return [at for _, at in store._catalog.committed_before("cam", 1e12)]


def encode(store: SegmentStore, first_no: int, stop: int) -> None:
    """Segments of `cam` from a number on, of other bytes."""
    epoch = store.begin_writing("cam")
    for no in range(first_no, stop):
        at = replace(make_kv(no, identity=OTHER), segment_no=no - first_no)
        store_segment(store, "cam", epoch, at)


def test_what_retention_deleted_does_not_come_back_and_footage_is_as_old_as_it_was(
    store: SegmentStore, new: SegmentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(1_000, 9_000))
    monkeypatch.setattr("streamkv.store.catalog.time.time", lambda: float(next(clock)))
    filled(store, 6)
    store.retain(RetentionConfig(stream_bytes=store.stream("cam").file_bytes // 2, when_full="oldest"))
    kept, was = ages(store), store.stream("cam")
    new.adoption.adopt(store.adoption, "cam", {"guidance": "signs"})
    now = new.stream("cam")
    assert (now.uri, now.created_at, now.state, now.config) == (
        was.uri,
        was.created_at,
        "registered",
        {"guidance": "signs"},
    )
    assert was.gaps == now.gaps == (Gap(0.0, now.resume_s, "retention"),)
    assert 0 < now.resume_s < was.resume_s
    encode(new, round(now.resume_s / 4), 6)
    assert min(ages(new)) > max(kept)
    for _ in range(2):
        new.adoption.take_over(store.adoption)
        assert ages(new) == kept
    assert new.verify() == []


def test_watches_come_with_what_they_told_and_a_held_stream_stays_held(
    store: SegmentStore, new: SegmentStore
) -> None:
    for watch in (COLOUR, POSTED):
        store.watches.add(watch, PLENTY)
    epoch = store.begin_writing("cam")
    for no, said in enumerate(["red", "blue"]):
        commit(store, epoch, no, answers(no, said, "no"))
    store.hold("cam", "case 4711")
    new.adoption.adopt(store.adoption, "cam", {})
    assert new.watches.records() == [], "none is asked anew of what it was asked of"
    for _ in range(2):
        new.adoption.take_over(store.adoption)
        assert new.watches.records() == store.watches.records()
        assert told(new, "colour") == [(0, "", "red"), (1, "red", "blue")]
        due = new.watches.due("http://a/b", 1e12)
        assert due is not None
        assert due.secret == "whsec_x"
    assert new.stream("cam").legal_hold == "case 4711"


def test_a_live_stream_goes_on_where_it_was(store: SegmentStore, new: SegmentStore) -> None:
    """Its numbers go on, too: watches and those who follow them have heard of the earlier ones."""
    filled(store, 3)
    was = store.stream("cam")
    new.adoption.adopt(store.adoption, "cam", {}, goes_on=True)
    now = new.stream("cam")
    assert (now.created_at, now.resume_s, now.next_segment_no) == (was.created_at, 12.0, 3)
    assert now.gaps == (Gap(0.0, 12.0, ANEW),)
    assert len(new.reader("cam").refresh().segments) == 0
    epoch = new.begin_writing("cam")
    store_segment(new, "cam", epoch, make_kv(3, identity=OTHER))
    assert [s.segment_no for s in new.reader("cam").refresh().segments] == [3]
    assert new.verify() == []
