"""Opening a stream reads its rows and one file of summary vectors; that file may be lost, torn or another stream's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_samples import filled, make_kv, store_segment

from streamkv.errors import CorruptSegmentError
from streamkv.store import SegmentFile, SegmentStore

COUNT = 6
QUERY = torch.arange(10.0) - 4


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the segment files that were opened."""
    names: list[str] = []
    real = SegmentFile.__init__

    def noting(self: SegmentFile, path: Path, verified: bytearray | None = None) -> None:
        names.append(path.name)
        real(self, path, verified)

    monkeypatch.setattr(SegmentFile, "__init__", noting)
    return names


def noted_file(store: SegmentStore) -> Path:
    return store.root / "vectors" / "cam.bin"


def found(store: SegmentStore) -> list[list[int]]:
    """What each layer's search finds, by a store that has nothing in memory."""
    with SegmentStore.open(store.root, read_only=True) as other:
        snapshot = other.reader("cam").snapshot
        return [snapshot.search(layer, QUERY, 99).tolist() for layer in range(3)]


def wanted(count: int = COUNT) -> list[list[int]]:
    vectors = torch.stack([make_kv(no).summary_vectors for no in range(count)])
    return [torch.argsort(vectors[:, layer] @ QUERY, descending=True).tolist() for layer in range(3)]


def test_opening_opens_no_segment(store: SegmentStore, opened: list[str]) -> None:
    filled(store, COUNT)
    opened.clear()
    assert found(store) == wanted()
    assert opened == []


def test_segments_that_come_later_are_noted_too(store: SegmentStore, opened: list[str]) -> None:
    epoch = filled(store, 2)
    follower = store.reader("cam")
    store_segment(store, "cam", epoch, make_kv(2))
    opened.clear()
    assert follower.refresh().search(0, QUERY, 99).tolist() == wanted(3)[0]
    assert opened == []


def test_lost_file_is_made_again(store: SegmentStore, opened: list[str]) -> None:
    filled(store, COUNT)
    noted_file(store).unlink()
    opened.clear()
    assert found(store) == wanted()  # read-only: makes nothing
    assert len(opened) == COUNT
    assert not noted_file(store).exists()
    store.reader("cam")
    opened.clear()
    assert found(store) == wanted()
    assert opened == []


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damage_anywhere_changes_no_answer(store: SegmentStore, data: st.DataObject) -> None:
    if not store.stream("cam").num_segments:
        filled(store, COUNT)
    path = noted_file(store)
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    cut = data.draw(st.integers(0, len(whole)))
    path.unlink()  # a mapped file must not shrink under its map
    path.write_bytes(damaged[: data.draw(st.sampled_from([cut, len(whole)]))])
    try:
        assert found(store) == wanted()
        store.reader("cam")
        assert path.read_bytes() == whole
    finally:
        path.write_bytes(whole)


def test_vectors_of_an_earlier_stream_of_that_id_are_not_taken(store: SegmentStore) -> None:
    filled(store, COUNT)
    old = noted_file(store).read_bytes()
    store.remove_stream("cam")
    assert not noted_file(store).exists()
    store.add_stream("cam", "file:x")
    epoch = store.begin_writing("cam")
    for no in range(COUNT):
        store_segment(store, "cam", epoch, make_kv(no, seed=50 + no))
    right = found(store)
    noted_file(store).write_bytes(old)
    assert right != wanted()
    assert found(store) == right


def test_segments_with_a_hole_between_them_are_found(store: SegmentStore, opened: list[str]) -> None:
    filled(store, COUNT)
    with store._catalog._writing() as session:
        session.connection().exec_driver_sql("DELETE FROM segments WHERE segment_no IN (0, 3)")
    opened.clear()
    assert [sorted(nos) for nos in found(store)] == [[1, 2, 4, 5]] * 3
    assert opened == []


def test_missing_segment_is_named_when_it_is_read(store: SegmentStore) -> None:
    epoch = store.begin_writing("cam")
    places = [store_segment(store, "cam", epoch, make_kv(no)) for no in range(2)]
    (store.root / places[1].path).unlink()
    snapshot = store.reader("cam").snapshot
    assert snapshot.table(0, np.array([0])).num_blocks == 4
    with pytest.raises(CorruptSegmentError, match=f"{Path(places[1].path).name}.*missing"):
        snapshot.table(0, np.array([1]))


def test_store_that_takes_no_vectors_is_read_all_the_same(store: SegmentStore) -> None:
    (store.root / "vectors").write_text("in the way")
    filled(store, COUNT)
    assert found(store) == wanted()
