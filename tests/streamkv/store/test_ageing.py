"""Old segments take fewer bytes and stay what they are: same blocks, same places, never twice and never half."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing

import numpy as np
import pytest
import torch
from store_samples import IDENTITY, filled, make_kv, raw, store_segment

from streamkv.config import AgeingStep, load_config
from streamkv.errors import ConfigError, CorruptSegmentError, UnknownStreamError
from streamkv.store import SegmentStore, segment_writer
from streamkv.store.codecs import CODECS

TO_INT8 = [AgeingStep(0, "int8")]


def make_older(store: SegmentStore, seconds: Sequence[float]) -> None:
    """Segment i is seconds[i] older than it was."""
    with closing(sqlite3.connect(store.root / "catalog.sqlite")) as database:
        for no, age_s in enumerate(seconds):
            database.execute(
                "UPDATE segments SET committed_at = committed_at - ? WHERE segment_no = ?", (age_s, no)
            )
        database.commit()


def codecs(store: SegmentStore) -> list[str]:
    places = store.segments("cam", 0, 99)
    assert [store.reader("cam").snapshot._file(p.segment_no).header.codec for p in places] == [
        p.codec for p in places
    ]
    return [place.codec for place in places]


def expected(tensor: torch.Tensor, codec: str, *, keys: bool) -> torch.Tensor:
    rows = CODECS[codec].encode(tensor, keys=keys)
    return CODECS[codec].decode(rows, IDENTITY.geometry, tensor.dtype, keys=keys)


def test_segments_take_the_last_step_that_they_have_reached(store: SegmentStore) -> None:
    filled(store, 4)
    make_older(store, [5000, 1000, 100, 0])
    policy = [AgeingStep(3600, "int4"), AgeingStep(60, "fp16"), AgeingStep(600, "int8")]
    seen: list[tuple[int, int]] = []
    aged = store.age("cam", policy, on_segment=lambda done, total: seen.append((done, total)))
    assert codecs(store) == ["int4", "int8", "fp16", "raw"]
    assert (aged.num_segments, seen) == (3, [(1, 3), (2, 3), (3, 3)])
    assert aged.bytes_after < aged.bytes_before
    assert store.stream("cam").file_bytes == sum(
        path.stat().st_size for path in store.root.glob("streams/*/*")
    )
    assert store.verify() == []


def test_aged_blocks_are_the_codec_s_and_what_is_searched_is_exact(store: SegmentStore) -> None:
    filled(store, 2)
    store.age("cam", TO_INT8)
    memory = store.reader("cam").snapshot
    for layer in range(3):
        kvs = [make_kv(no) for no in range(2)]
        table = memory.table(layer)
        assert raw(table.mean_keys) == raw(torch.cat([kv.layers[layer].mean_keys() for kv in kvs]))
        if table.num_blocks:
            got = memory.gather(layer, table.segment_nos, table.slots)
            keys = torch.cat([kv.layers[layer].keys_bNGd for kv in kvs])
            values = torch.cat([kv.layers[layer].values_bNGd for kv in kvs])
            assert torch.equal(got.keys_bNGd, expected(keys, "int8", keys=True))
            assert torch.equal(got.values_bNGd, expected(values, "int8", keys=False))
    for no in range(2):
        np.testing.assert_array_equal(memory._file(no).summary_vectors(), make_kv(no).summary_vectors.numpy())
    store.age("cam", [AgeingStep(0, "int4")])  # int8 first, and still the first means
    again = store.reader("cam").snapshot.table(0)
    assert raw(again.mean_keys) == raw(memory.table(0).mean_keys)


def test_twice_is_once(store: SegmentStore, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(store, 2)
    assert store.age("cam", TO_INT8).num_segments == 2
    places = store.segments("cam", 0, 9)
    monkeypatch.setattr(segment_writer, "_write_temp", lambda *args: pytest.fail("written again"))
    assert store.age("cam", TO_INT8).num_segments == 0
    assert store.segments("cam", 0, 9) == places


@pytest.mark.parametrize("codec", ["raw", "fp16", "int8"])
def test_nothing_is_stored_in_more_bytes(store: SegmentStore, codec: str) -> None:
    filled(store, 1)
    store.age("cam", TO_INT8)
    assert store.age("cam", [AgeingStep(0, codec)]).num_segments == 0


def test_snapshot_of_before_reads_on_mapped_or_not(store: SegmentStore) -> None:
    """Of two old segments one is mapped; the other is first needed when its file has long gone."""
    filled(store, 2)
    with SegmentStore.open(store.root, read_only=True, max_open_files=1) as other:
        before = other.reader("cam").snapshot  # maps each in turn; the last stays
        keys = before.gather(0, np.array([1]), np.array([2])).keys_bNGd
        store.age("cam", TO_INT8)
        store.age("cam", [AgeingStep(0, "int4")])
        assert raw(keys) == raw(make_kv(1).layers[0].keys_bNGd[2:3])
        assert raw(before.gather(0, np.array([1]), np.array([2])).keys_bNGd) == raw(keys)
        found = before.gather(0, np.array([0]), np.array([3])).values_bNGd
        twice = expected(expected(make_kv(0).layers[0].values_bNGd, "int8", keys=False), "int4", keys=False)
        torch.testing.assert_close(found, twice[3:4])
        assert before._file(0).header.codec == "int4"


def test_missing_file_that_was_not_aged_is_still_named(store: SegmentStore) -> None:
    filled(store, 1)
    (place,) = store.segments("cam", 0, 1)
    memory = store.reader("cam").snapshot
    store._files.forget(place.path)
    (store.root / place.path).unlink()
    with pytest.raises(CorruptSegmentError, match="missing"):
        memory.table(0)


def test_writer_that_begins_meanwhile_harms_nothing(
    store: SegmentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes a later epoch and collects; the file that is being made has an earlier one and no row yet."""
    filled(store, 1)
    real = store._catalog.switch

    def begin_first(*args: object) -> bool:
        store.begin_writing("cam")
        return real(*args)

    monkeypatch.setattr(store._catalog, "switch", begin_first)
    with pytest.raises(Exception, match="cannot write"):
        store.age("cam", TO_INT8)
    monkeypatch.undo()
    assert codecs(store) == ["raw"]
    assert store.age("cam", TO_INT8).num_segments == 1
    assert store.verify() == []


