"""Segments on their way up: each is whole in the bucket before it counts, and a bucket that fails delays no commit."""

from __future__ import annotations

import pytest
from store_samples import IDENTITY, check_segments, filled, make_kv, on_both, segment_files, store_segment
from tiered_store import Tiered, damage, local, places, read

from streamkv.errors import ObjectStoreError
from streamkv.store import ObjectStore, Offloaded, write_segment


@on_both
def test_committed_segments_are_uploaded_and_the_catalog_knows(tiered: Tiered) -> None:
    with tiered.open() as store:
        filled(store, 3)
        assert tiered.objects == []  # not by the commit
        assert (store.tiers().uploads.num_waiting, store.tiers().uploads.num_uploaded) == (3, 0)
        seen: list[tuple[int, int]] = []
        done = store.offload(lambda *at: seen.append(at))
        assert (done.num_uploaded, done.uploaded_bytes) == (3, 3 * tiered.one_bytes)
        assert seen == [(1, 3), (2, 3), (3, 3)]
        assert tiered.objects == segment_files(store)
        for path in tiered.objects:
            assert tiered.s3.read(tiered.prefix, path) == (store.root / path).read_bytes()
        assert (store.tiers().uploads.num_waiting, store.tiers().uploads.num_uploaded) == (0, 3)
        assert store.offload() == Offloaded()
        assert store.verify(read_objects=True) == []


def test_uncommitted_segment_is_not_uploaded(tiered: Tiered) -> None:
    with tiered.open() as store:
        epoch = filled(store, 1)
        write_segment(store.root, IDENTITY, "cam", epoch, make_kv(1))
        store.offload()
        assert tiered.objects == [place.path for place in places(store)]


def test_object_that_reads_otherwise_than_written_does_not_count(
    tiered: Tiered, monkeypatch: pytest.MonkeyPatch
) -> None:
    def put_half(self: ObjectStore, path: str, data: bytes) -> None:
        real_put(self, path, bytes(data)[: len(data) // 2])

    real_put = ObjectStore.put
    with tiered.open(0.1) as store:
        filled(store, 1)
        store.offload()  # the marker, and a segment
        store_segment(store, "cam", places(store)[0].epoch, make_kv(1))
        with monkeypatch.context() as patch:
            patch.setattr(ObjectStore, "put", put_half)
            with pytest.raises(ObjectStoreError, match=r"00000001\..*reads otherwise"):
                store.offload()
        assert local(store) == [1]
        assert store.offload().num_uploaded == 1
        read(store, 0, 1)


def test_damaged_file_is_not_uploaded_and_others_are(tiered: Tiered) -> None:
    with tiered.open() as store:
        filled(store, 3)
        path = store.root / places(store)[1].path
        whole = path.read_bytes()
        path.unlink()
        path.write_bytes(damage(whole))
        done = store.offload()
        assert done.num_uploaded == 2
        assert [path.name in reason for reason in done.failed] == [True]
        assert places(store)[1].path not in tiered.objects
        path.unlink()
        path.write_bytes(whole)
        assert store.offload().num_uploaded == 1


@on_both
def test_stop_between_upload_and_its_note_uploads_again(
    tiered: Tiered, monkeypatch: pytest.MonkeyPatch
) -> None:
    class StoppedError(BaseException):
        pass

    def stop(*_: object) -> None:
        raise StoppedError

    with tiered.open(1) as store:
        filled(store, 2)
        with monkeypatch.context() as patch:
            patch.setattr(store._catalog.objects, "note_uploaded", stop)
            with pytest.raises(StoppedError):
                store.offload()
        assert len(tiered.objects) == 1
        assert local(store) == [0, 1]
    with tiered.open() as store:
        assert store.verify() == []
        assert store.offload().num_uploaded == 2
        assert tiered.objects == segment_files(store)
        read(store, 0, 1)


@on_both
def test_bucket_that_is_away_delays_uploads_and_no_commit(tiered: Tiered) -> None:
    with tiered.open() as store:
        epoch = filled(store, 2)
        store.offload()
        with tiered.s3.away():
            for no in (2, 3):
                store_segment(store, "cam", epoch, make_kv(no))
            with pytest.raises(ObjectStoreError, match="s3://"):
                store.offload()
            state = store.tiers()
            assert (state.uploads.num_waiting, state.uploads.waiting_bytes) == (2, 2 * tiered.one_bytes)
            assert tiered.prefix in state.unreachable
            check_segments(store.reader("cam").snapshot, 4)
        assert store.tiers().unreachable == ""
        assert store.offload().num_uploaded == 2
        assert store.verify(read_objects=True) == []


def test_bucket_that_hangs_is_given_up(tiered: Tiered) -> None:
    with tiered.open() as store:
        filled(store, 1)
        with tiered.s3.hung(), pytest.raises(ObjectStoreError):
            store.offload()
        assert store.offload().num_uploaded == 1


def test_file_that_is_away_with_its_bucket_is_named_and_comes_back(tiered: Tiered) -> None:
    with tiered.open() as store:
        filled(store, 3)
    with tiered.open(0.1) as store:
        store.offload()
        assert local(store) == []
        with tiered.s3.away():
            with pytest.raises(ObjectStoreError, match=r"s3://.*/streams/cam/00000001\."):
                read(store, 1)
            with pytest.raises(ObjectStoreError):
                store.verify()
            assert store.tiers().uploads.num_uploaded == 3
        read(store, 0, 1, 2)


def test_slow_bucket_serves_all_the_same(tiered: Tiered) -> None:
    with tiered.open() as store:
        filled(store, 2)
    with tiered.s3.slow(0.1), tiered.open(0.1) as store:
        assert store.offload().num_uploaded == 2
        assert local(store) == []
        read(store, 0, 1)
