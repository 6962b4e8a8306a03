"""What retention deletes is gone wholly: rows, files, vectors; what it keeps is as it was; what is held stays."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_samples import (
    IDENTITY,
    assert_same_segment,
    filled,
    make_kv,
    on_both,
    segment_files,
    store_segment,
)

from streamkv.config import AgeingStep, RetentionConfig
from streamkv.errors import LegalHoldError, SegmentGoneError, StoreError, StoreFullError, UnknownStreamError
from streamkv.store import Front, Gap, SegmentStore, StreamSnapshot, holes, write_segment
from streamkv.store.deletion import Deletion
from streamkv.store.holes import data_extents, punch_hole

DAY = 86400.0
QUERY = torch.arange(10.0) - 4


def committed_at(store: SegmentStore, stream_id: str, days_ago: list[float]) -> None:
    """As if the stream's segments had been committed so long ago, in order."""
    now = time.time()
    with store._catalog._writing() as session:
        for no, days in enumerate(days_ago):
            session.connection().exec_driver_sql(
                f"UPDATE segments SET committed_at = {now - days * DAY} "
                f"WHERE stream_id = '{stream_id}' AND segment_no = {no}"
            )


def size_of_one(store: SegmentStore, stream_id: str = "cam") -> int:
    """Bytes of a segment's file, all of which are as large."""
    return max(place.file_bytes for place in store.segments(stream_id, 0, 99))


def numbers(store: SegmentStore, stream_id: str = "cam") -> list[int]:
    return [place.segment_no for place in store.segments(stream_id, 0, 99)]


def check_only_these_are_left(store: SegmentStore, snapshot: StreamSnapshot, wanted: list[int]) -> None:
    assert [segment.segment_no for segment in snapshot.segments] == wanted
    for no in wanted:
        assert_same_segment(snapshot._file(no).segment_kv(), make_kv(no))
    scores = {no: make_kv(no).summary_vectors[1] @ QUERY for no in wanted}
    assert snapshot.search(1, QUERY, 99).tolist() == sorted(wanted, key=lambda no: -scores[no])
    assert set(snapshot.table(0).segment_nos.tolist()) == set(wanted)


# ---------------------------------------------------------------- what goes


@on_both
def test_old_segments_leave_neither_rows_nor_files_nor_vectors(store: SegmentStore) -> None:
    filled(store, 6)
    committed_at(store, "cam", [9, 8, 7, 2, 1, 0])
    one = size_of_one(store)
    done = store.retain(RetentionConfig(max_age_s=3 * DAY))
    assert done == {"cam": Front(3, 3 * one, until_s=12.0)}
    assert numbers(store) == [3, 4, 5]
    assert len(segment_files(store)) == 3
    record = (store.root / "vectors/cam.bin").stat().st_size // 6
    with (store.root / "vectors/cam.bin").open("rb") as vectors:
        assert not any(vectors.read(3 * record))
        assert any(vectors.read(record))
    assert store.verify() == []
    check_only_these_are_left(store, store.reader("cam").snapshot, [3, 4, 5])
    assert store.stream("cam").gaps == (Gap(0.0, 12.0, "retention"),)
    assert store.retain(RetentionConfig(max_age_s=3 * DAY)) == {}


@on_both
def test_stream_keeps_to_its_bytes(store: SegmentStore) -> None:
    store.add_stream("gate", "file:x")
    filled(store, 5)
    filled(store, 2, "gate")
    limits = RetentionConfig(stream_bytes=3 * size_of_one(store) + 1, when_full="oldest")
    assert store.retain(limits)["cam"].num_segments == 2
    assert (numbers(store), numbers(store, "gate")) == ([2, 3, 4], [0, 1])
    assert store.verify() == []


@on_both
def test_tenant_loses_what_is_oldest_of_all_its_streams(store: SegmentStore) -> None:
    for name, tenant in (("a", "acme"), ("b", "acme"), ("other", "else")):
        store.add_stream(name, "file:x", tenant=tenant)
        filled(store, 3, name)
    committed_at(store, "a", [9, 8, 1])
    committed_at(store, "b", [7, 3, 2])
    committed_at(store, "other", [99, 98, 97])
    store.retain(RetentionConfig(tenant_bytes=3 * size_of_one(store, "a"), when_full="oldest"))
    assert (numbers(store, "a"), numbers(store, "b"), numbers(store, "other")) == ([2], [1, 2], [0, 1, 2])
    assert store.stream("a").tenant == "acme"


