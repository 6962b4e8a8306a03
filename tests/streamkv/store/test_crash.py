"""A process may stop at any step of writing and committing: what it acknowledged is there once, nothing half.

`Disk` stops the process by an exception that no handler of ours catches, before or after each step. With
`power_cut` it also takes back what no fsync had brought to disk: bytes of files, and names in folders.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pytest
from sqlalchemy import event
from sqlalchemy.orm import Session
from store_samples import (
    IDENTITY,
    assert_same_segment,
    check_segments,
    filled,
    make_kv,
    on_both,
    store_segment,
)

from streamkv.config import AgeingStep, RetentionConfig
from streamkv.store import SegmentStore, durable, write_segment

STEPS = [
    f"{when} {step}"
    for step in ("write", "sync_file", "rename", "sync_folder", "insert")
    for when in ("before", "during")
]
"""`during`: the step is done, but the caller does not learn of it; of a write, half is done."""


AGEING_STEPS = [*STEPS, "before remove", "during remove"]
RETENTION_STEPS = [f"{when} {step}" for step in ("insert", "remove") for when in ("before", "during")]


class Stopped(BaseException):
    """The process is no more."""


class Disk:
    """Stops at one step, and knows what is really on disk."""

    def __init__(self, stop_at: str) -> None:
        self.stop_at = stop_at
        self.unsynced_files: set[Path] = set()
        self.unsynced_names: list[tuple[Path, Path]] = []
        self.steps: list[str] = []
        self._real_write, self._real_sync = durable.write_temp, durable.sync_file
        self._real_rename, self._real_sync_folder = durable.rename, durable.sync_folder
        self._real_remove = durable.remove

    @contextmanager
    def in_place(self, patch: pytest.MonkeyPatch) -> Iterator[None]:
        """Every step of the store goes through this disk."""
        hooks = {"before_commit": self.before_insert, "after_commit": self.during_insert}
        for name, hook in hooks.items():
            event.listen(Session, name, hook)
        try:
            with patch.context() as steps:
                for name in ("write_temp", "sync_file", "rename", "sync_folder", "remove"):
                    steps.setattr(durable, name, getattr(self, name))
                yield
        finally:
            for name, hook in hooks.items():
                event.remove(Session, name, hook)

    def step(self, name: str) -> None:
        self.steps.append(name)
        if name == self.stop_at:
            raise Stopped(name)

    def write_temp(self, temp: Path, write: Callable[[BinaryIO], object]) -> None:
        self.step("before write")
        self.unsynced_files.add(temp)

        def half(file: BinaryIO) -> None:
            write(file)
            if self.stop_at == "during write":
                file.truncate(file.tell() // 2)
            self.step("during write")

        self._real_write(temp, half)

    def sync_file(self, file: BinaryIO) -> None:
        self.step("before sync_file")
        self._real_sync(file)
        self.unsynced_files.discard(Path(file.name))
        self.step("during sync_file")

    def rename(self, temp: Path, final: Path) -> None:
        self.step("before rename")
        self._real_rename(temp, final)
        self.unsynced_names.append((temp, final))
        self.step("during rename")

    def sync_folder(self, folder: Path) -> None:
        if not self.unsynced_names:  # a new folder's own name
            self._real_sync_folder(folder)
            return
        self.step("before sync_folder")
        self._real_sync_folder(folder)
        self.unsynced_names.clear()
        self.step("during sync_folder")

    def remove(self, path: Path) -> None:
        self.step("before remove")
        self._real_remove(path)
        self.step("during remove")

    def before_insert(self, session: Session) -> None:
        self.step("before insert")

    def during_insert(self, session: Session) -> None:
        self.step("during insert")

    def cut_power(self) -> None:
        for temp, final in reversed(self.unsynced_names):
            os.replace(final, temp)
        for path in self.unsynced_files:
            if path.exists():
                os.truncate(path, path.stat().st_size // 3)


@on_both
@pytest.mark.parametrize("power_cut", [False, True])
@pytest.mark.parametrize("stop_at", STEPS)
def test_stop_at_any_step_loses_and_doubles_nothing(
    tmp_path: Path, catalog_url: str, monkeypatch: pytest.MonkeyPatch, stop_at: str, power_cut: bool
) -> None:
    root = tmp_path / "root"
    with SegmentStore.open(root, catalog_url=catalog_url, identity=IDENTITY) as store:
        store.add_stream("cam", "file:x")
        epoch = filled(store, 2)  # acknowledged
        disk = Disk(stop_at)
        with disk.in_place(monkeypatch), pytest.raises(Stopped):
            store.commit(write_segment(root, IDENTITY, "cam", epoch, make_kv(2)))
        if power_cut:
            disk.cut_power()
    assert disk.steps == STEPS[: STEPS.index(stop_at) + 1]
    third_is_there = stop_at == "during insert"

    with SegmentStore.open(root, catalog_url=catalog_url, identity=IDENTITY) as store:
        assert store.stream("cam").num_segments == 2 + third_is_there
        check_segments(store.reader("cam").snapshot, 2 + third_is_there)
        assert {problem.kind for problem in store.verify()} <= {"extra"}  # nothing that a row names is amiss
        epoch = store.begin_writing("cam")
        assert store.verify() == []
        place = write_segment(root, IDENTITY, "cam", epoch, make_kv(2))
        assert store.commit(place) is not third_is_there
        store_segment(store, "cam", epoch, make_kv(3))
        check_segments(store.reader("cam").snapshot, 4)
        store.begin_writing("cam")
        assert store.verify() == []


@on_both
@pytest.mark.parametrize("power_cut", [False, True])
@pytest.mark.parametrize("stop_at", AGEING_STEPS)
def test_stop_at_any_step_of_ageing_leaves_every_segment_whole(
    tmp_path: Path, catalog_url: str, monkeypatch: pytest.MonkeyPatch, stop_at: str, power_cut: bool
) -> None:
    """Segment 0 is stopped at; done again, it and segment 1 are aged and nothing else is left."""
    root, policy = tmp_path / "root", [AgeingStep(0, "int8", keep_ratio=0.25)]  # of 6 blocks 3
    with SegmentStore.open(root, catalog_url=catalog_url, identity=IDENTITY) as store:
        store.add_stream("cam", "file:x")
        filled(store, 2)
        disk = Disk(stop_at)
        with disk.in_place(monkeypatch), pytest.raises(Stopped):
            store.age("cam", policy)
        if power_cut:
            disk.cut_power()
    assert disk.steps == AGEING_STEPS[: AGEING_STEPS.index(stop_at) + 1]
    is_aged = stop_at in AGEING_STEPS[-3:]

    with SegmentStore.open(root, catalog_url=catalog_url, identity=IDENTITY) as store:
        assert [p.codec for p in store.segments("cam", 0, 9)] == ["int8" if is_aged else "raw", "raw"]
        assert {problem.kind for problem in store.verify()} <= {"extra"}
        blocks = [IDENTITY.num_blocks(p.kv_bytes) for p in store.segments("cam", 0, 9)]
        assert blocks == [store.reader("cam").snapshot._file(no).num_blocks for no in range(2)]
        assert blocks == [3 if is_aged else 6, 6]
        if not is_aged:
            check_segments(store.reader("cam").snapshot, 2)
        store.begin_writing("cam")
        assert store.verify() == []
        assert store.age("cam", policy).num_segments == 2 - is_aged
        assert [p.codec for p in store.segments("cam", 0, 9)] == ["int8", "int8"]
        assert store.verify() == []


@on_both
@pytest.mark.parametrize("stop_at", RETENTION_STEPS)
def test_stop_at_any_step_of_retention_leaves_nothing_half(
    tmp_path: Path, catalog_url: str, monkeypatch: pytest.MonkeyPatch, stop_at: str
) -> None:
    """The rows go in one transaction, here its `insert`; with them nobody sees the segments any more."""
    root = tmp_path / "root"
    with SegmentStore.open(root, catalog_url=catalog_url, identity=IDENTITY) as store:
        store.add_stream("cam", "file:x")
        filled(store, 4)
        policy = RetentionConfig(
            stream_bytes=2 * store.segments("cam", 0, 1)[0].file_bytes, when_full="oldest"
        )
        disk = Disk(stop_at)
        with disk.in_place(monkeypatch), pytest.raises(Stopped):
            store.retain(policy)
    is_done = stop_at != "before insert"

    with SegmentStore.open(root, catalog_url=catalog_url, identity=IDENTITY) as store:
        assert [p.segment_no for p in store.segments("cam", 0, 9)] == ([2, 3] if is_done else [0, 1, 2, 3])
        assert store.verify() == []
        assert len(store.retain(policy)) == 1 - is_done
        assert store.verify() == []
        for no in (2, 3):
            assert_same_segment(store.reader("cam").snapshot._file(no).segment_kv(), make_kv(no))
