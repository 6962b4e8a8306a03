"""What is deleted goes from the bucket too, whenever that is there."""

from __future__ import annotations

from typing import BinaryIO

import pytest
from store_samples import assert_same_segment, filled, make_kv, on_both, segment_files
from tiered_store import Tiered, places, read

from streamkv.config import AgeingStep, RetentionConfig
from streamkv.errors import ObjectStoreError
from streamkv.store import ObjectStore


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