def test_limits_of_age_stream_and_tenant_do_not_take_twice(store: SegmentStore) -> None:
    """What age and a stream's own limit take counts towards the tenant's."""
    store.add_stream("gate", "file:x")
    filled(store, 4)
    filled(store, 4, "gate")
    committed_at(store, "cam", [1, 1, 1, 0])
    committed_at(store, "gate", [20, 8, 8, 8])
    one = size_of_one(store)
    store.retain(
        RetentionConfig(max_age_s=15 * DAY, stream_bytes=3 * one, tenant_bytes=5 * one, when_full="oldest")
    )
    assert (numbers(store), numbers(store, "gate")) == ([1, 2, 3], [2, 3])


def test_bytes_are_not_deleted_for_under_the_policy_that_pauses(store: SegmentStore) -> None:
    filled(store, 3)
    assert store.retain(RetentionConfig(stream_bytes=1, tenant_bytes=1)) == {}
    assert numbers(store) == [0, 1, 2]


def test_dry_run_says_the_same_and_deletes_nothing(store: SegmentStore) -> None:
    filled(store, 4)
    committed_at(store, "cam", [9, 8, 1, 0])
    policy, seen = RetentionConfig(max_age_s=2 * DAY), []
    with SegmentStore.open(store.root, read_only=True) as readonly:
        planned = readonly.retain(policy, dry_run=True)
        with pytest.raises(StoreError, match="reading only"):
            readonly.retain(policy)
    assert numbers(store) == [0, 1, 2, 3]
    assert store.retain(policy, on_segment=lambda *at: seen.append(at)) == planned
    assert seen == [(1, 2), (2, 2)]


def test_one_stream_is_trimmed_alone(store: SegmentStore) -> None:
    store.add_stream("gate", "file:x")
    filled(store, 2)
    filled(store, 2, "gate")
    committed_at(store, "cam", [9, 9])
    committed_at(store, "gate", [9, 9])
    assert list(store.retain(RetentionConfig(max_age_s=DAY), "gate")) == ["gate"]
    assert (numbers(store), numbers(store, "gate")) == ([0, 1], [])
    with pytest.raises(UnknownStreamError):
        store.retain(RetentionConfig(max_age_s=DAY), "nope")


def test_earlier_gaps_become_part_of_retentions(store: SegmentStore) -> None:
    filled(store, 6)
    store.add_gap("cam", 5.0, 6.0, "corrupt packets")
    store.add_gap("cam", 17.0, 18.0, "away")
    for days in ([9, 9, 0, 0, 0, 0], [9, 9, 9, 9, 0, 0]):
        committed_at(store, "cam", days)
        store.retain(RetentionConfig(max_age_s=DAY))
    assert store.stream("cam").gaps == (Gap(0.0, 16.0, "retention"), Gap(17.0, 18.0, "away"))


def test_stream_goes_on_after_all_of_it_was_deleted(store: SegmentStore) -> None:
    epoch = filled(store, 3)
    committed_at(store, "cam", [9, 9, 9])
    store.retain(RetentionConfig(max_age_s=DAY))
    info = store.stream("cam")
    assert (info.num_segments, info.next_segment_no, info.resume_s) == (0, 3, 12.0)
    store_segment(store, "cam", epoch, make_kv(3))
    store.begin_writing("cam")
    assert store.verify() == []
    check_only_these_are_left(store, store.reader("cam").snapshot, [3])


def test_segment_of_a_trimmed_stream_counts_once_all_the_same(store: SegmentStore) -> None:
    epoch = store.begin_writing("cam")
    place = store_segment(store, "cam", epoch, make_kv(0))
    committed_at(store, "cam", [9])
    store.retain(RetentionConfig(max_age_s=DAY))
    again = write_segment(store.root, IDENTITY, "cam", epoch, make_kv(0))
    assert again == place
    assert store.commit(again) is False
    store.begin_writing("cam")
    assert store.verify() == []


