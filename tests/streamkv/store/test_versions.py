"""What version 1 wrote is read as it was; a store of it goes on as one of this version."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from store_samples import IDENTITY, assert_same_segment, make_kv, store_segment
from torch import Tensor

from streamkv.store import SegmentFile, SegmentPlace, SegmentStore
from streamkv.store.records import FORMAT_VERSION
from streamkv.types import SegmentKV

SAMPLE = Path(__file__).parent / "samples" / "version1.arrow"
"""Written by the program before codecs: segment 0 of `cam`, epoch 1, the content of `sample_kv`."""
CHECKSUM = "1531dcb0"


def sample_kv() -> SegmentKV:
    def even(tensor: Tensor, start: int) -> Tensor:
        return (torch.arange(tensor.numel(), dtype=torch.float32) / 8 - start).reshape(tensor.shape)

    kv = make_kv(0)
    layers = tuple(
        replace(blocks, keys_bNGd=even(blocks.keys_bNGd, i), values_bNGd=even(blocks.values_bNGd, -i))
        for i, blocks in enumerate(kv.layers)
    )
    return replace(kv, layers=layers, summary_vectors=even(kv.summary_vectors, 9))


def test_file_of_version_1_is_read_to_the_last_bit() -> None:
    file = SegmentFile(SAMPLE)
    assert b'"format_version": 1' in SAMPLE.read_bytes()
    file.verify(CHECKSUM)
    assert file.header.codec == "raw"
    assert_same_segment(file.segment_kv(), sample_kv())


def change(root: Path, statement: str) -> None:
    with closing(sqlite3.connect(root / "catalog.sqlite")) as database:
        database.execute(statement)
        database.commit()


@pytest.fixture
def old_root(tmp_path: Path) -> Path:
    """A store as version 1 left it: its one segment, and its number in catalog and marker."""
    root = tmp_path / "root"
    kv = sample_kv()
    path = f"streams/cam/00000000.e000001.{CHECKSUM}.arrow"
    with SegmentStore.open(root, identity=IDENTITY) as store:
        change(root, "UPDATE store SET last_epoch = -1")  # adding takes an epoch; the writer's is to be 1
        store.add_stream("cam", "file:x")
        epoch = store.begin_writing("cam")
        (root / path).parent.mkdir(parents=True)
        shutil.copy(SAMPLE, root / path)
        store.commit(
            SegmentPlace(
                stream_id="cam",
                segment_no=0,
                epoch=epoch,
                path=path,
                start_s=kv.start_s,
                end_s=kv.end_s,
                num_frames=kv.num_frames,
                num_source_frames=kv.num_source_frames,
                resume_s=kv.resume_s,
                kv_bytes=kv.kv_bytes,
                file_bytes=SAMPLE.stat().st_size,
                checksum=CHECKSUM,
            )
        )
    change(root, "UPDATE store SET format_version = 1")
    marker = root / "store.json"
    marker.write_text(json.dumps(json.loads(marker.read_text()) | {"format_version": 1}))
    return root


def versions(root: Path) -> tuple[int, int]:
    """In the catalog and in the marker."""
    with closing(sqlite3.connect(root / "catalog.sqlite")) as database:
        (row,) = database.execute("SELECT format_version FROM store").fetchone()
    return row, json.loads((root / "store.json").read_text())["format_version"]


def test_store_of_version_1_is_read_unchanged(old_root: Path) -> None:
    with SegmentStore.open(old_root, read_only=True) as store:
        assert_same_segment(store.reader("cam").snapshot._file(0).segment_kv(), sample_kv())
        assert store.verify() == []
    assert versions(old_root) == (1, 1)


def test_store_of_version_1_goes_on_as_this_version(old_root: Path) -> None:
    with SegmentStore.open(old_root, identity=IDENTITY) as store:
        store_segment(store, "cam", store.begin_writing("cam"), make_kv(1))
        snapshot = store.reader("cam").snapshot
        assert_same_segment(snapshot._file(0).segment_kv(), sample_kv())
        assert_same_segment(snapshot._file(1).segment_kv(), make_kv(1))
        assert store.verify() == []
    assert versions(old_root) == (FORMAT_VERSION, FORMAT_VERSION)
