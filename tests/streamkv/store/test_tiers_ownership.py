"""Whose objects: another store's are never taken or deleted."""

from __future__ import annotations

from pathlib import Path

import pytest
from store_samples import IDENTITY, check_segments, filled, segment_files
from tiered_store import Tiered

from streamkv.errors import ConfigError, ForeignStoreError, StoreError
from streamkv.store import ObjectStore, SegmentStore
from streamkv.store.repair import rebuild_catalog


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
