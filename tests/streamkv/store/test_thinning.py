"""Old segments with fewer blocks: the most alike go, what stays is to the bit, and readers come to know."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from store_samples import IDENTITY, make_kv, raw, store_segment

from streamkv.config import AgeingStep
from streamkv.errors import ConfigError, SegmentGoneError
from streamkv.store import SegmentStore, write_segment
from streamkv.store.catalog import Catalog
from streamkv.store.repair import rebuild_catalog
from streamkv.store.thinning import distinct, num_left
from streamkv.types import SegmentKV

COUNTS = (6, 3, 1)
SUMMARY = 8
HALF_A_BLOCK = [AgeingStep(0, "raw", keep_ratio=0.25)]
"""Of 8 frames in 3 layers: 6 blocks of the 10 that are stored."""


def segment(segment_no: int) -> SegmentKV:
    """Layers of 6, 3 and 1 blocks of 8 frames; the last of each is the summary's."""
    kv = make_kv(segment_no, counts=COUNTS)
    layers = [replace(b, frame_ids=(*range(1, b.num_blocks), SUMMARY)) for b in kv.layers]
    return replace(kv, num_frames=SUMMARY, layers=tuple(layers))


def filled(store: SegmentStore, count: int) -> None:
    epoch = store.begin_writing("cam")
    for no in range(count):
        store_segment(store, "cam", epoch, segment(no))


def slow_distinct(vectors: list[np.ndarray], count: int) -> list[int]:
    """Looks at every pair of neighbours anew each time."""
    left = list(range(len(vectors)))

    def cosine(i: int, j: int) -> float:
        a, b = vectors[i], vectors[j]
        return float(a @ b / max(np.linalg.norm(a), 1e-12) / max(np.linalg.norm(b), 1e-12))

    while len(left) > count:
        pairs = [(cosine(i, j), -at) for at, (i, j) in enumerate(pairwise(left))]
        del left[-max(pairs)[1] + 1 if pairs else 0]
    return left


@settings(max_examples=60)
@given(st.integers(0, 9), st.integers(0, 9), st.integers(0, 10**6))
def test_those_least_like_their_neighbours_stay(num_rows: int, count: int, seed: int) -> None:
    keys = torch.randn(num_rows, 4, generator=torch.Generator().manual_seed(seed))
    left = distinct(keys, count)
    assert left == slow_distinct(list(keys.double().numpy()), count)
    assert len(left) == min(num_rows, count)


def test_of_scenes_that_stand_still_one_block_stays() -> None:
    scenes = torch.eye(3)[[0, 0, 0, 1, 1, 2, 2, 2, 2]] * torch.rand(9, 1).add(0.5)
    assert distinct(scenes, 3) == [0, 3, 5]


@pytest.mark.parametrize(
    ("blocks", "ratio", "left"), [(10, 0.25, 6), (10, 0.01, 3), (10, 0.9, 10), (2, 0.1, 2)]
)
def test_so_many_stay(blocks: int, ratio: float, left: int) -> None:
    assert num_left(blocks, num_frames=8, num_layers=3, keep_ratio=ratio) == left


def test_what_stays_is_to_the_bit_and_summaries_do(store: SegmentStore) -> None:
    filled(store, 2)
    before = store.stream("cam")
    aged = store.age("cam", HALF_A_BLOCK)
    assert (aged.num_segments, aged.bytes_after < aged.bytes_before) == (2, True)
    memory = store.reader("cam").snapshot
    for no in range(2):
        file, kv = memory._file(no), segment(no)
        assert file.num_blocks == 6
        assert raw(torch.from_numpy(file.summary_vectors().copy())) == raw(kv.summary_vectors)
        for layer, count in enumerate((3, 2, 1)):  # 6 of 10, by largest remainder
            got, was = file.blocks(layer), kv.layers[layer]
            assert (len(got.frame_ids), got.frame_ids[-1]) == (count, SUMMARY)
            rows = [was.frame_ids.index(frame) for frame in got.frame_ids]
            assert rows == [*distinct(was.mean_keys()[:-1], count - 1), was.num_blocks - 1]
            assert raw(got.keys_bNGd) == raw(was.keys_bNGd[rows])
            assert raw(got.values_bNGd) == raw(was.values_bNGd[rows])
            assert got.spans_s == tuple(was.spans_s[row] for row in rows)
            assert raw(file.mean_keys(layer)) == raw(was.mean_keys()[rows])
    assert store.stream("cam").kv_bytes == before.kv_bytes * 6 // 10
    assert store.verify() == []


