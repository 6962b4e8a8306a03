"""Streams and segments: what counts, who may write, what is cleaned up, what is refused."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event
from store_samples import (
    IDENTITY,
    assert_same_segment,
    filled,
    make_kv,
    on_both,
    segment_files,
    store_segment,
)

from streamkv.errors import (
    CorruptSegmentError,
    FencedError,
    StoreError,
    StreamExistsError,
    StreamIdError,
    UnknownStreamError,
)
from streamkv.store import Gap, SegmentFile, SegmentStore, layout, write_segment
from streamkv.store.deletion import Deletion

pytestmark = on_both

# ---------------------------------------------------------------- streams


def test_new_stream_is_registered_and_empty(store: SegmentStore) -> None:
    info = store.stream("cam")
    assert (info.stream_id, info.uri, info.config) == ("cam", "file:cam.mp4", {"sample_fps": 0.5})
    assert (info.state, info.detail, info.epoch) == ("registered", "", 0)
    assert (info.num_segments, info.next_segment_no, info.as_of_s, info.resume_s) == (0, 0, 0.0, 0.0)
    assert (info.num_frames, info.kv_bytes, info.gaps) == (0, 0, ())
    assert store.streams() == [info]


def test_stream_counts_what_was_committed(store: SegmentStore) -> None:
    filled(store, 3)
    info = store.stream("cam")
    assert (info.num_segments, info.next_segment_no) == (3, 3)
    assert (info.num_frames, info.num_source_frames) == (12, 15)
    assert (info.as_of_s, info.resume_s) == (12.0, 12.0)
    assert info.kv_bytes == 3 * make_kv().kv_bytes
    assert info.file_bytes == sum((store.root / path).stat().st_size for path in segment_files(store))


def test_streams_do_not_mix(store: SegmentStore) -> None:
    store.add_stream("gate", "file:gate.mp4")
    filled(store, 2)
    filled(store, 1, "gate")
    assert [(info.stream_id, info.num_segments) for info in store.streams()] == [("cam", 2), ("gate", 1)]
    store.remove_stream("cam")
    assert [(info.stream_id, info.num_segments) for info in store.streams()] == [("gate", 1)]
    assert store.verify() == []


def test_second_stream_of_an_id_is_refused(store: SegmentStore) -> None:
    with pytest.raises(StreamExistsError, match="'cam' exists already"):
        store.add_stream("cam", "file:other.mp4")
    assert store.stream("cam").uri == "file:cam.mp4"


@pytest.mark.parametrize("stream_id", ["../x", "a/b", "", ".hidden", "a..b", "x" * 65])
def test_unsafe_id_is_refused(store: SegmentStore, stream_id: str) -> None:
    with pytest.raises(StreamIdError, match="allowed 1 to 64"):
        store.add_stream(stream_id, "file:x")


def test_unknown_stream_names_some_known_ones(store: SegmentStore) -> None:
    for i in range(9):
        store.add_stream(f"door-{i}", "file:x")
    calls: list[Callable[[], object]] = [
        lambda: store.stream("nope"),
        lambda: store.reader("nope"),
        lambda: store.begin_writing("nope"),
        lambda: store.set_state("nope", "done"),
        lambda: store.add_gap("nope", 0, 1, "x"),
        lambda: store.remove_stream("nope"),
        lambda: store.collect_orphans("nope"),
    ]
    for call in calls:
        with pytest.raises(UnknownStreamError, match=r"'nope': unknown; known: cam, door-0.* door-6 \.\.\."):
            call()


def test_of_many_at_once_one_gets_the_id(store: SegmentStore) -> None:
    def add(_: int) -> bool:
        try:
            store.add_stream("gate", "file:x")
        except StreamExistsError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(add, range(8))) == [False] * 7 + [True]


def test_state_and_detail_are_kept(store: SegmentStore) -> None:
    store.set_state("cam", "failed", "no video in it")
    assert (store.stream("cam").state, store.stream("cam").detail) == ("failed", "no video in it")
    store.set_state("cam", "ingesting")
    assert (store.stream("cam").state, store.stream("cam").detail) == ("ingesting", "")
    with pytest.raises(StoreError, match="got 'asleep', allowed registered, ingesting"):
        store.set_state("cam", "asleep")


def test_gap_is_noted_once(store: SegmentStore) -> None:
    store.add_gap("cam", 9.0, 12.5, "truncated")
    store.add_gap("cam", 2.0, 3.0, "corrupt packets")
    store.add_gap("cam", 9.0, 12.5, "truncated")
    assert store.stream("cam").gaps == (Gap(2.0, 3.0, "corrupt packets"), Gap(9.0, 12.5, "truncated"))
    with pytest.raises(StoreError, match=r"gap: got 3\.0 to 2\.0"):
        store.add_gap("cam", 3.0, 2.0, "backwards")


def test_removed_stream_leaves_neither_rows_nor_files(store: SegmentStore) -> None:
    filled(store, 2)
    store.add_gap("cam", 0, 1, "x")
    store.remove_stream("cam")
    assert store.streams() == []
    assert segment_files(store) == []
    assert not (store.root / "streams" / "cam").exists()
    store.add_stream("cam", "file:again.mp4")
    info = store.stream("cam")
    assert (info.next_segment_no, info.num_segments, info.gaps) == (0, 0, ())
    assert store._catalog.removed() == {}  # opening need not look into its folder any more


def test_removal_cut_between_rows_and_files_is_finished_at_open(
    store: SegmentStore, catalog_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(store, 2)
    store.add_stream("gate", "file:x")
    filled(store, 1, "gate")
    with monkeypatch.context() as patch:
        patch.setattr(Deletion, "delete_removed", lambda self, stream_id, epoch: [])
        store.remove_stream("cam")
    assert len(segment_files(store)) == 3
    SegmentStore.open(store.root, catalog_url=catalog_url, read_only=True).close()
    assert len(segment_files(store)) == 3
    SegmentStore.open(store.root, catalog_url=catalog_url).close()
    assert len(segment_files(store)) == 1
    assert store.verify() == []


def test_file_that_cannot_be_removed_is_said(store: SegmentStore, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(store, 2)

    def refuse(self: Path, missing_ok: bool = False) -> None:
        raise PermissionError(1, "Operation not permitted")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        with pytest.raises(StoreError, match="removed, but not 2 of its files, such as streams/cam/00000000"):
            store.remove_stream("cam")
    assert store.streams() == []
    assert [problem.kind for problem in store.verify()] == ["extra"] * 3  # two segments, and their vectors


def test_writer_of_a_removed_stream_commits_nothing_to_its_successor(store: SegmentStore) -> None:
    old = store.begin_writing("cam")
    store.remove_stream("cam")
    late = write_segment(store.root, IDENTITY, "cam", old, make_kv(0))
    with pytest.raises(UnknownStreamError):
        store.commit(late)
    store.add_stream("cam", "file:x")
    with pytest.raises(FencedError):
        store.commit(late)
    assert store.begin_writing("cam") > old
    with pytest.raises(FencedError):  # though its file is collected, too
        store.commit(late)
    assert store.stream("cam").num_segments == 0
    assert segment_files(store) == []


# ---------------------------------------------------------------- commit


def test_commit_counts_once(store: SegmentStore) -> None:
    epoch = store.begin_writing("cam")
    place = store_segment(store, "cam", epoch, make_kv(0))
    before = store.stream("cam")
    assert store.commit(place) is False
    again = write_segment(store.root, IDENTITY, "cam", epoch, make_kv(0, seed=5))  # other bytes, same segment
    assert store.commit(again) is False
    assert store.stream("cam") == before
    assert_same_segment(SegmentFile(store.root / place.path).segment_kv(), make_kv(0))


def test_hole_is_refused(store: SegmentStore) -> None:
    epoch = filled(store, 1)
    place = write_segment(store.root, IDENTITY, "cam", epoch, make_kv(2))
    with pytest.raises(StoreError, match="got segment 2, the next is 1"):
        store.commit(place)
    assert store.stream("cam").num_segments == 1


def test_earlier_writer_is_fenced_off(store: SegmentStore) -> None:
    first = store.begin_writing("cam")
    store_segment(store, "cam", first, make_kv(0))
    late = write_segment(store.root, IDENTITY, "cam", first, make_kv(1))
    second = store.begin_writing("cam")
    assert second > first
    late = write_segment(store.root, IDENTITY, "cam", first, make_kv(1))  # it was stopped, and comes back
    with pytest.raises(FencedError, match=f"epoch {first} may not commit, the writer is epoch {second}"):
        store.commit(late)
    store_segment(store, "cam", second, make_kv(1, seed=7))
    with pytest.raises(FencedError):
        store.commit(late)
    assert store.stream("cam").num_segments == 2
    assert_same_segment(store.reader("cam").snapshot._file(1).segment_kv(), make_kv(1, seed=7))


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"path": "streams/cam/../../../x.arrow"}, StoreError),
        ({"path": "/etc/passwd"}, StoreError),
        ({"stream_id": "../cam"}, StreamIdError),
        ({"checksum": "../../x"}, StoreError),
        ({"file_bytes": 3}, CorruptSegmentError),
    ],
)
def test_place_that_is_not_the_written_one_is_refused(
    store: SegmentStore, change: dict[str, object], error: type[Exception]
) -> None:
    place = write_segment(store.root, IDENTITY, "cam", store.begin_writing("cam"), make_kv(0))
    with pytest.raises(error):
        store.commit(replace(place, **change))
    assert store.stream("cam").num_segments == 0


def test_commit_of_a_file_that_is_not_there_is_refused(store: SegmentStore) -> None:
    place = write_segment(store.root, IDENTITY, "cam", store.begin_writing("cam"), make_kv(0))
    (store.root / place.path).unlink()
    with pytest.raises(CorruptSegmentError, match="missing"):
        store.commit(place)
    assert store.stream("cam").num_segments == 0


def test_epochs_taken_at_once_all_differ(store: SegmentStore) -> None:
    with ThreadPoolExecutor(8) as pool:
        epochs = list(pool.map(lambda _: store.begin_writing("cam"), range(24)))
    assert len(set(epochs)) == 24
    assert store.stream("cam").epoch == max(epochs)


# ---------------------------------------------------------------- orphans


def test_orphans_of_earlier_writers_go_when_a_new_one_begins(store: SegmentStore) -> None:
    first = filled(store, 1)
    orphan = write_segment(store.root, IDENTITY, "cam", first, make_kv(1))
    temp = store.root / "streams/cam" / f".00000002.e{first:06d}.{'0' * 32}.tmp"
    temp.write_bytes(b"half")
    assert store.collect_orphans("cam") == []  # the writer of this epoch may yet commit them
    assert {problem.path for problem in store.verify()} == {str(temp.relative_to(store.root)), orphan.path}
    store.begin_writing("cam")
    assert store.verify() == []
    assert store.stream("cam").num_segments == 1
    assert_same_segment(store.reader("cam").snapshot._file(0).segment_kv(), make_kv(0))


def test_what_is_not_an_orphan_stays(store: SegmentStore) -> None:
    epoch = filled(store, 2)
    committed = segment_files(store)
    folder = store.root / "streams" / "cam"
    newer = write_segment(store.root, IDENTITY, "cam", epoch + 5, make_kv(2)).path
    (folder / "notes.txt").write_text("mine")
    (folder / f"00000009.e{epoch:06d}.arrow").write_text("not our kind of name")
    store.begin_writing("cam")
    kept = segment_files(store)
    assert set(committed) | {newer} <= set(kept)
    assert len(kept) == 5
    assert {problem.kind for problem in store.verify()} == {"extra"}


# ---------------------------------------------------------------- verify


def test_verify_does_not_mind_a_folder_that_goes_while_it_looks(
    store: SegmentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(store, 1)
    scandir, gone = os.scandir, layout.stream_folder(store.root, "gone")
    gone.mkdir()

    def late(path: Any) -> Any:
        if Path(path) == gone:
            gone.rmdir()
        return scandir(path)

    monkeypatch.setattr(os, "scandir", late)
    assert store.verify() == []
    assert not gone.exists()


def test_verify_names_missing_altered_swapped_and_extra_files(store: SegmentStore) -> None:
    epoch = store.begin_writing("cam")
    places = [store_segment(store, "cam", epoch, make_kv(no)) for no in range(5)]
    paths = [store.root / place.path for place in places]
    assert store.verify() == []
    paths[0].unlink()
    data = bytearray(paths[1].read_bytes())
    data[len(data) // 2] ^= 4
    paths[1].write_bytes(data)
    paths[2].write_bytes(paths[2].read_bytes()[:-9])
    paths[3].write_bytes(paths[4].read_bytes())
    (store.root / "streams" / "stray").write_text("")
    found = [(problem.kind, problem.path) for problem in store.verify()]
    assert found == [
        ("missing", places[0].path),
        ("corrupt", places[1].path),
        ("corrupt", places[2].path),
        ("corrupt", places[3].path),
        ("extra", "streams/stray"),
    ]
    assert "segment 4 of stream 'cam'" in str(store.verify()[3])
    with pytest.raises(CorruptSegmentError, match=paths[0].name):
        store.reader("cam").snapshot.table(0)


def test_listing_streams_takes_as_many_queries_however_many_they_are(store: SegmentStore) -> None:
    def queries() -> int:
        asked: list[str] = []

        def hear(*about: Any) -> None:
            asked.append(about[2])

        event.listen(Engine, "before_cursor_execute", hear)
        try:
            infos = store.streams()
        finally:
            event.remove(Engine, "before_cursor_execute", hear)
        assert [(i.stream_id, i.num_segments, len(i.gaps)) for i in infos if i.num_segments] == [
            ("cam", 2, 1)
        ]
        assert infos == sorted((store.stream(i.stream_id) for i in infos), key=lambda i: i.stream_id)
        return sum(statement.startswith("SELECT") for statement in asked)

    filled(store, 2)
    store.add_gap("cam", 90.0, 95.0, "nothing came")
    few = queries()
    for i in range(20):
        store.add_stream(f"other-{i}", "uri")
    assert queries() == few
