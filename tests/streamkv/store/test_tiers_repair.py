"""What was committed stays readable, or its loss is named: verify, repair, and a store made again."""

from __future__ import annotations

from pathlib import Path

import pytest
from s3_server import S3Server
from store_samples import check_segments, filled, make_kv, on_both, store_segment
from tiered_store import Tiered, damage, places, read

from streamkv.errors import ObjectStoreError
from streamkv.store import Gap, ObjectStore
from streamkv.store.repair import rebuild_catalog


@on_both
def test_verify_names_what_is_wrong_with_objects_and_repair_mends_it(tiered: Tiered) -> None:
    with tiered.open() as store:
        filled(store, 6)
        store.offload()
        paths = [place.path for place in places(store)]
        stray = "streams/cam/00000099.e000001.00000000.arrow"
        tiered.s3.write(tiered.prefix, stray, b"nobody's")
        tiered.s3.delete(tiered.prefix, paths[0])
        tiered.s3.write(tiered.prefix, paths[1], tiered.s3.read(tiered.prefix, paths[1])[:-1])
        tiered.s3.write(tiered.prefix, paths[2], damage(tiered.s3.read(tiered.prefix, paths[2])))
        (store.root / paths[3]).unlink()  # left the disk: nothing is wrong
        whole = (store.root / paths[4]).read_bytes()
        (store.root / paths[4]).unlink()
        (store.root / paths[4]).write_bytes(damage(whole))
        sizes_only = {(p.kind, p.tier, p.path) for p in store.verify()}
        assert sizes_only == {
            ("missing", "objects", paths[0]),
            ("corrupt", "objects", paths[1]),
            ("corrupt", "disk", paths[4]),
            ("extra", "objects", stray),
        }
        problems = store.verify(read_objects=True)
        assert {(p.kind, p.tier, p.path) for p in problems} == sizes_only | {("corrupt", "objects", paths[2])}
        assert all(tiered.prefix in p.detail for p in problems if p.tier == "objects")
        assert len(store.repair(problems)) == 5
        assert store.offload().num_uploaded == 3
        assert store.verify(read_objects=True) == []
        read(store, *range(6))
        assert store.stream("cam").gaps == ()


@on_both
def test_segment_that_is_whole_nowhere_becomes_a_gap(tiered: Tiered) -> None:
    with tiered.open() as store:
        filled(store, 3)
    with tiered.open(0.1) as store:
        store.offload()
        paths = [place.path for place in places(store)]
        tiered.s3.delete(tiered.prefix, paths[0])
        cut = tiered.s3.read(tiered.prefix, paths[1])[:-1]
        tiered.s3.write(tiered.prefix, paths[1], cut)
        store.repair(store.verify())
        assert store.stream("cam").gaps == (
            Gap(0.0, 4.0, "segment 0 is missing"),
            Gap(4.0, 8.0, "segment 1 is corrupt"),
        )
        assert tiered.s3.read(tiered.prefix, f"damaged/cam.{Path(paths[1]).name}") == cut
        store.offload()
        assert store.verify(read_objects=True) == []
        read(store, 2)


def test_repair_gives_up_no_segment_while_its_bucket_is_away_or_not_named(tiered: Tiered) -> None:
    with tiered.open() as store:
        filled(store, 2)
    with tiered.open(0.1) as store:
        store.offload()
        problems = []
        with tiered.open(remote=False) as without:
            problems = without.verify()
            assert [p.detail.endswith("it was uploaded: set store.remote") for p in problems] == [True] * 2
            assert without.repair(problems) == []
            assert len(places(without)) == 2
        with tiered.s3.away(), pytest.raises(ObjectStoreError):
            store.repair(problems)
        read(store, 0, 1)


@on_both
def test_lost_catalog_is_made_again_from_files_and_objects(
    s3: S3Server, tmp_path: Path, catalog_url: str
) -> None:
    tiered = Tiered(s3, tmp_path / "root", "")
    with tiered.open() as store:
        store.add_stream("cam", "file:cam.mp4")
        epoch = filled(store, 4)
    with tiered.open(2) as store:
        store.offload()
        store_segment(store, "cam", epoch, make_kv(4))
        before = places(store)
    for path in tiered.root.glob("catalog.sqlite*"):
        path.unlink()
    tiered.catalog_url = catalog_url
    objects = ObjectStore(tiered.prefix, s3.config)
    assert "5 segments" in rebuild_catalog(tiered.root, catalog_url, objects=objects)[0]
    with tiered.open() as store:
        assert places(store) == before
        assert store.verify(read_objects=True) == []
        check_segments(store.reader("cam").snapshot, 5)
        store.offload()
        assert store.tiers().uploads.num_uploaded == 5


def test_lost_disk_is_made_again_from_objects(tiered: Tiered, tmp_path: Path) -> None:
    with tiered.open() as store:
        filled(store, 3)
        store.offload()
        damaged = places(store)[1].path
        tiered.s3.write(tiered.prefix, damaged, damage(tiered.s3.read(tiered.prefix, damaged)))
    tiered.root = tmp_path / "new disk"
    done = rebuild_catalog(tiered.root, objects=ObjectStore(tiered.prefix, tiered.s3.config))
    assert "2 segments are in the catalog again; segment 1 is lost" in done[0]
    assert done[1].endswith(f"damaged; it is {tiered.prefix}/damaged/cam.{Path(damaged).name} now")
    with tiered.open() as store:
        assert store.verify(read_objects=True) == []
        read(store, 0, 2)
