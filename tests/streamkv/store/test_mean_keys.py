"""Mean keys in memory are those of the files, whatever was asked for before, and no more than their bytes."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_samples import filled
from tiny import random_segment_kv

from streamkv.errors import UnknownStreamError
from streamkv.memory import InMemoryVideo
from streamkv.store import ModelIdentity, SegmentStore, write_segment
from streamkv.store.mean_keys import FIRST_ROWS, MeanKeys
from streamkv.store.segment_file import SegmentFile
from streamkv.types import Geometry

DIM = 3


def keys_of(path: str, layer: int) -> np.ndarray:
    """What a file has: 0 to 4 rows that are of no other one."""
    number = int(path)
    return np.arange(number % 5 * DIM, dtype=np.float32).reshape(-1, DIM) + 100 * number + 10_000 * layer


class Files:
    """Notes what was read."""

    def __init__(self) -> None:
        self.read: list[tuple[str, int]] = []

    def table(self, kept: MeanKeys, layer: int, paths: Sequence[str]) -> None:
        """Asks, and checks what comes."""

        def read(positions: Sequence[int]) -> list[np.ndarray]:
            self.read += [(paths[i], layer) for i in positions]
            return [keys_of(paths[i], layer) for i in positions]

        counts, rows = kept.of(layer, paths, read)
        expected = [keys_of(path, layer) for path in paths]
        assert counts.tolist() == [len(part) for part in expected]
        assert np.array_equal(rows, np.concatenate([*expected, np.empty((0, DIM), np.float32)]))


def names(*numbers: int) -> list[str]:
    return [str(number) for number in numbers]


@given(
    st.lists(
        st.tuples(st.integers(0, 1), st.lists(st.integers(0, 30), unique=True, max_size=12)), max_size=20
    ),
    st.integers(0, 60),
)
@settings(max_examples=150)
def test_tables_are_what_the_files_have(asked: list[tuple[int, list[int]]], max_rows: int) -> None:
    kept, files = MeanKeys(DIM, 2 * 4 * DIM * max_rows), Files()
    for layer, numbers in asked:
        files.table(kept, layer, names(*numbers))
        assert kept.num_rows <= 2 * max_rows


def test_each_is_read_once_while_there_is_room() -> None:
    kept, files = MeanKeys(DIM, 1 << 20), Files()
    for _ in range(3):
        files.table(kept, 0, names(4, 9, 13))
        files.table(kept, 0, names(9, 4))
        files.table(kept, 1, names(4))
    assert files.read == [("4", 0), ("9", 0), ("13", 0), ("4", 1)]


def test_many_are_kept() -> None:
    kept, files = MeanKeys(DIM, 1 << 20), Files()
    everything = names(*range(2 * FIRST_ROWS))
    for _ in range(2):
        files.table(kept, 0, everything)
        files.table(kept, 0, everything[::-7])
    assert len(files.read) == len(everything)


def test_what_was_asked_for_lately_stays_and_the_rest_goes() -> None:
    kept, files = MeanKeys(DIM, 2 * 4 * DIM * 12), Files()  # of each generation: three parts of four rows
    for number in (4, 9, 14, 4, 19, 4, 24, 4, 29, 4):
        files.table(kept, 0, names(number))
    assert files.read.count(("4", 0)) == 1
    files.table(kept, 0, names(9))
    assert files.read.count(("9", 0)) == 2


def test_a_table_that_is_more_than_all_of_it_leaves_the_rest_in_peace() -> None:
    kept, files = MeanKeys(DIM, 2 * 4 * DIM * 12), Files()
    files.table(kept, 0, names(4, 9))
    files.table(kept, 0, names(*range(4, 60, 5)))
    files.table(kept, 0, names(9, 4))
    assert files.read.count(("4", 0)) == files.read.count(("9", 0)) == 1


def test_what_is_forgotten_is_read_again() -> None:
    kept, files = MeanKeys(DIM, 1 << 20), Files()
    files.table(kept, 0, names(4, 9))
    kept.forget(["4", "77"])
    files.table(kept, 0, names(4, 9))
    assert files.read == [("4", 0), ("9", 0), ("4", 0)]


def test_what_cannot_be_read_is_an_error_and_nothing_is_kept_of_it() -> None:
    kept, files = MeanKeys(DIM, 1 << 20), Files()

    def fails(positions: Sequence[int]) -> list[np.ndarray]:
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        kept.of(0, names(4), fails)
    files.table(kept, 0, names(4))
    assert files.read == [("4", 0)]


def test_threads_may_share_it() -> None:
    kept = MeanKeys(DIM, 2 * 4 * DIM * 40)

    def ask(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(200):
            numbers = rng.choice(60, 8, replace=False).tolist()
            Files().table(kept, int(rng.integers(2)), names(*numbers))
            kept.forget(names(int(rng.integers(60))))

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(ask, range(4)))  # raises what one of them did


def test_a_reader_compares_again_without_opening_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More segments than files may be open: the second table is of the first one's rows, and of no file."""
    geometry = Geometry(2, 8, 2, 8, 64, 3)
    kvs = [random_segment_kv(geometry, no, num_frames=2) for no in range(6)]
    with SegmentStore.open(
        tmp_path, identity=ModelIdentity("tiny", geometry, "float32"), max_open_files=2
    ) as store:
        store.add_stream("s", "file.mp4")
        epoch = store.begin_writing("s")
        for kv in kvs:
            store.commit(write_segment(store.root, store.identity, "s", epoch, kv, "raw"))
        snapshot = store.reader("s").refresh()
        opened: list[Path] = []
        init = SegmentFile.__init__

        def note(file: SegmentFile, path: Path, verified: bytearray | None = None) -> None:
            opened.append(path)
            init(file, path, verified)

        monkeypatch.setattr(SegmentFile, "__init__", note)
        nos = np.array([5, 0, 3, 1])
        for _ in range(3):
            table, expected = snapshot.table(1, nos), InMemoryVideo(geometry, kvs).table(1, nos)
            assert np.array_equal(table.segment_nos, expected.segment_nos)
            assert np.array_equal(table.slots, expected.slots)
            assert np.array_equal(table.mean_keys, expected.mean_keys)
        assert len(opened) == len(nos)


def test_what_another_process_has_deleted_is_forgotten(store: SegmentStore) -> None:
    """A reader gives it up with its next look at the stream."""
    filled(store, 3)
    with SegmentStore.open(store.root, read_only=True) as other:
        reader = other.reader("cam")
        reader.snapshot.table(0)
        kept = other._files.mean_keys
        assert len(kept.paths) == 3
        store.remove_stream("cam")
        with pytest.raises(UnknownStreamError):
            reader.refresh()
        assert kept.paths == set()
