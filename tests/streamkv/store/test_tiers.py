"""Segments in an object store behind the disk: what was committed stays readable, or its loss is named.

The object store is a real S3 server, in a process of its own.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
import torch
from s3_server import S3Server
from store_samples import (
    IDENTITY,
    assert_same_segment,
    check_segments,
    filled,
    make_kv,
    on_both,
    segment_files,
    store_segment,
)

from streamkv.config import AgeingStep, RetentionConfig
from streamkv.errors import (
    ConfigError,
    CorruptSegmentError,
    ForeignStoreError,
    MissingObjectError,
    ObjectStoreError,
    StoreError,
)
from streamkv.store import Gap, ObjectStore, Offloaded, SegmentPlace, SegmentStore, write_segment
from streamkv.store.local_disk import ABANDONED_S
from streamkv.store.repair import rebuild_catalog


class Tiered:
    """A store and its bucket; `open` is what another process would do."""

    def __init__(self, s3: S3Server, root: Path, catalog_url: str) -> None:
        self.s3, self.root, self.catalog_url = s3, root, catalog_url
        self.prefix = s3.new_prefix()
        self.one_bytes = write_segment(root.parent / "size", IDENTITY, "cam", 1, make_kv()).file_bytes

    def open(self, segments: float = 0, *, read_only: bool = False, remote: bool = True) -> SegmentStore:
        """`segments`: how many the local disk may have; all are as large."""
        return SegmentStore.open(
            self.root,
            catalog_url=self.catalog_url,
            identity=IDENTITY,
            read_only=read_only,
            objects=ObjectStore(self.prefix, self.s3.config) if remote else None,
            local_bytes=int(segments * self.one_bytes) if segments else 0,
        )

    @property
    def objects(self) -> list[str]:
        return sorted(self.s3.objects(self.prefix))


@pytest.fixture
def tiered(s3: S3Server, tmp_path: Path, catalog_url: str) -> Tiered:
    """A new store with a stream `cam`."""
    made = Tiered(s3, tmp_path / "root", catalog_url)
    with made.open() as store:
        store.add_stream("cam", "file:cam.mp4")
    return made


def places(store: SegmentStore) -> list[SegmentPlace]:
    return store.segments("cam", 0, 99)


def local(store: SegmentStore) -> list[int]:
    """Numbers of the segments that are on the disk."""
    return [int(Path(path).name.partition(".")[0]) for path in segment_files(store)]


def read(store: SegmentStore, *numbers: int) -> None:
    for no in numbers:
        assert_same_segment(store.reader("cam").snapshot._file(no).segment_kv(), make_kv(no))


def last_used(store: SegmentStore, *numbers: int) -> None:
    """As if these had been used in this order, long ago."""
    by_number = {place.segment_no: store.root / place.path for place in places(store)}
    for i, no in enumerate(numbers):
        os.utime(by_number[no], (1_000_000 + i, by_number[no].stat().st_mtime))


def damage(data: bytes) -> bytes:
    """One bit is another, in the middle."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :]


# ---------------------------------------------------------------- up


@on_both
def test_committed_segments_are_uploaded_and_the_catalog_knows(tiered: Tiered) -> None:
    with tiered.open() as store:
        filled(store, 3)
        assert tiered.objects == []  # not by the commit
        assert (store.tiers().uploads.num_waiting, store.tiers().uploads.num_uploaded) == (3, 0)
        seen: list[tuple[int, int]] = []
        done = store.offload(lambda *at: seen.append(at))
        assert (done.num_uploaded, done.uploaded_bytes) == (3, 3 * tiered.one_bytes)
        assert seen == [(1, 3), (2, 3), (3, 3)]
        assert tiered.objects == segment_files(store)
        for path in tiered.objects:
            assert tiered.s3.read(tiered.prefix, path) == (store.root / path).read_bytes()
        assert (store.tiers().uploads.num_waiting, store.tiers().uploads.num_uploaded) == (0, 3)
        assert store.offload() == Offloaded()
        assert store.verify(read_objects=True) == []


def test_uncommitted_segment_is_not_uploaded(tiered: Tiered) -> None:
    with tiered.open() as store:
        epoch = filled(store, 1)
        write_segment(store.root, IDENTITY, "cam", epoch, make_kv(1))
        store.offload()
        assert tiered.objects == [place.path for place in places(store)]