# ---------------------------------------------------------------- who reads meanwhile


@on_both
def test_reader_follows_and_an_earlier_snapshot_reads_what_it_has_open(store: SegmentStore) -> None:
    epoch = filled(store, 4)
    reader = store.reader("cam")
    old = reader.snapshot
    mapped = old._file(1)
    committed_at(store, "cam", [9, 9, 0, 0])
    store.retain(RetentionConfig(max_age_s=DAY))
    assert_same_segment(mapped.segment_kv(), make_kv(1))  # its bytes are there as long as it is mapped
    with pytest.raises(SegmentGoneError, match="segment 0 of stream 'cam' was deleted"):
        old.table(0, np.array([0]))
    check_only_these_are_left(store, reader.refresh(), [2, 3])
    store_segment(store, "cam", epoch, make_kv(4))
    check_only_these_are_left(store, reader.refresh(), [2, 3, 4])
    assert [s.segment_no for s in old.segments] == [0, 1, 2, 3]


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 5)), min_size=1, max_size=5))
def test_reader_that_follows_sees_what_a_new_one_sees(
    store: SegmentStore, steps: list[tuple[int, int]]
) -> None:
    """So many segments are committed, then so many deleted, again and again."""
    if store.streams():
        store.remove_stream("cam")
    store.add_stream("cam", "file:x")
    epoch, reader, first, total = store.begin_writing("cam"), store.reader("cam"), 0, 0
    for added, deleted in steps:
        for no in range(total, total + added):
            store_segment(store, "cam", epoch, make_kv(no))
        total, first = total + added, min(first + deleted, total + added)
        committed_at(store, "cam", [9.0] * first + [0.0] * (total - first))
        store.retain(RetentionConfig(max_age_s=DAY))
        for snapshot in (reader.refresh(), store.reader("cam").snapshot):
            check_only_these_are_left(store, snapshot, list(range(first, total)))
            assert snapshot._index.num_segments == total - first
        assert store.verify() == []


def test_deletion_cut_between_rows_and_files_is_finished_at_open(
    store: SegmentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(store, 4)
    committed_at(store, "cam", [9, 9, 0, 0])
    with monkeypatch.context() as patch:
        patch.setattr(Deletion, "unlink", lambda self, paths: [])
        patch.setattr("streamkv.store.vectors.punch_hole", lambda path, start, stop: None)
        store.retain(RetentionConfig(max_age_s=DAY))
    assert [problem.kind for problem in store.verify()] == ["extra"] * 3
    assert "vectors of 2 segments that are not in the catalog: 0, 1" in str(store.verify()[-1])
    SegmentStore.open(store.root).close()
    assert store.verify() == []


def test_stray_vectors_are_repaired(store: SegmentStore) -> None:
    filled(store, 3)
    vectors = store.root / "vectors"
    (vectors / "gone.bin").write_bytes((vectors / "cam.bin").read_bytes())
    with store._catalog._writing() as session:
        session.connection().exec_driver_sql("DELETE FROM segments WHERE segment_no = 1")
    store.begin_writing("cam")  # takes the segment's file, which nobody names, away
    problems = store.verify()
    assert [(p.kind, p.path) for p in problems] == [
        ("extra", "vectors/cam.bin"),
        ("extra", "vectors/gone.bin"),
    ]
    store.repair(problems)
    assert store.verify() == []
    check_only_these_are_left(store, store.reader("cam").snapshot, [0, 2])


def test_vectors_give_their_room_back(store: SegmentStore) -> None:
    path = store.root / "some.bin"
    path.write_bytes(os.urandom(1 << 20))
    before = path.stat().st_blocks
    punch_hole(path, 4096, 1 << 19)
    assert path.stat().st_blocks < before
    assert path.stat().st_size == 1 << 20
    with path.open("rb") as file:
        assert list(data_extents(file)) == [(0, 4096), (1 << 19, 1 << 20)]
        assert not any(file.read()[4096 : 1 << 19])


def test_vectors_become_zeros_where_no_room_can_be_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holes, "_deallocate", lambda fd, start, count: False)
    path = tmp_path / "some.bin"
    path.write_bytes(b"x" * 3_000_000)
    holes.punch_hole(path, 1000, 2_500_000)
    data = path.read_bytes()
    assert data == b"x" * 1000 + bytes(2_499_000) + b"x" * 500_000


