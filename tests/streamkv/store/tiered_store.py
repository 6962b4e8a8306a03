"""A store whose segments are in an object store too, and what its tests ask of it."""

from __future__ import annotations

import os
from pathlib import Path

from s3_server import S3Server
from store_samples import IDENTITY, assert_same_segment, make_kv, segment_files

from streamkv.store import ObjectStore, SegmentPlace, SegmentStore, write_segment


class Tiered:
    """A store and its bucket; `open` is what another process would do."""

    def __init__(self, s3: S3Server, root: Path, catalog_url: str) -> None:
        self.s3, self.root, self.catalog_url = s3, root, catalog_url
        self.prefix = s3.new_prefix()
        self.one_bytes = write_segment(root.parent / "size", IDENTITY, "cam", 1, make_kv()).file_bytes

    def open(
        self, segments: float = 0, *, read_only: bool = False, remote: bool = True, remote_codec: str = ""
    ) -> SegmentStore:
        """`segments`: how many the local disk may have; all are as large."""
        return SegmentStore.open(
            self.root,
            catalog_url=self.catalog_url,
            identity=IDENTITY,
            read_only=read_only,
            objects=ObjectStore(self.prefix, self.s3.config) if remote else None,
            local_bytes=int(segments * self.one_bytes) if segments else 0,
            remote_codec=remote_codec,
        )

    @property
    def objects(self) -> list[str]:
        return sorted(self.s3.objects(self.prefix))


def places(store: SegmentStore) -> list[SegmentPlace]:
    return store.segments("cam", 0, 99)


def local(store: SegmentStore) -> list[int]:
    """Numbers of the segments that are on the disk."""
    return [int(Path(path).name.partition(".")[0]) for path in segment_files(store)]


def read(store: SegmentStore, *numbers: int) -> None:
    for no in numbers:
        assert_same_segment(store.reader("cam").snapshot._file(no).segment_kv(), make_kv(no))


def last_used(store: SegmentStore, *numbers: int) -> None:
    """As if these had been used in this order, long ago."""
    by_number = {place.segment_no: store.root / place.path for place in places(store)}
    for i, no in enumerate(numbers):
        os.utime(by_number[no], (1_000_000 + i, by_number[no].stat().st_mtime))


def damage(data: bytes) -> bytes:
    """One bit is another, in the middle."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :]