def test_object_that_reads_otherwise_than_written_does_not_count(
    tiered: Tiered, monkeypatch: pytest.MonkeyPatch
) -> None:
    def put_half(self: ObjectStore, path: str, data: bytes) -> None:
        real_put(self, path, bytes(data)[: len(data) // 2])

    real_put = ObjectStore.put
    with tiered.open(0.1) as store:
        filled(store, 1)
        store.offload()  # the marker, and a segment
        store_segment(store, "cam", places(store)[0].epoch, make_kv(1))
        with monkeypatch.context() as patch:
            patch.setattr(ObjectStore, "put", put_half)
            with pytest.raises(ObjectStoreError, match=r"00000001\..*reads otherwise"):
                store.offload()
        assert local(store) == [1]
        assert store.offload().num_uploaded == 1
        read(store, 0, 1)


def test_damaged_file_is_not_uploaded_and_others_are(tiered: Tiered) -> None:
    with tiered.open() as store:
        filled(store, 3)
        path = store.root / places(store)[1].path
        whole = path.read_bytes()
        path.unlink()
        path.write_bytes(damage(whole))
        done = store.offload()
        assert done.num_uploaded == 2
        assert [path.name in reason for reason in done.failed] == [True]
        assert places(store)[1].path not in tiered.objects
        path.unlink()
        path.write_bytes(whole)
        assert store.offload().num_uploaded == 1


@on_both
def test_stop_between_upload_and_its_note_uploads_again(
    tiered: Tiered, monkeypatch: pytest.MonkeyPatch
) -> None:
    class StoppedError(BaseException):
        pass

    def stop(*_: object) -> None:
        raise StoppedError

    with tiered.open(1) as store:
        filled(store, 2)
        with monkeypatch.context() as patch:
            patch.setattr(store._catalog.objects, "note_uploaded", stop)
            with pytest.raises(StoppedError):
                store.offload()
        assert len(tiered.objects) == 1
        assert local(store) == [0, 1]
    with tiered.open() as store:
        assert store.verify() == []
        assert store.offload().num_uploaded == 2
        assert tiered.objects == segment_files(store)
        read(store, 0, 1)


# ---------------------------------------------------------------- a bucket that fails


@on_both
def test_bucket_that_is_away_delays_uploads_and_no_commit(tiered: Tiered) -> None:
    with tiered.open() as store:
        epoch = filled(store, 2)
        store.offload()
        with tiered.s3.away():
            for no in (2, 3):
                store_segment(store, "cam", epoch, make_kv(no))
            with pytest.raises(ObjectStoreError, match="s3://"):
                store.offload()
            state = store.tiers()
            assert (state.uploads.num_waiting, state.uploads.waiting_bytes) == (2, 2 * tiered.one_bytes)
            assert tiered.prefix in state.unreachable
            check_segments(store.reader("cam").snapshot, 4)
        assert store.tiers().unreachable == ""
        assert store.offload().num_uploaded == 2
        assert store.verify(read_objects=True) == []


def test_bucket_that_hangs_is_given_up(tiered: Tiered) -> None:
    with tiered.open() as store:
        filled(store, 1)
        with tiered.s3.hung(), pytest.raises(ObjectStoreError):
            store.offload()
        assert store.offload().num_uploaded == 1


def test_file_that_is_away_with_its_bucket_is_named_and_comes_back(tiered: Tiered) -> None:
    with tiered.open() as store:
        filled(store, 3)
    with tiered.open(0.1) as store:
        store.offload()
        assert local(store) == []
        with tiered.s3.away():
            with pytest.raises(ObjectStoreError, match=r"s3://.*/streams/cam/00000001\."):
                read(store, 1)
            with pytest.raises(ObjectStoreError):
                store.verify()
            assert store.tiers().uploads.num_uploaded == 3
        read(store, 0, 1, 2)


def test_slow_bucket_serves_all_the_same(tiered: Tiered) -> None:
    with tiered.open() as store:
        filled(store, 2)
    with tiered.s3.slow(0.1), tiered.open(0.1) as store:
        assert store.offload().num_uploaded == 2
        assert local(store) == []
        read(store, 0, 1)


# ---------------------------------------------------------------- leaving the disk, and coming back


@on_both
def test_least_recently_used_leave_first(tiered: Tiered) -> None:
    with tiered.open() as store:
        filled(store, 5)
        store.offload()
        last_used(store, 3, 1, 4, 0, 2)
    with tiered.open(3) as store:
        store.offload()
        assert local(store) == [0, 2, 4]
        assert store.verify() == []


def test_use_by_a_process_that_only_reads_counts(tiered: Tiered, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of files that it has had open for long, which the operating system does not note."""
    monkeypatch.setattr("streamkv.store.reader.NOTE_S", -1.0)
    with tiered.open() as store:
        filled(store, 4)
        store.offload()
    with tiered.open(read_only=True) as reader:
        read(reader, 0, 1, 2, 3)
        last_used(reader, 0, 1, 2, 3)
        read(reader, 1, 0)
    with tiered.open(2) as store:
        store.offload()
        assert local(store) == [0, 1]


def test_upload_and_verify_are_no_use(tiered: Tiered) -> None:
    with tiered.open() as store:
        filled(store, 3)
        last_used(store, 2, 0, 1)
        store.offload()
        assert store.verify() == []
    with tiered.open(1) as store:
        store.offload()
        assert local(store) == [1]


def test_what_waits_for_its_upload_stays_whatever_the_budget(tiered: Tiered) -> None:
    with tiered.open() as store:
        epoch = filled(store, 2)
    with tiered.open(0.1) as store:
        store.offload()
        with tiered.s3.away():
            store_segment(store, "cam", epoch, make_kv(2))
            with pytest.raises(ObjectStoreError):
                store.offload()
            assert local(store) == [2]


@on_both
def test_questions_find_the_same_after_all_has_left_the_disk(tiered: Tiered) -> None:
    with tiered.open() as store:
        filled(store, 6)
    with tiered.open(2) as store:
        store.offload()
        assert len(local(store)) == 2
    for read_only in (True, False):
        with tiered.open(2, read_only=read_only) as store:
            snapshot = store.reader("cam").snapshot
            check_segments(snapshot, 6)
            assert len(snapshot.table(0).segment_nos) == 24
            nos, slots = np.array([5, 0, 3]), np.array([1, 2, 3])
            blocks = snapshot.gather(0, nos, slots)
            for i, (no, slot) in enumerate(zip(nos, slots, strict=True)):
                assert torch.equal(blocks.keys_bNGd[i], make_kv(int(no)).layers[0].keys_bNGd[slot])
            assert len(local(store)) <= 3


def test_segment_that_came_back_has_its_name_only_when_it_is_whole(tiered: Tiered) -> None:
    with tiered.open() as store:
        filled(store, 2)
    with tiered.open(0.1) as store:
        store.offload()
        cut, flipped = (place.path for place in places(store))
        whole = {path: tiered.s3.read(tiered.prefix, path) for path in (cut, flipped)}
        tiered.s3.write(tiered.prefix, cut, whole[cut][:-9])
        tiered.s3.write(tiered.prefix, flipped, damage(whole[flipped]))
        for path in (cut, flipped):
            no = int(Path(path).name.partition(".")[0])
            with pytest.raises(CorruptSegmentError, match=f"{tiered.prefix}/{path}: damaged object"):
                read(store, no)
            assert segment_files(store) == []
            tiered.s3.delete(tiered.prefix, path)
            with pytest.raises(MissingObjectError, match=f"{tiered.prefix}/{path}: the object is missing"):
                read(store, no)
            tiered.s3.write(tiered.prefix, path, whole[path])
            read(store, no)


def test_threads_that_want_one_file_fetch_it_once(tiered: Tiered) -> None:
    with tiered.open() as store:
        filled(store, 1)
    with tiered.open(0.1) as store:
        store.offload()
    with tiered.open() as store, tiered.s3.slow(0.05):
        snapshot, failed = store.reader("cam").snapshot, []

        def ask() -> None:
            try:
                assert_same_segment(snapshot._file(0).segment_kv(), make_kv(0))
            except BaseException as exc:
                failed.append(exc)

        before = len(tiered.s3.gate.requests)
        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failed == []
        wanted = [line for line in tiered.s3.gate.requests[before:] if line.startswith("GET")]
        assert len(wanted) == 1


def test_candidates_of_a_question_are_fetched_side_by_side(
    tiered: Tiered, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None comes before another is on its way, too."""
    both = threading.Barrier(2, timeout=30)

    def get_with_another(self: ObjectStore, path: str, file: BinaryIO) -> None:
        both.wait()
        real_get(self, path, file)

    real_get = ObjectStore.get
    with tiered.open() as store:
        filled(store, 6)
    with tiered.open(0.1) as store:
        store.offload()
    with tiered.open() as store:
        monkeypatch.setattr(ObjectStore, "get", get_with_another)
        table = store.reader("cam").snapshot.table(0, np.arange(6))
        assert table.segment_nos.tolist() == np.repeat(np.arange(6), 4).tolist()


def test_stores_that_want_one_file_at_once_both_get_it(tiered: Tiered) -> None:
    """As two processes would: neither knows of the other, and each publishes its own copy."""
    with tiered.open() as store:
        filled(store, 2)
    with tiered.open(0.1) as store:
        store.offload()
    failed: list[BaseException] = []

    def ask() -> None:
        try:
            with tiered.open(0.1, read_only=True) as store:
                for _ in range(3):
                    read(store, 0, 1)
        except BaseException as exc:
            failed.append(exc)

    with tiered.open() as store:
        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failed == []
        assert store.verify() == []


def test_maps_of_files_that_left_are_let_go(tiered: Tiered, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamkv.store.reader.NOTE_S", -1.0)
    with tiered.open() as store:
        filled(store, 2)
        store.offload()
        read(store, 0)
        with tiered.open(0.1) as other:
            other.offload()
        read(store, 1)
        assert [file.path.name[:8] for file in store._files._open.values()] == ["00000001"]


def test_fetch_that_was_cut_off_is_collected(tiered: Tiered) -> None:
    with tiered.open() as store:
        epoch = filled(store, 1)
        half = store.root / "streams/cam" / f".00000000.e{epoch:06d}.{'0' * 32}.fetch"
        half.write_bytes(b"half")
        store.begin_writing("cam")  # a reader may be at it
        store.offload()
        assert half.exists()
        assert [problem.path for problem in store.verify()] == [half.relative_to(store.root).as_posix()]
        os.utime(half, (half.stat().st_atime, half.stat().st_mtime - ABANDONED_S - 1))
    with tiered.open(9) as store:
        store.offload()
        assert not half.exists()


# ---------------------------------------------------------------- deleting


@on_both
def test_retention_and_removal_delete_objects(tiered: Tiered) -> None:
    with tiered.open() as store:
        store.add_stream("gate", "file:gate.mp4")
        filled(store, 4)
        filled(store, 2, "gate")
    with tiered.open(1) as store:
        store.offload()
        store.retain(RetentionConfig(stream_bytes=2 * tiered.one_bytes, when_full="oldest"), "cam")
        store.remove_stream("gate")
        assert store.tiers().uploads.num_removed == 4
        assert store.verify() == []  # they are to go, and nobody's no more
        assert store.offload().num_deleted == 4
        assert tiered.objects == [place.path for place in places(store)]
        assert store.tiers().uploads.num_removed == 0
        read(store, 2, 3)


def test_deletion_does_not_wait_for_the_bucket(tiered: Tiered) -> None:
    with tiered.open() as store:
        filled(store, 2)
        store.offload()
        with tiered.s3.away():
            store.remove_stream("cam")
            with pytest.raises(ObjectStoreError):
                store.offload()
        assert len(tiered.objects) == 2
    with tiered.open() as store:
        assert store.offload().num_deleted == 2
        assert tiered.objects == []


@on_both
def test_aged_segment_takes_the_place_of_its_object(tiered: Tiered) -> None:
    with tiered.open() as store:
        filled(store, 3)
    with tiered.open(1) as store:
        store.offload()
        assert store.age("cam", [AgeingStep(0, "int4")]).num_segments == 3
        done = store.offload()
        assert (done.num_uploaded, done.num_deleted) == (3, 3)
        assert tiered.objects == [place.path for place in places(store)]
        assert store.verify(read_objects=True) == []


def test_segment_deleted_while_it_was_uploaded_leaves_no_object(
    tiered: Tiered, monkeypatch: pytest.MonkeyPatch
) -> None:
    def put_then_delete(self: ObjectStore, path: str, data: bytes) -> None:
        real_put(self, path, data)
        if path.startswith("streams/"):
            with tiered.open() as other:
                other.remove_stream("cam")

    real_put = ObjectStore.put
    with tiered.open() as store:
        filled(store, 1)
        with monkeypatch.context() as patch:
            patch.setattr(ObjectStore, "put", put_then_delete)
            store.offload()
        assert store.offload().num_deleted == 1
        assert tiered.objects == []


def test_segment_deleted_while_it_was_fetched_leaves_no_file(
    tiered: Tiered, monkeypatch: pytest.MonkeyPatch
) -> None:
    def get_then_delete(self: ObjectStore, path: str, file: BinaryIO) -> None:
        real_get(self, path, file)
        with tiered.open() as other:
            other.remove_stream("cam")

    real_get = ObjectStore.get
    with tiered.open() as store:
        filled(store, 1)
    with tiered.open(0.1) as store:
        store.offload()
        snapshot = store.reader("cam").snapshot
        monkeypatch.setattr(ObjectStore, "get", get_then_delete)
        assert_same_segment(snapshot._file(0).segment_kv(), make_kv(0))
        assert segment_files(store) == []


# ---------------------------------------------------------------- verify and repair


@on_both
def test_verify_names_what_is_wrong_with_objects_and_repair_mends_it(tiered: Tiered) -> None:
    with tiered.open() as store:
        filled(store, 6)
        store.offload()
        paths = [place.path for place in places(store)]
        stray = "streams/cam/00000099.e000001.00000000.arrow"
        tiered.s3.write(tiered.prefix, stray, b"nobody's")
        tiered.s3.delete(tiered.prefix, paths[0])
        tiered.s3.write(tiered.prefix, paths[1], tiered.s3.read(tiered.prefix, paths[1])[:-1])
        tiered.s3.write(tiered.prefix, paths[2], damage(tiered.s3.read(tiered.prefix, paths[2])))
        (store.root / paths[3]).unlink()  # left the disk: nothing is wrong
        whole = (store.root / paths[4]).read_bytes()
        (store.root / paths[4]).unlink()
        (store.root / paths[4]).write_bytes(damage(whole))
        sizes_only = {(p.kind, p.tier, p.path) for p in store.verify()}
        assert sizes_only == {
            ("missing", "objects", paths[0]),
            ("corrupt", "objects", paths[1]),
            ("corrupt", "disk", paths[4]),
            ("extra", "objects", stray),
        }
        problems = store.verify(read_objects=True)
        assert {(p.kind, p.tier, p.path) for p in problems} == sizes_only | {("corrupt", "objects", paths[2])}
        assert all(tiered.prefix in p.detail for p in problems if p.tier == "objects")
        assert len(store.repair(problems)) == 5
        assert store.offload().num_uploaded == 3
        assert store.verify(read_objects=True) == []
        read(store, *range(6))
        assert store.stream("cam").gaps == ()


@on_both
def test_segment_that_is_whole_nowhere_becomes_a_gap(tiered: Tiered) -> None:
    with tiered.open() as store:
        filled(store, 3)
    with tiered.open(0.1) as store:
        store.offload()
        paths = [place.path for place in places(store)]
        tiered.s3.delete(tiered.prefix, paths[0])
        cut = tiered.s3.read(tiered.prefix, paths[1])[:-1]
        tiered.s3.write(tiered.prefix, paths[1], cut)
        store.repair(store.verify())
        assert store.stream("cam").gaps == (
            Gap(0.0, 4.0, "segment 0 is missing"),
            Gap(4.0, 8.0, "segment 1 is corrupt"),
        )
        assert tiered.s3.read(tiered.prefix, f"damaged/cam.{Path(paths[1]).name}") == cut
        store.offload()
        assert store.verify(read_objects=True) == []
        read(store, 2)


def test_repair_gives_up_no_segment_while_its_bucket_is_away_or_not_named(tiered: Tiered) -> None:
    with tiered.open() as store:
        filled(store, 2)
    with tiered.open(0.1) as store:
        store.offload()
        problems = []
        with tiered.open(remote=False) as without:
            problems = without.verify()
            assert [p.detail.endswith("it was uploaded: set store.remote") for p in problems] == [True] * 2
            assert without.repair(problems) == []
            assert len(places(without)) == 2
        with tiered.s3.away(), pytest.raises(ObjectStoreError):
            store.repair(problems)
        read(store, 0, 1)


@on_both
def test_lost_catalog_is_made_again_from_files_and_objects(
    s3: S3Server, tmp_path: Path, catalog_url: str
) -> None:
    tiered = Tiered(s3, tmp_path / "root", "")
    with tiered.open() as store:
        store.add_stream("cam", "file:cam.mp4")
        epoch = filled(store, 4)
    with tiered.open(2) as store:
        store.offload()
        store_segment(store, "cam", epoch, make_kv(4))
        before = places(store)
    for path in tiered.root.glob("catalog.sqlite*"):
        path.unlink()
    tiered.catalog_url = catalog_url
    objects = ObjectStore(tiered.prefix, s3.config)
    assert "5 segments" in rebuild_catalog(tiered.root, catalog_url, objects=objects)[0]
    with tiered.open() as store:
        assert places(store) == before
        assert store.verify(read_objects=True) == []
        check_segments(store.reader("cam").snapshot, 5)
        store.offload()
        assert store.tiers().uploads.num_uploaded == 5


def test_lost_disk_is_made_again_from_objects(tiered: Tiered, tmp_path: Path) -> None:
    with tiered.open() as store:
        filled(store, 3)
        store.offload()
        damaged = places(store)[1].path
        tiered.s3.write(tiered.prefix, damaged, damage(tiered.s3.read(tiered.prefix, damaged)))
    tiered.root = tmp_path / "new disk"
    done = rebuild_catalog(tiered.root, objects=ObjectStore(tiered.prefix, tiered.s3.config))
    assert "2 segments are in the catalog again; segment 1 is lost" in done[0]
    assert done[1].endswith(f"damaged; it is {tiered.prefix}/damaged/cam.{Path(damaged).name} now")
    with tiered.open() as store:
        assert store.verify(read_objects=True) == []
        read(store, 0, 2)


# ---------------------------------------------------------------- whose objects


def test_prefix_of_another_store_is_refused(tiered: Tiered, tmp_path: Path) -> None:
    with tiered.open() as store:
        filled(store, 1)
        store.offload()
    mine, tiered.root = tiered.root, tmp_path / "other"
    with tiered.open() as other:
        other.add_stream("cam", "file:cam.mp4")
        filled(other, 1)
        for ask in (other.offload, other.verify, other.tiers, lambda: other.repair([])):
            with pytest.raises(ForeignStoreError, match="another prefix"):
                ask()
    assert tiered.objects == segment_files_below(mine)


def segment_files_below(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.glob("streams/*/*"))


def test_objects_that_nothing_says_are_ours_are_neither_deleted_nor_taken(
    tiered: Tiered, tmp_path: Path
) -> None:
    """As those of a store whose marker is gone."""
    with tiered.open() as store:
        filled(store, 1)
        store.offload()
    tiered.s3.delete(tiered.prefix, "store.json")
    tiered.root = tmp_path / "other"
    with pytest.raises(ForeignStoreError, match=r"store\.json: missing, so nothing says whose the 1 objects"):
        rebuild_catalog(tiered.root, objects=ObjectStore(tiered.prefix, tiered.s3.config))
    with tiered.open() as other:
        other.add_stream("cam", "file:cam.mp4")
        assert other.verify() == []
    assert len(tiered.objects) == 1


def test_empty_prefix_is_not_taken_for_a_loss_of_all(tiered: Tiered) -> None:
    with tiered.open() as store:
        filled(store, 1)
        store.offload()
    tiered.prefix = tiered.s3.new_prefix()
    with tiered.open() as store:
        for ask in (store.offload, store.verify, lambda: store.repair([])):
            with pytest.raises(ForeignStoreError, match=r"missing, though .* check store\.remote"):
                ask()


@pytest.mark.parametrize("uri", ["bucket/prefix", "s3://id:word@bucket/prefix", "s3://bucket/p?scheme=http"])
def test_uri_that_holds_secrets_or_options_is_refused_without_showing_it(uri: str) -> None:
    with pytest.raises(ConfigError, match=r"store\.remote: allowed a URI") as refused:
        ObjectStore(uri)
    assert "word" not in str(refused.value)


def test_folder_does_for_a_bucket(tmp_path: Path) -> None:
    objects = ObjectStore(f"file://{tmp_path}/far")
    with SegmentStore.open(tmp_path / "root", identity=IDENTITY, objects=objects, local_bytes=1) as store:
        store.add_stream("cam", "file:cam.mp4")
        filled(store, 3)
        store.offload()
        assert segment_files(store) == []
        assert [path.is_file() for path in (tmp_path / "far/streams/cam").iterdir()] == [True] * 3
        check_segments(store.reader("cam").snapshot, 3)
        assert store.verify(read_objects=True) == []
        store.remove_stream("cam")
        store.offload()
        assert list((tmp_path / "far/streams/cam").iterdir()) == []


def test_store_without_an_object_store_says_so(store: SegmentStore) -> None:
    for ask in (store.offload, store.tiers):
        with pytest.raises(StoreError, match=r"store\.remote: got none"):
            ask()
