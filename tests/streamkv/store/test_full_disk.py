"""A disk without room: nothing committed is lost, nothing half remains, and it goes on once there is room."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from small_disk import leave_free, small_disk
from store_samples import IDENTITY, check_segments, make_kv, segment_files, store_segment

from streamkv.config import AgeingStep, RetentionConfig
from streamkv.errors import StoreFullError
from streamkv.store import Gap, ObjectStore, SegmentStore, write_segment

MB = 1 << 20
OLDEST = RetentionConfig(when_full="oldest")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Of 4 MB; a segment is 8 kB."""
    with small_disk(tmp_path / "disk", 4 * MB) as folder:
        yield folder


def opened(
    tmp_path: Path, retention: RetentionConfig | None = None, objects: ObjectStore | None = None
) -> SegmentStore:
    """A store whose segments alone lie on the small disk."""
    url = f"sqlite:///{tmp_path}/catalog.sqlite"
    return SegmentStore.open(
        tmp_path / "disk" / "root",
        catalog_url=url,
        identity=IDENTITY,
        retention=retention,
        objects=objects,
    )


def fill(store: SegmentStore, epoch: int) -> int:
    """Commits segments until one does not fit; how many the stream has then."""
    for no in range(store.stream("cam").next_segment_no, 1000):
        try:
            store_segment(store, "cam", epoch, make_kv(no))
        except StoreFullError:
            return no
    raise AssertionError("the disk never fills")


def test_full_disk_loses_nothing_and_leaves_nothing_half(disk: Path, tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        store.add_stream("cam", "file:x")
        assert store.room("cam") == ""
        epoch = store.begin_writing("cam")
        ballast = leave_free(disk, 50_000)
        assert "disk full" in store.room("cam")
        count = fill(store, epoch)
        assert count > 2
        assert "disk full" in store.room("cam")
        assert store.verify() == []
        check_segments(store.reader("cam").snapshot, count)
        ballast.unlink()
        assert store.room("cam") == ""
        store_segment(store, "cam", epoch, make_kv(count))
        check_segments(store.reader("cam").snapshot, count + 1)
        assert store.verify() == []


def test_segments_that_are_elsewhere_too_leave_a_full_disk_before_any_is_deleted(
    disk: Path, tmp_path: Path
) -> None:
    far = ObjectStore(f"file://{tmp_path}/far")
    with opened(tmp_path, OLDEST, far) as store:
        store.add_stream("cam", "file:x")
        epoch = store.begin_writing("cam")
        for no in range(6):
            store_segment(store, "cam", epoch, make_kv(no))
        store.offload()
        leave_free(disk, 9_000)
        assert store.room("cam") == ""
        store_segment(store, "cam", epoch, make_kv(6))
        assert store.stream("cam").gaps == ()
        assert 0 < len(segment_files(store)) < 7
        assert store.verify() == []


def test_oldest_segments_make_room_on_a_full_disk(disk: Path, tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        for name, tenant in (("cam", ""), ("gate", "else")):
            store.add_stream(name, "file:x", tenant=tenant)
        store_segment(store, "gate", store.begin_writing("gate"), make_kv(0))
        epoch = store.begin_writing("cam")
        leave_free(disk, 100_000)
        count = fill(store, epoch)
    with opened(tmp_path, OLDEST) as store:
        assert store.room("cam") == ""
        assert 0 < store.segments("cam", 0, 1)[0].segment_no < 4
        for no in range(count, count + 30):  # from now on each makes room for the next
            store_segment(store, "cam", epoch, make_kv(no))
        info = store.stream("cam")
        assert info.gaps == (Gap(0.0, 4.0 * (info.next_segment_no - info.num_segments), "retention"),)
        assert info.num_segments > count // 2
        assert store.stream("gate").num_segments == 1  # another tenant's
        assert store.verify() == []


def test_ageing_on_a_full_disk_changes_nothing(disk: Path, tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        store.add_stream("cam", "file:x")
        epoch = store.begin_writing("cam")
        ballast = leave_free(disk, 50_000)
        count = fill(store, epoch)
        rest = leave_free(disk, 0, "rest")
        with pytest.raises(StoreFullError):
            store.age("cam", [AgeingStep(0, "int8")])
        check_segments(store.reader("cam").snapshot, count)
        assert store.verify() == []
        ballast.unlink()
        rest.unlink()
        assert store.age("cam", [AgeingStep(0, "int8")]).num_segments == count


def test_catalog_on_a_full_disk_refuses_the_commit_and_stays_whole(disk: Path) -> None:
    with SegmentStore.open(disk / "root", identity=IDENTITY) as store:
        store.add_stream("cam", "file:x")
        epoch = store.begin_writing("cam")
        store_segment(store, "cam", epoch, make_kv(0))
        written = write_segment(store.root, IDENTITY, "cam", epoch, make_kv(1))
        ballast = leave_free(disk, 0)
        with pytest.raises(StoreFullError, match="catalog sqlite"):
            store.commit(written)
        check_segments(store.reader("cam").snapshot, 1)
        assert store.verify() == []  # the file that found no row is gone
        ballast.unlink()
        store_segment(store, "cam", epoch, make_kv(1))
    with SegmentStore.open(disk / "root") as again:
        check_segments(again.reader("cam").snapshot, 2)
        assert again.verify() == []
