"""What an answer reads from files equals what was written, and stays as it was while the stream grows."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_samples import GEOMETRY, IDENTITY, filled, make_kv, raw, store_segment

from streamkv.errors import CorruptSegmentError, StoreError, UnknownStreamError
from streamkv.memory import VideoMemory
from streamkv.store import SegmentFile, SegmentStore, StreamSnapshot, reader, segment_file

COUNTS = ((4, 0, 2), (1, 3, 0), (0, 0, 0), (5, 2, 2))


@pytest.fixture
def snapshot(store: SegmentStore) -> StreamSnapshot:
    """Four segments, whose layers keep different numbers of blocks."""
    epoch = store.begin_writing("cam")
    for no, counts in enumerate(COUNTS):
        store_segment(store, "cam", epoch, make_kv(no, counts=counts))
    return store.reader("cam").snapshot


def rows(layer: int) -> list[tuple[int, int]]:
    return [(no, slot) for no, counts in enumerate(COUNTS) for slot in range(counts[layer])]


def test_snapshot_is_a_video_memory(snapshot: StreamSnapshot) -> None:
    memory: VideoMemory = snapshot
    assert memory.geometry == GEOMETRY
    assert memory.as_of_s == 16.0
    spans = [(s.segment_no, s.start_s, s.end_s, s.num_frames) for s in memory.segments]
    assert spans == [(no, 4.0 * no, 4.0 * no + 4.0, 4) for no in range(4)]


def test_who_does_not_search_reads_no_vectors(
    store: SegmentStore, snapshot: StreamSnapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(store._vectors), "read", lambda *_: 1 / 0)
    memory = store.reader("cam", searchable=False).snapshot
    assert memory.segments == snapshot.segments
    assert torch.equal(memory.table(0).mean_keys, snapshot.table(0).mean_keys)
    assert len(memory.search(0, torch.randn(GEOMETRY.summary_dim), 9)) == 0
    with pytest.raises(ZeroDivisionError):
        store.reader("cam")


def test_empty_stream_has_nothing(store: SegmentStore) -> None:
    memory = store.reader("cam").snapshot
    assert (memory.as_of_s, memory.segments) == (0.0, ())
    assert memory.search(0, torch.ones(10), 5).size == 0
    assert memory.table(0).num_blocks == 0
    assert memory.table(0).mean_keys.shape == (0, GEOMETRY.summary_dim)
    nothing = memory.gather(0, np.empty(0, np.int64), np.empty(0, np.int64))
    assert nothing.keys_bNGd.shape == (0, 7, 2, 5)
    assert nothing.keys_bNGd.dtype == torch.float32


@pytest.mark.parametrize("layer", range(3))
def test_table_lists_every_block_in_time_order(snapshot: StreamSnapshot, layer: int) -> None:
    table = snapshot.table(layer)
    got = zip(table.segment_nos.tolist(), table.slots.tolist(), strict=True)
    assert list(got) == rows(layer)
    means = [make_kv(no, counts=counts).layers[layer].mean_keys() for no, counts in enumerate(COUNTS)]
    assert raw(table.mean_keys) == raw(torch.cat(means))
    assert (table.segment_nos.dtype, table.slots.dtype) == (np.int64, np.int64)


def test_table_opens_only_the_files_named(
    store: SegmentStore, snapshot: StreamSnapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[int] = []
    real = SegmentFile.mean_keys

    def noting(self: SegmentFile, layer: int) -> torch.Tensor:
        opened.append(self.header.segment_no)
        return real(self, layer)

    monkeypatch.setattr(SegmentFile, "mean_keys", noting)
    table = snapshot.table(0, np.array([3, 1, 3]))
    assert opened == [1, 3]
    assert table.segment_nos.tolist() == [1, 3, 3, 3, 3, 3]
    assert table.slots.tolist() == [0, 0, 1, 2, 3, 4]
    assert snapshot.table(0, np.empty(0, np.int64)).num_blocks == 0


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_gather_gives_the_blocks_in_the_order_asked(snapshot: StreamSnapshot, data: st.DataObject) -> None:
    layer = data.draw(st.integers(0, 2))
    asked = np.array(data.draw(st.lists(st.sampled_from(rows(layer)), min_size=1, max_size=9)))
    got = snapshot.gather(layer, asked[:, 0], asked[:, 1])
    layers = [make_kv(no, counts=counts).layers[layer] for no, counts in enumerate(COUNTS)]
    assert raw(got.keys_bNGd) == b"".join(raw(layers[no].keys_bNGd[slot]) for no, slot in asked)
    assert raw(got.values_bNGd) == b"".join(raw(layers[no].values_bNGd[slot]) for no, slot in asked)
    assert got.frame_ids == tuple(layers[no].frame_ids[slot] for no, slot in asked)
    assert got.spans_s == tuple(layers[no].spans_s[slot] for no, slot in asked)


def test_neighbours_in_one_file_are_not_copied(snapshot: StreamSnapshot) -> None:
    file = snapshot._file(3)
    got = snapshot.gather(0, np.array([3, 3, 3]), np.array([1, 2, 3]))
    assert got.keys_bNGd.data_ptr() == file.blocks(0).keys_bNGd[1].data_ptr()


def test_the_disk_hears_once_of_files_that_are_open_and_will_be_read(
    store: SegmentStore, snapshot: StreamSnapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, int, int, int]] = []

    def advise(fd: int, start: int, length: int, advice: int) -> None:
        told.append((os.readlink(f"/proc/self/fd/{fd}"), start, length, advice))

    monkeypatch.setattr(os, "posix_fadvise", advise)
    paths = [str(store.root / place.path) for place in snapshot._places.values()]
    snapshot.table(0, np.array([1, 3]))
    for _ in range(2):
        snapshot.prefetch(np.array([0, 1, 7]))
    assert told == [(paths[1], 0, 0, os.POSIX_FADV_WILLNEED)], "0 is not open, 7 is not there"
    Path(paths[3]).unlink()
    snapshot.prefetch(np.array([3]))
    assert len(told) == 1
    assert snapshot.gather(0, np.array([3]), np.array([0])).num_blocks == 1, "from the map"


@pytest.mark.parametrize(
    ("segment_no", "slot", "message"),
    [(9, 0, "no segment 9"), (0, 4, "slots 4 to 4, it has 4"), (0, -1, "slots -1 to -1")],
)
def test_block_that_is_not_there_is_said(
    snapshot: StreamSnapshot, segment_no: int, slot: int, message: str
) -> None:
    with pytest.raises(StoreError, match=message):
        snapshot.gather(0, np.array([segment_no]), np.array([slot]))


def test_search_finds_by_summary_vector(snapshot: StreamSnapshot) -> None:
    for layer in range(3):
        kvs = [make_kv(no, counts=counts) for no, counts in enumerate(COUNTS)]
        query = torch.arange(10.0) - 4
        scores = torch.stack([kv.summary_vectors[layer] for kv in kvs]) @ query
        wanted = torch.argsort(scores, descending=True)
        assert snapshot.search(layer, query, 3).tolist() == wanted[:3].tolist()


# ---------------------------------------------------------------- following a stream


def test_refresh_picks_up_commits_and_old_snapshots_stay(store: SegmentStore) -> None:
    epoch = filled(store, 2)
    follower = store.reader("cam")
    before = follower.snapshot
    seen = before.table(0)
    assert follower.refresh() is before
    store_segment(store, "cam", epoch, make_kv(2))
    after = follower.refresh()
    assert (len(before.segments), before.as_of_s, before.table(0).num_blocks) == (2, 8.0, 8)
    assert (len(after.segments), after.as_of_s, after.table(0).num_blocks) == (3, 12.0, 12)
    assert raw(before.table(0).mean_keys) == raw(seen.mean_keys)
    assert sorted(before.search(0, torch.ones(10), 9).tolist()) == [0, 1]
    assert sorted(after.search(0, torch.ones(10), 9).tolist()) == [0, 1, 2]


def test_refresh_reads_only_what_is_new(store: SegmentStore, monkeypatch: pytest.MonkeyPatch) -> None:
    epoch = filled(store, 3)
    follower = store.reader("cam")
    opened: list[int] = []
    real = SegmentFile.summary_vectors

    def noting(self: SegmentFile) -> np.ndarray:
        opened.append(self.header.segment_no)
        return real(self)

    monkeypatch.setattr(SegmentFile, "summary_vectors", noting)
    store_segment(store, "cam", epoch, make_kv(3))
    follower.refresh()
    assert opened == [3]


def test_written_but_not_committed_is_not_seen(store: SegmentStore) -> None:
    from streamkv.store import write_segment

    epoch = filled(store, 1)
    write_segment(store.root, IDENTITY, "cam", epoch, make_kv(1))
    assert len(store.reader("cam").snapshot.segments) == 1


def test_stream_that_was_added_anew_is_read_anew(store: SegmentStore) -> None:
    filled(store, 3)
    follower = store.reader("cam")
    old = follower.snapshot
    store.remove_stream("cam")
    with pytest.raises(UnknownStreamError):
        follower.refresh()
    store.add_stream("cam", "file:x")
    assert follower.refresh().segments == ()
    store_segment(store, "cam", store.begin_writing("cam"), make_kv(0, seed=50))
    new = follower.refresh()
    assert len(new.segments) == 1
    assert raw(new.table(0).mean_keys) == raw(make_kv(0, seed=50).layers[0].mean_keys())
    with pytest.raises(CorruptSegmentError, match="missing"):
        old.table(0)


def test_stream_replaced_between_the_two_queries_is_not_mixed_up(
    store: SegmentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refresh asks how far the stream is, then for the segments up to there."""
    epoch = filled(store, 1)
    follower = store.reader("cam")
    store_segment(store, "cam", epoch, make_kv(1))
    real = store._catalog.segments_between

    def replaced_first(*args: object) -> object:
        store.remove_stream("cam")
        store.add_stream("cam", "file:x")
        filled(store, 3)
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(store._catalog, "segments_between", replaced_first)
        assert len(follower.refresh().segments) == 1
    assert len(follower.refresh().segments) == 3


