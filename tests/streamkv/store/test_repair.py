"""A lost catalog comes back from the files; what else is wrong is named, and put right where it can be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import create_engine, text
from store_samples import IDENTITY, assert_same_segment, filled, make_kv, on_both, raw, store_segment

from streamkv.errors import ForeignStoreError, StoreError
from streamkv.store import Gap, ModelIdentity, SegmentStore, write_segment
from streamkv.store.codecs import CODECS
from streamkv.store.repair import rebuild_catalog

QUERY = torch.arange(10.0) - 4


def lose_catalog(store: SegmentStore, url: str = "") -> Path:
    store.close()
    if url:
        engine = create_engine(url)
        with engine.begin() as connection:
            connection.execute(text("DROP SCHEMA public CASCADE"))
            connection.execute(text("CREATE SCHEMA public"))
        engine.dispose()
    for path in store.root.glob("catalog.sqlite*"):
        path.unlink()
    return store.root


def answers(root: Path, stream_id: str = "cam", url: str = "") -> list[object]:
    """Everything that a question reads."""
    with SegmentStore.open(root, catalog_url=url, identity=IDENTITY, read_only=True) as store:
        memory = store.reader(stream_id).snapshot
        out: list[object] = [memory.segments, memory.as_of_s]
        for layer in range(3):
            table = memory.table(layer)
            blocks = memory.gather(layer, table.segment_nos, table.slots)
            out += [memory.search(layer, QUERY, 99).tolist(), raw(table.mean_keys), raw(blocks.keys_bNGd)]
            out += [raw(blocks.values_bNGd), blocks.frame_ids, blocks.spans_s]
        return out


@on_both
def test_answers_are_the_same_after_the_catalog_was_lost(store: SegmentStore, catalog_url: str) -> None:
    store.add_stream("gate", "file:gate.mp4")
    epoch = store.begin_writing("cam")
    for no, codec in enumerate(CODECS):
        store.commit(write_segment(store.root, IDENTITY, "cam", epoch, make_kv(no), codec))
    filled(store, 2, "gate")
    before, info = [answers(store.root, name, catalog_url) for name in ("cam", "gate")], store.stream("cam")
    places = store.segments("cam", 0, 99)
    root = lose_catalog(store, catalog_url)
    done = rebuild_catalog(root, catalog_url)
    assert [line.partition(":")[0] for line in done] == ["cam", "gate"]
    assert [answers(root, name, catalog_url) for name in ("cam", "gate")] == before
    with SegmentStore.open(root, catalog_url=catalog_url, identity=IDENTITY) as again:
        assert again.segments("cam", 0, 99) == places
        found = again.stream("cam")
        assert (found.next_segment_no, found.resume_s) == (info.next_segment_no, info.resume_s)
        assert (found.state, found.uri, found.gaps) == ("stopped", "", ())
        assert again.verify() == []
        store_segment(again, "cam", again.begin_writing("cam"), make_kv(len(CODECS)))  # it goes on
        assert len(again.reader("cam").snapshot.segments) == len(CODECS) + 1


def test_catalog_that_is_there_is_left_alone(store: SegmentStore) -> None:
    filled(store, 2)
    before = store.streams()
    assert rebuild_catalog(store.root) == []
    assert store.streams() == before


def test_epochs_go_on_beyond_all_that_were_taken(store: SegmentStore) -> None:
    filled(store, 1)
    last = [store.begin_writing("cam") for _ in range(9)][-1]  # takes epochs, leaves no file
    root = lose_catalog(store)
    rebuild_catalog(root)
    with SegmentStore.open(root) as again:
        assert again.begin_writing("cam") > last


def test_of_two_files_of_a_segment_the_later_writer_s_counts(store: SegmentStore) -> None:
    epoch = filled(store, 2)
    late = write_segment(
        store.root, IDENTITY, "cam", epoch, make_kv(2, seed=9)
    )  # fenced off, so never committed
    store_segment(store, "cam", store._catalog.take_epoch("cam"), make_kv(2))
    before = answers(store.root)
    root = lose_catalog(store)
    rebuild_catalog(root)
    assert answers(root) == before
    with SegmentStore.open(root) as again:
        assert [problem.path for problem in again.verify()] == [late.path]
        assert again.repair(again.verify()) == [f"{late.path}: removed"]
        assert again.verify() == []
    assert answers(root) == before


def test_damaged_and_missing_files_become_gaps(store: SegmentStore) -> None:
    epoch = store.begin_writing("cam")
    places = [store_segment(store, "cam", epoch, make_kv(no)) for no in range(6)]
    (store.root / places[1].path).unlink()
    damage(store.root / places[3].path, 5000)
    root = lose_catalog(store)
    done = rebuild_catalog(root)
    name = Path(places[3].path).name
    assert done == [
        "cam: 4 segments are in the catalog again; segment 1 is lost; segment 3 is lost",
        f"{places[3].path}: damaged; it is damaged/cam.{name} now",
    ]
    with SegmentStore.open(root) as again:
        assert [s.segment_no for s in again.reader("cam").snapshot.segments] == [0, 2, 4, 5]
        assert again.stream("cam").gaps == (
            Gap(4.0, 8.0, "segment 1 is lost"),
            Gap(12.0, 16.0, "segment 3 is lost"),
        )
        assert again.stream("cam").next_segment_no == 6
        assert again.verify() == []


def test_nothing_is_made_of_nothing_or_of_two_models(tmp_path: Path, store: SegmentStore) -> None:
    with pytest.raises(StoreError, match="neither a catalog nor a whole segment file"):
        rebuild_catalog(tmp_path / "nowhere")
    filled(store, 1)
    other = ModelIdentity("town-2", IDENTITY.geometry, "float32")
    write_segment(store.root, other, "gate", 1, make_kv())
    root = lose_catalog(store)
    with pytest.raises(ForeignStoreError, match=r"gate.*fingerprint: 'town-2' against 'town-1'"):
        rebuild_catalog(root)
    with pytest.raises(StoreError, match="verify --repair"):
        SegmentStore.open(root, identity=IDENTITY)


# ---------------------------------------------------------------- with a catalog


def damage(path: Path, at: int) -> None:
    whole = bytearray(path.read_bytes())
    whole[at] ^= 4
    path.unlink()  # a mapped file must not change under its map
    path.write_bytes(whole)


@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(sorted(CODECS)), st.floats(0, 1, exclude_max=True), st.integers(0, 7))
def test_flipped_bit_anywhere_is_named(store: SegmentStore, codec: str, where: float, bit: int) -> None:
    if store.stream("cam").num_segments == 0:
        epoch = store.begin_writing("cam")
        for no, name in enumerate(sorted(CODECS)):
            store.commit(write_segment(store.root, IDENTITY, "cam", epoch, make_kv(no), name))
    place = store.segments("cam", sorted(CODECS).index(codec), 1)[0]
    path = store.root / place.path
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[int(where * len(whole))] ^= 1 << bit
    path.unlink()  # a mapped file must not change under its map
    path.write_bytes(damaged)
    try:
        problems = store.verify()
        assert [(problem.kind, problem.path) for problem in problems] == [("corrupt", place.path)]
        assert path.name in str(problems[0])
    finally:
        path.write_bytes(whole)


@on_both
def test_repair_with_a_catalog_loses_only_what_is_lost(store: SegmentStore) -> None:
    epoch = store.begin_writing("cam")
    places = [store_segment(store, "cam", epoch, make_kv(no)) for no in range(4)]
    (store.root / places[0].path).unlink()
    damage(store.root / places[2].path, 5000)
    temp = store.root / "streams/cam" / f".00000004.e{epoch:06d}.{'0' * 32}.tmp"
    temp.write_bytes(b"half")
    (store.root / "streams/stray").write_text("mine")
    problems = store.verify()
    assert {p.path for p in problems} == {
        places[0].path,
        places[2].path,
        temp.relative_to(store.root).as_posix(),
        "streams/stray",
    }
    done = store.repair(problems)
    assert len(done) == 3
    assert [(p.kind, p.path) for p in store.verify()] == [("extra", "streams/stray")]
    snapshot = store.reader("cam").snapshot
    assert [s.segment_no for s in snapshot.segments] == [1, 3]
    for no in (1, 3):
        assert_same_segment(snapshot._file(no).segment_kv(), make_kv(no))
    assert [(gap.start_s, gap.reason) for gap in store.stream("cam").gaps] == [
        (0.0, "segment 0 is missing"),
        (8.0, "segment 2 is corrupt"),
    ]
    assert [path.name for path in (store.root / "damaged").iterdir()] == [f"cam.{Path(places[2].path).name}"]


@on_both
def test_one_stream_can_be_verified_alone(store: SegmentStore) -> None:
    store.add_stream("gate", "file:gate.mp4")
    filled(store, 2)
    filled(store, 1, "gate")
    (store.root / store.segments("gate", 0, 1)[0].path).unlink()
    seen: list[tuple[int, int]] = []
    assert store.verify("cam", lambda done, total: seen.append((done, total))) == []
    assert seen == [(1, 2), (2, 2)]
    assert [problem.kind for problem in store.verify("gate")] == ["missing"]
    assert np.array_equal(store.reader("cam").snapshot.table(0).segment_nos, np.repeat([0, 1], 4))
