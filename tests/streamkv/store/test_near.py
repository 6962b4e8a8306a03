"""Blocks that are kept in memory are those of the files, within their budget, and go when the files do."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_samples import IDENTITY, filled, make_kv, raw, store_segment

from streamkv.config import RetentionConfig
from streamkv.errors import StoreError, UnknownStreamError
from streamkv.store import NearTier, SegmentStore, StreamSnapshot, write_segment
from streamkv.types import LayerBlocks

BLOCK_BYTES = 2 * IDENTITY.block_bytes
COUNTS = ((4, 0, 2), (1, 3, 0), (0, 0, 0), (5, 2, 2))
ROWS = [
    [(no, slot) for no, counts in enumerate(COUNTS) for slot in range(counts[layer])] for layer in range(3)
]
DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")],
    ),
]


def tiers(*blocks: int, device: str = "cpu") -> list[NearTier]:
    """The nearest on the device, those behind it in host memory."""
    return [NearTier(device if i == 0 else "cpu", n * BLOCK_BYTES) for i, n in enumerate(blocks)]


@pytest.fixture(params=["raw", "int8"])
def snapshot(store: SegmentStore, request: pytest.FixtureRequest) -> StreamSnapshot:
    epoch = store.begin_writing("cam")
    for no, counts in enumerate(COUNTS):
        assert store.commit(
            write_segment(store.root, IDENTITY, "cam", epoch, make_kv(no, counts=counts), codec=request.param)
        )
    return store.reader("cam").snapshot


def gather(snapshot: StreamSnapshot, layer: int, rows: Sequence[tuple[int, int]]) -> LayerBlocks:
    nos, slots = (np.array(column, np.int64) for column in zip(*rows, strict=True)) if rows else ([], [])
    return snapshot.gather(layer, np.array(nos, np.int64), np.array(slots, np.int64))


def assert_same(got: LayerBlocks, wanted: LayerBlocks) -> None:
    assert raw(got.keys_bNGd.cpu()) == raw(wanted.keys_bNGd)
    assert raw(got.values_bNGd.cpu()) == raw(wanted.values_bNGd)
    assert (got.frame_ids, got.spans_s) == (wanted.frame_ids, wanted.spans_s)


asked = st.integers(0, 2).flatmap(
    lambda layer: st.tuples(st.just(layer), st.lists(st.sampled_from(ROWS[layer]), max_size=9))
)


@pytest.mark.parametrize("device", DEVICES)
@given(asks=st.lists(asked, max_size=8), sizes=st.lists(st.integers(0, 12), min_size=1, max_size=3))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_whatever_is_kept_blocks_are_those_of_the_files(
    store: SegmentStore,
    snapshot: StreamSnapshot,
    device: str,
    asks: list[tuple[int, list[tuple[int, int]]]],
    sizes: list[int],
) -> None:
    store.keep_near([])
    wanted = [gather(snapshot, *ask) for ask in asks]
    store.keep_near(tiers(*sizes, device=device))
    for ask, blocks in zip(asks, wanted, strict=True):
        got = gather(snapshot, *ask)
        assert_same(got, blocks)
        assert got.keys_bNGd.device.type == device
        tier, size = store.near, iter(sizes)
        while tier is not None:
            assert tier.num_blocks <= next(size)
            tier = tier.behind


def test_what_was_read_is_not_read_again_and_the_oldest_leave_first(
    store: SegmentStore, snapshot: StreamSnapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.keep_near(tiers(3))
    read: list[list[int]] = []
    plain = StreamSnapshot._read

    def counted(self: StreamSnapshot, layer: int, nos: np.ndarray, slots: np.ndarray) -> LayerBlocks:
        read.append(slots.tolist())
        return plain(self, layer, nos, slots)

    monkeypatch.setattr(StreamSnapshot, "_read", counted)
    for slots in ([0, 1, 2], [2, 0], [3], [0, 1, 3]):  # 3 takes the place of 1, and 1 that of 2
        gather(snapshot, 0, [(0, slot) for slot in slots])
    assert read == [[0, 1, 2], [3], [1]]
    assert store.near is not None
    assert (store.near.num_hits, store.near.num_misses) == (4, 5)


def test_what_leaves_the_device_is_found_behind_it(store: SegmentStore, snapshot: StreamSnapshot) -> None:
    store.keep_near(tiers(1, 4))
    assert store.near is not None
    assert store.near.behind is not None
    for slot in (0, 1, 2, 0, 1):
        gather(snapshot, 0, [(0, slot)])
    assert (store.near.num_hits, store.near.num_misses) == (0, 5)
    assert (store.near.behind.num_hits, store.near.behind.num_misses) == (2, 3)


def test_a_slot_that_is_not_there_is_refused_as_without(
    store: SegmentStore, snapshot: StreamSnapshot
) -> None:
    store.keep_near(tiers(8))
    for _ in range(2):
        with pytest.raises(StoreError, match="it has 4 blocks"):
            gather(snapshot, 0, [(0, 1), (0, 4)])
        with pytest.raises(StoreError, match="no segment 9"):
            gather(snapshot, 0, [(9, 0)])


def test_deleted_segments_and_removed_streams_leave_nothing_in_another_process_memory(
    store: SegmentStore,
) -> None:
    filled(store, 3)
    with SegmentStore.open(store.root, read_only=True) as other:
        other.keep_near(tiers(8, 8))
        near, reader = other.near, other.reader("cam")
        assert near is not None
        assert near.behind is not None
        for no in range(3):
            gather(reader.snapshot, 0, [(no, 0)])
        sizes = [place.file_bytes for place in store.segments("cam", 0, 9)]
        store.retain(RetentionConfig(stream_bytes=sum(sizes[1:]), when_full="oldest"))
        gather(reader.refresh(), 0, [(2, 0)])
        assert (near.num_blocks, near.behind.num_blocks) == (2, 2)
        store.remove_stream("cam")
        with pytest.raises(UnknownStreamError):
            reader.refresh()
        assert (near.num_blocks, near.behind.num_blocks) == (0, 0)


def test_a_stream_that_is_added_again_under_its_name_is_not_taken_for_the_first(store: SegmentStore) -> None:
    filled(store, 1)
    store.keep_near(tiers(8))
    reader = store.reader("cam")
    gather(reader.snapshot, 0, [(0, 0)])
    store.remove_stream("cam")
    store.add_stream("cam", "b.mp4")
    other = make_kv(0, seed=7)
    store_segment(store, "cam", store.begin_writing("cam"), other)
    got = gather(reader.refresh(), 0, [(0, 0)])
    assert raw(got.keys_bNGd) == raw(other.layers[0].keys_bNGd[:1])


def test_threads_that_share_it_each_get_what_they_asked_for(
    store: SegmentStore, snapshot: StreamSnapshot
) -> None:
    wanted = {row: gather(snapshot, 0, [row]) for row in ROWS[0]}
    store.keep_near(tiers(3, 5))
    wrong: list[object] = []

    def ask(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(200):
            rows = [ROWS[0][i] for i in rng.integers(0, len(ROWS[0]), 4)]
            got = gather(snapshot, 0, rows)
            for i, row in enumerate(rows):
                if raw(got.keys_bNGd[i : i + 1]) != raw(wanted[row].keys_bNGd):
                    wrong.append(row)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_written_within_inference_mode_and_read_without(
    store: SegmentStore, snapshot: StreamSnapshot
) -> None:
    store.keep_near(tiers(8))
    with torch.inference_mode():
        gather(snapshot, 0, [(0, 0)])
    gather(snapshot, 0, [(0, 1)])
    with torch.inference_mode():
        assert gather(snapshot, 0, [(0, 0), (0, 1)]).num_blocks == 2