def test_missing_file_is_named(store: SegmentStore) -> None:
    epoch = store.begin_writing("cam")
    place = store_segment(store, "cam", epoch, make_kv(0))
    (store.root / place.path).unlink()
    with pytest.raises(CorruptSegmentError, match=f"{Path(place.path).name}.*missing"):
        store.reader("cam").snapshot.table(0)


def test_few_files_stay_open_and_each_is_checked_once(
    store: SegmentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(store, 6)
    with SegmentStore.open(store.root, max_open_files=2) as small:
        memory = small.reader("cam").snapshot
        everything = memory.table(0)
        memory.gather(0, everything.segment_nos, everything.slots)
        assert len(small._files._open) == 2
        headers: list[int] = []
        real = segment_file.SegmentFile._verify

        def noting(self: SegmentFile, part: int, name: str, data: object, crc32: int) -> None:
            headers.append(0 if self.verified[part] else 1)
            real(self, part, name, data, crc32)

        monkeypatch.setattr(SegmentFile, "_verify", noting)
        memory.gather(0, everything.segment_nos, everything.slots)
        assert headers
        assert sum(headers) == 0
        assert len(small._files._open) == 2


def test_threads_share_a_reader(store: SegmentStore) -> None:
    """One commits, four refresh and read; each snapshot holds together."""
    epoch = filled(store, 1)
    follower, stop, failures = store.reader("cam"), threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            memory = follower.refresh()
            count = len(memory.segments)
            table = memory.table(0)
            found = memory.search(1, torch.ones(10), 99)
            if table.num_blocks != 4 * count or sorted(found.tolist()) != list(range(count)):
                failures.append((count, table.num_blocks, found))

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for no in range(1, 30):
        store_segment(store, "cam", epoch, make_kv(no))
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(follower.refresh().segments) == 30


def test_index_is_built_in_steps(store: SegmentStore, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(store, 5)
    monkeypatch.setattr(reader, "_INDEX_AT_ONCE", 2)
    assert sorted(store.reader("cam").snapshot.search(0, torch.ones(10), 9).tolist()) == [0, 1, 2, 3, 4]
