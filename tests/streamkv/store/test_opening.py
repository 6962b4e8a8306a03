"""Which store opens, for whom, and what is refused by name."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from store_samples import (
    GEOMETRY,
    IDENTITY,
    assert_same_segment,
    filled,
    make_kv,
    on_both,
    segment_files,
    store_segment,
)

from streamkv.errors import (
    ForeignStoreError,
    StoreError,
)
from streamkv.store import SegmentStore, write_segment


@on_both
def test_reopened_store_is_the_same(store: SegmentStore, catalog_url: str) -> None:
    filled(store, 2)
    store.set_state("cam", "done")
    with SegmentStore.open(store.root, catalog_url=catalog_url, identity=IDENTITY) as again:
        assert again.streams() == store.streams()
        assert again.identity == IDENTITY
        assert_same_segment(again.reader("cam").snapshot._file(1).segment_kv(), make_kv(1))
    with SegmentStore.open(store.root, catalog_url=catalog_url) as whichever:
        assert whichever.identity == IDENTITY


@pytest.mark.parametrize(
    ("identity", "named"),
    [
        (replace(IDENTITY, fingerprint="town-2"), "fingerprint: 'town-1' against 'town-2'"),
        (replace(IDENTITY, dtype="bfloat16"), "dtype: 'float32' against 'bfloat16'"),
        (replace(IDENTITY, geometry=replace(GEOMETRY, head_dim=6)), "geometry: .*5.* against .*6"),
    ],
)
def test_store_of_another_model_is_refused(store: SegmentStore, identity: object, named: str) -> None:
    with pytest.raises(ForeignStoreError, match=named):
        SegmentStore.open(store.root, identity=identity)
    assert store.stream("cam")


def test_store_of_another_format_is_refused(store: SegmentStore) -> None:
    with sqlite3.connect(store.root / "catalog.sqlite") as database:
        database.execute("UPDATE store SET format_version = 7")
    database.close()
    with pytest.raises(ForeignStoreError, match="format version 7, this program reads 1, 2"):
        SegmentStore.open(store.root, identity=IDENTITY)


def test_segment_file_of_another_model_is_refused(store: SegmentStore) -> None:
    epoch = store.begin_writing("cam")
    place = store_segment(store, "cam", epoch, make_kv(0))
    other = replace(IDENTITY, fingerprint="town-2")
    foreign = write_segment(store.root / "other", other, "cam", epoch, make_kv(0))
    shutil.copy(store.root / "other" / foreign.path, store.root / place.path)
    with pytest.raises(ForeignStoreError, match="fingerprint: 'town-2' against 'town-1'"):
        store.reader("cam").snapshot.table(0)


def test_nothing_is_made_without_an_identity(tmp_path: Path) -> None:
    for kwargs in ({}, {"identity": IDENTITY, "read_only": True}):
        with pytest.raises(StoreError, match="no store in"):
            SegmentStore.open(tmp_path / "root", **kwargs)
    assert not (tmp_path / "root").exists()


@on_both
def test_read_only_store_reads_and_writes_nothing(store: SegmentStore, catalog_url: str) -> None:
    epoch = filled(store, 2)
    with SegmentStore.open(store.root, catalog_url=catalog_url, read_only=True) as readonly:
        assert readonly.streams() == store.streams()
        reader = readonly.reader("cam")
        place = store_segment(store, "cam", epoch, make_kv(2))
        assert len(reader.refresh().segments) == 3
        writes: list[Callable[[], object]] = [
            lambda: readonly.add_stream("x", "y"),
            lambda: readonly.remove_stream("cam"),
            lambda: readonly.set_state("cam", "done"),
            lambda: readonly.add_gap("cam", 0, 1, "x"),
            lambda: readonly.begin_writing("cam"),
            lambda: readonly.commit(place),
            lambda: readonly.collect_orphans("cam"),
        ]
        for write in writes:
            with pytest.raises(StoreError, match="reading only"):
                write()


def test_store_on_a_read_only_disk_can_be_read(store: SegmentStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no room for SQLite's shared memory. `os.access` stands in for it, as root writes anywhere."""
    filled(store, 2)
    store.close()
    assert not (store.root / "catalog.sqlite-wal").exists()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    before = sorted(store.root.rglob("*"))
    with SegmentStore.open(store.root, read_only=True) as readonly:
        assert len(readonly.reader("cam").snapshot.segments) == 2
        assert sorted(store.root.rglob("*")) == before