def test_ageing_the_past_does_not_disturb_the_writer(store: SegmentStore) -> None:
    epoch = filled(store, 2)
    store.age("cam", TO_INT8)
    store_segment(store, "cam", epoch, make_kv(2))
    assert codecs(store) == ["int8", "int8", "raw"]


def test_another_ager_may_be_first(store: SegmentStore, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(store, 1)
    real = store._catalog.switch

    def other_first(*args: object) -> bool:
        monkeypatch.undo()
        with SegmentStore.open(store.root) as other:
            other.age("cam", [AgeingStep(0, "int4")])
        return real(*args)

    monkeypatch.setattr(store._catalog, "switch", other_first)
    assert store.age("cam", TO_INT8).num_segments == 0
    assert codecs(store) == ["int4"]
    assert store.verify() == []


def test_what_cannot_be_aged_is_said(store: SegmentStore) -> None:
    with pytest.raises(UnknownStreamError):
        store.age("nope", TO_INT8)
    with pytest.raises(ConfigError, match=r"unknown 'zip'"):
        store.age("cam", [AgeingStep(0, "zip")])
    with pytest.raises(ConfigError, match=r"store\.ageing\.after_s: got -1"):
        AgeingStep(-1, "int8")
    assert store.age("cam", []).num_segments == 0


def test_policy_comes_from_the_configuration() -> None:
    config = load_config(None, ["store.ageing=[{after_s: 60, codec: int8}, {after_s: 3600.5, codec: int4}]"])
    assert config.store.ageing == [AgeingStep(60, "int8"), AgeingStep(3600.5, "int4")]