def test_twice_is_once_and_gone_is_gone(store: SegmentStore) -> None:
    filled(store, 1)
    store.age("cam", HALF_A_BLOCK)
    for policy in (HALF_A_BLOCK, [AgeingStep(0, "raw", keep_ratio=0.9)], [AgeingStep(0, "raw")]):
        assert store.age("cam", policy).num_segments == 0
    assert store.age("cam", [AgeingStep(0, "int8", keep_ratio=0.25)]).num_segments == 1
    (place,) = store.segments("cam", 0, 9)
    assert (place.codec, IDENTITY.num_blocks(place.kv_bytes)) == ("int8", 6)


def test_a_catalog_made_again_from_files_knows_how_many_are_left(store: SegmentStore) -> None:
    filled(store, 2)
    store.age("cam", HALF_A_BLOCK)
    places = store.segments("cam", 0, 9)
    root = store.root
    store.close()
    (root / "catalog.sqlite").unlink()
    rebuild_catalog(root)
    with SegmentStore.open(root, identity=IDENTITY) as again:
        assert again.segments("cam", 0, 9) == places


def test_a_reader_of_before_begins_anew(store: SegmentStore) -> None:
    """Its table names blocks by their place, and at that place is another one now."""
    filled(store, 3)
    with SegmentStore.open(store.root, read_only=True, max_open_files=1) as other:
        reader = other.reader("cam")
        before = reader.snapshot
        table = before.table(0)  # maps each in turn; the last stays
        keys = before.gather(0, np.array([2]), np.array([5])).keys_bNGd
        store.age("cam", HALF_A_BLOCK)
        assert raw(before.gather(0, np.array([2]), np.array([5])).keys_bNGd) == raw(keys)
        with pytest.raises(SegmentGoneError, match="segment 0 of stream 'cam' lost blocks to its age"):
            before.gather(0, table.segment_nos[:1], table.slots[:1])
        now = reader.refresh()
        assert [s.segment_no for s in now.segments] == [0, 1, 2]
        assert now.table(0).segment_nos.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
        found = now.gather(0, np.array([0, 1, 2]), np.array([2, 2, 2]))
        assert found.frame_ids == (SUMMARY,) * 3
        assert before.segments == now.segments


def test_a_refreshed_reader_looks_no_segment_up_by_itself(
    store: SegmentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One query for all that were exchanged, none for each; and none when nothing was."""
    filled(store, 5)
    with SegmentStore.open(store.root, read_only=True) as other:
        reader = other.reader("cam")
        store.age("cam", [AgeingStep(0, "int8")])
        asked: list[int] = []
        real = Catalog.exchanged
        monkeypatch.setattr(Catalog, "exchanged", lambda *a: (asked.append(1), real(*a))[1])
        monkeypatch.setattr(Catalog, "segment", lambda *_: pytest.fail("a segment was looked up"))
        assert reader.refresh().table(0).num_blocks == 5 * COUNTS[0]
        reader.refresh()
        assert asked == [1]


def test_segments_that_come_while_others_age_are_read_once(store: SegmentStore) -> None:
    filled(store, 2)
    reader = store.reader("cam")
    epoch = store.begin_writing("cam")
    store.age("cam", HALF_A_BLOCK)
    store.commit(write_segment(store.root, IDENTITY, "cam", epoch, segment(2)))
    memory = reader.refresh()
    assert [s.segment_no for s in memory.segments] == [0, 1, 2]
    assert [memory._file(no).num_blocks for no in range(3)] == [6, 6, 10]
    assert memory._index.num_segments == 3


def test_a_share_of_nothing_is_refused() -> None:
    for ratio in (0.0, -1.0, 1.5):
        with pytest.raises(ConfigError, match=r"store\.ageing\.keep_ratio: got"):
            AgeingStep(0, "int8", ratio)