# ---------------------------------------------------------------- legal hold


@on_both
def test_held_stream_loses_nothing_until_it_is_released(store: SegmentStore) -> None:
    filled(store, 3)
    committed_at(store, "cam", [9, 9, 9])
    store.hold("cam", "case 4711")
    strict = RetentionConfig(max_age_s=DAY, stream_bytes=1, tenant_bytes=1, when_full="oldest")
    assert store.retain(strict) == {}
    assert store._catalog.delete_front("cam", 2) == []  # planned before it was held
    with pytest.raises(
        LegalHoldError, match=r"'cam': on legal hold \(case 4711\).*streamkv store release cam"
    ):
        store.remove_stream("cam")
    asked: list[tuple[int, int]] = []
    store.age("cam", [AgeingStep(0, "int4")], on_segment=lambda *at: asked.append(at))
    assert asked == []
    assert numbers(store) == [0, 1, 2]
    assert {place.codec for place in store.segments("cam", 0, 9)} == {"raw"}
    assert store.stream("cam").legal_hold == "case 4711"
    store.release("cam")
    assert store.retain(strict)["cam"].num_segments == 3
    store.remove_stream("cam")


def test_stream_that_is_held_while_it_is_aged_stays_as_it_was_then(store: SegmentStore) -> None:
    filled(store, 3)
    store.age("cam", [AgeingStep(0, "int8")], on_segment=lambda done, total: store.hold("cam", "case 4711"))
    assert [place.codec for place in store.segments("cam", 0, 9)] == ["int8", "raw", "raw"]
    assert store.verify() == []


def test_hold_says_why(store: SegmentStore) -> None:
    with pytest.raises(StoreError, match="got no reason"):
        store.hold("cam", " ")
    with pytest.raises(UnknownStreamError):
        store.hold("nope", "x")


# ---------------------------------------------------------------- limits of commits


@on_both
@pytest.mark.parametrize("limit", ["stream_bytes", "tenant_bytes"])
def test_full_stream_commits_nothing_and_leaves_nothing_half(
    store: SegmentStore, catalog_url: str, limit: str
) -> None:
    filled(store, 2)
    one = size_of_one(store)
    limits = RetentionConfig(**{limit: 3 * one - 1})
    with SegmentStore.open(store.root, catalog_url=catalog_url, retention=limits) as limited:
        limited.add_stream("gate", "file:x", tenant="else")
        epoch = limited.begin_writing("cam")
        assert f"store.retention.{limit}" in limited.room("cam")
        with pytest.raises(StoreFullError, match=limit):
            limited.commit(write_segment(store.root, IDENTITY, "cam", epoch, make_kv(2)))
        assert limited.verify() == []
        assert limited.stream("cam").next_segment_no == 2
        assert limited.room("gate") == ""
        filled(limited, 2, "gate")
    with SegmentStore.open(store.root, catalog_url=catalog_url) as unlimited:
        store_segment(unlimited, "cam", epoch, make_kv(2))  # it goes on where it was


@on_both
@pytest.mark.parametrize("limit", ["stream_bytes", "tenant_bytes"])
def test_oldest_make_way_for_a_commit(store: SegmentStore, catalog_url: str, limit: str) -> None:
    epoch = filled(store, 3)
    limits = RetentionConfig(**{limit: 3 * size_of_one(store)}, when_full="oldest")
    with SegmentStore.open(store.root, catalog_url=catalog_url, retention=limits) as limited:
        for no in range(3, 8):
            store_segment(limited, "cam", epoch, make_kv(no))
            assert numbers(limited) == [no - 2, no - 1, no]
        assert limited.verify() == []
        assert limited.stream("cam").gaps == (Gap(0.0, 20.0, "retention"),)
        limited.hold("cam", "case 4711")
        with pytest.raises(StoreFullError, match=limit):
            store_segment(limited, "cam", epoch, make_kv(8))
        assert limited.verify() == []