def test_lost_catalog_is_said_and_no_file_is_touched(store: SegmentStore) -> None:
    filled(store, 2)
    store.close()
    for path in store.root.glob("catalog.sqlite*"):
        path.unlink()
    before = segment_files(store)
    with pytest.raises(StoreError, match=r"holds segment files, but catalog .* is new: restore"):
        SegmentStore.open(store.root, identity=IDENTITY)
    assert segment_files(store) == before


def test_catalog_of_another_root_is_refused(store: SegmentStore, tmp_path: Path) -> None:
    """Or every file of this root would be an orphan."""
    with SegmentStore.open(tmp_path / "other", identity=IDENTITY) as other:
        other.add_stream("cam", "file:x")
        url = f"sqlite:///{other.root}/catalog.sqlite"
    filled(store, 2)
    before = segment_files(store)
    with pytest.raises(ForeignStoreError, match="belongs to store"):
        SegmentStore.open(store.root, catalog_url=url, identity=IDENTITY)
    with pytest.raises(ForeignStoreError, match="is no store"):
        SegmentStore.open(tmp_path / "nowhere", catalog_url=url, identity=IDENTITY)
    assert segment_files(store) == before


def test_catalog_can_be_elsewhere(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/elsewhere.db"
    with SegmentStore.open(tmp_path / "root", catalog_url=url, identity=IDENTITY) as store:
        store.add_stream("cam", "file:x")
        filled(store, 2)
    with SegmentStore.open(tmp_path / "root", catalog_url=url) as again:
        assert again.stream("cam").num_segments == 2
    assert not (tmp_path / "root" / "catalog.sqlite").exists()


@pytest.mark.parametrize("url", ["nonsense", "nonsense://x", "sqlite://", "sqlite:///:memory:"])
def test_unusable_catalog_url_is_said(tmp_path: Path, url: str) -> None:
    with pytest.raises(StoreError, match=r"store\.catalog_url"):
        SegmentStore.open(tmp_path / "root", catalog_url=url, identity=IDENTITY)


def test_damaged_catalog_is_said(store: SegmentStore) -> None:
    store.close()
    (store.root / "catalog.sqlite").write_bytes(b"this is no database, it is a letter to the future" * 99)
    with pytest.raises(StoreError, match=r"catalog sqlite:.*not a database"):
        SegmentStore.open(store.root, identity=IDENTITY)


def test_damaged_marker_is_said(store: SegmentStore) -> None:
    (store.root / "store.json").write_text("{")
    with pytest.raises(StoreError, match=r"store\.json: not a store's marker"):
        SegmentStore.open(store.root, identity=IDENTITY)


def test_root_that_is_a_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "root").write_text("")
    with pytest.raises(StoreError, match=r"store\.root"):
        SegmentStore.open(tmp_path / "root", identity=IDENTITY)


def test_root_with_odd_characters_works(tmp_path: Path) -> None:
    root = tmp_path / "a b?c#d%20é"
    with SegmentStore.open(root, identity=IDENTITY) as store:
        store.add_stream("cam", "file:x")
        filled(store, 1)
        assert store.verify() == []
    assert {path.name for path in root.iterdir()} == {"catalog.sqlite", "store.json", "streams", "vectors"}


@on_both
def test_store_made_by_many_at_once_is_one(tmp_path: Path, catalog_url: str) -> None:
    def make(i: int) -> str:
        with SegmentStore.open(tmp_path / "root", catalog_url=catalog_url, identity=IDENTITY) as store:
            store.add_stream(f"cam-{i}", "file:x")
        return str(json.loads((tmp_path / "root" / "store.json").read_text())["store_id"])

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(make, range(8)))) == 1
    with SegmentStore.open(tmp_path / "root", catalog_url=catalog_url) as store:
        assert len(store.streams()) == 8


def test_opening_waits_for_a_catalog_that_another_process_makes(tmp_path: Path) -> None:
    """SQLite refuses the switch to WAL at once while anybody holds a lock, whatever the timeout."""
    root = tmp_path / "root"
    root.mkdir()
    other = sqlite3.connect(root / "catalog.sqlite", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    other.execute("CREATE TABLE busy (x)")
    release = threading.Timer(0.3, other.rollback)
    release.start()
    SegmentStore.open(root, identity=IDENTITY).close()
    release.join()
    other.close()
