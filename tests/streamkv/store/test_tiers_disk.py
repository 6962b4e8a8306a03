"""Segments that leave the disk and come back: a question never sees the difference."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
import torch
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
from tiered_store import Tiered, damage, last_used, local, places, read

from streamkv.config import StoreConfig
from streamkv.errors import ConfigError, CorruptSegmentError, MissingObjectError, ObjectStoreError
from streamkv.store import ObjectStore, SegmentPlace, SegmentStore
from streamkv.store.codecs import CODECS
from streamkv.store.local_disk import ABANDONED_S


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


def test_a_file_that_another_process_fetches_just_after_it_was_missed_is_read(
    tiered: Tiered, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tiered.open() as store:
        filled(store, 2)
    with tiered.open(0.1) as store:
        store.offload()
        assert local(store) == []
        files = store.reader("cam").snapshot._files
        look_up = files._look_up

        def look_up_late(stream_id: str, segment_no: int) -> SegmentPlace | None:
            with tiered.open(read_only=True) as other:
                read(other, segment_no)
            return look_up(stream_id, segment_no)

        monkeypatch.setattr(files, "_look_up", look_up_late)
        read(store, 1)
        assert local(store) == [1]


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


def codecs(store: SegmentStore) -> list[str]:
    return [place.codec for place in places(store)]


@on_both
def test_what_leaves_is_written_in_the_codec_of_beyond_first(tiered: Tiered) -> None:
    with tiered.open() as store:
        filled(store, 5)
        store.offload()
        last_used(store, 3, 1, 4, 0, 2)
    with tiered.open(5, remote_codec="int8") as store:
        assert store.offload().num_uploaded == 0, "none has to leave"
    with tiered.open(3, remote_codec="int8") as store:
        done = store.offload()
        assert (done.num_uploaded, done.num_deleted) == (2, 2)
        assert local(store) == [0, 2, 4]
        assert codecs(store) == ["raw", "int8", "raw", "int8", "raw"]
        assert tiered.objects == [place.path for place in places(store)]
        assert store.verify(read_objects=True) == []
        assert store.offload().num_uploaded == 0
        read(store, 0, 2, 4)
    with tiered.open(9, read_only=True, remote_codec="int8") as reader:
        keys, kv = reader.reader("cam").snapshot.gather(0, np.array([3]), np.array([1])).keys_bNGd, make_kv(3)
        rows = CODECS["int8"].encode(kv.layers[0].keys_bNGd[1:2], keys=True)
        assert torch.equal(keys, CODECS["int8"].decode(rows, IDENTITY.geometry, keys.dtype, keys=True))


def test_a_process_that_only_reads_lets_none_leave_in_the_larger_codec(tiered: Tiered) -> None:
    with tiered.open() as store:
        filled(store, 4)
        store.offload()
    with tiered.open(3.5, remote_codec="int8") as store:
        store.offload()
        assert codecs(store) == ["int8", "raw", "raw", "raw"]
    with tiered.open(1, read_only=True, remote_codec="int8") as reader:
        reader.reader("cam").snapshot._file(0)
        assert local(reader) == [0, 1, 2, 3], "over its budget until the writer's next round"
        last_used(reader, 0, 1, 2, 3)
    with tiered.open(1, remote_codec="int8") as store:
        store.offload()
        assert local(store) == [3]
        assert codecs(store) == ["int8", "int8", "int8", "raw"]


def test_on_hold_they_leave_as_they_are_and_so_they_do_from_a_full_disk(tiered: Tiered) -> None:
    with tiered.open() as store:
        filled(store, 3)
        store.offload()
        store.hold("cam", "case 4711")
    with tiered.open(1, remote_codec="int8") as store:
        assert store.offload().num_uploaded == 0
        assert (len(local(store)), codecs(store)) == (1, ["raw"] * 3)
        store.release("cam")
        read(store, 0, 1, 2)
        assert len(local(store)) == 3
        store._remote().disk.free(3 * tiered.one_bytes)
        assert (local(store), codecs(store)) == ([], ["raw"] * 3)


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        (
            {"remote_codec": "int8"},
            r"store\.remote_codec: got 'int8', allowed nothing without store\.local_bytes",
        ),
        ({"remote_codec": "zip", "local_bytes": 9}, r"store\.remote_codec: unknown 'zip'"),
    ],
)
def test_a_codec_of_beyond_that_cannot_be_is_said(
    tiered: Tiered, settings: dict[str, Any], error: str
) -> None:
    with pytest.raises(ConfigError, match=error):
        SegmentStore.configured(StoreConfig(root=str(tiered.root), remote=tiered.prefix, **settings))
