"""A memory made beside the one that answers takes its place whole, or not at all."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from store_samples import IDENTITY, filled, make_kv, on_both, raw, segment_files, store_segment
from test_crash import RETENTION_STEPS, Disk, Stopped
from tiered_store import Tiered

from streamkv.config import RetentionConfig
from streamkv.errors import LegalHoldError, StoreError, StoreFullError, StreamExistsError, UnknownStreamError
from streamkv.store import SegmentStore, repair

OLD, NEW = 3, 5
"""Segments of each; those of the new memory hold other bytes."""


def make_next(store: SegmentStore, count: int = NEW, *, is_done: bool = True) -> str:
    """A next generation of `cam` with so many segments."""
    stream_id = store.begin_next("cam", {"guidance": "signs"})
    epoch = store.begin_writing(stream_id)
    for no in range(count):
        store_segment(store, stream_id, epoch, make_kv(no, seed=100 + no))
    if is_done:
        store.set_state(stream_id, "done")
    return stream_id


def ended(store: SegmentStore) -> None:
    filled(store, OLD)
    store.set_state("cam", "done")


def is_old(store: SegmentStore) -> bool:
    """Whether `cam` answers from the old memory, whole; else it must be the new one, whole."""
    snapshot = store.reader("cam").refresh()
    seeds = range(OLD) if len(snapshot.segments) == OLD else range(100, 100 + NEW)
    assert [s.segment_no for s in snapshot.segments] == list(range(len(seeds)))
    for no, seed in enumerate(seeds):
        assert raw(snapshot._file(no).segment_kv().summary_vectors) == raw(
            make_kv(no, seed=seed).summary_vectors
        )
    assert sorted(snapshot.search(0, torch.ones(10), 99).tolist()) == list(range(len(seeds)))
    return len(seeds) == OLD


@on_both
def test_the_old_answers_until_the_new_takes_its_place(store: SegmentStore) -> None:
    ended(store)
    reader, before = store.reader("cam"), store.stream("cam")
    stream_id = make_next(store)
    assert [(i.name, i.is_next, i.num_segments) for i in store.streams()] == [
        ("cam", False, OLD),
        ("cam@next", True, NEW),
    ]
    assert [record.name for record in store.records()] == ["cam"]
    assert store.stream("cam") == before
    assert is_old(store)
    store.switch_to(stream_id)
    assert not is_old(store)
    assert [s.segment_no for s in reader.refresh().segments] == list(range(NEW)), (
        "who followed it goes on with it"
    )
    info = store.stream("cam")
    assert (info.stream_id, info.name, info.is_next) == (stream_id, "cam", False)
    assert (info.uri, info.state, info.config) == (before.uri, "done", {"guidance": "signs"})
    assert len(store.streams()) == 1
    assert all(path.startswith(f"streams/{stream_id}/") for path in segment_files(store))
    assert store.verify() == []
    store.switch_to(stream_id)
    assert store.stream("cam") == info, "once more changes nothing"


@on_both
def test_it_may_be_given_up_and_made_again(store: SegmentStore) -> None:
    ended(store)
    before, files = store.stream("cam"), segment_files(store)
    first = make_next(store, is_done=False)
    store.remove_stream(first)
    assert (store.stream("cam"), segment_files(store)) == (before, files)
    assert store.verify() == []
    second = make_next(store)
    assert second != first
    store.switch_to(second)
    third = make_next(store)
    store.switch_to(third)
    assert not is_old(store)
    assert store.stream("cam").stream_id == third
    store.remove_stream("cam")
    assert (store.streams(), segment_files(store)) == ([], [])
    store.add_stream("cam", "file:cam.mp4")
    ended(store)
    assert is_old(store)


@on_both
def test_what_is_refused_changes_nothing(store: SegmentStore) -> None:
    filled(store, OLD)
    with pytest.raises(
        StoreError, match="registered, so that it cannot be encoded again yet; wait until it is done"
    ):
        store.begin_next("cam", {})
    with pytest.raises(UnknownStreamError):
        store.begin_next("nobody", {})
    store.set_state("cam", "done")
    stream_id = make_next(store, is_done=False)
    with pytest.raises(StoreError, match="is being encoded again already"):
        store.begin_next("cam", {})
    with pytest.raises(StoreError, match="allowed 'done'"):
        store.switch_to(stream_id)
    with pytest.raises(StreamExistsError):
        store.add_stream("cam", "x")
    for wrong in (stream_id, "cam@next", "a@1"):
        with pytest.raises(StoreError, match="stream id: got"):
            store.add_stream(wrong, "x")
    assert is_old(store)
    store.remove_stream("cam")
    assert (store.streams(), segment_files(store)) == ([], []), "the next one goes with its stream"


@on_both
def test_a_held_stream_keeps_its_old_memory(store: SegmentStore) -> None:
    ended(store)
    stream_id = make_next(store)
    store.hold("cam", "case 7")
    with pytest.raises(LegalHoldError, match="on legal hold"):
        store.switch_to(stream_id)
    assert is_old(store)
    store.release("cam")
    store.switch_to(stream_id)
    assert not is_old(store)
    store.hold("cam", "case 8")
    assert store.stream("cam").legal_hold == "case 8"
    with pytest.raises(LegalHoldError):
        store.begin_next("cam", {})


@on_both
def test_what_retention_deleted_does_not_come_back_and_footage_is_as_old_as_it_was(
    store: SegmentStore,
) -> None:
    """Old segments of 4 s; the middle one begins the new memory, whose segments are as old as those at their time."""
    ended(store)
    place = store.segments("cam", 0, 1)[0]
    store.retain(RetentionConfig(stream_bytes=2 * place.file_bytes, when_full="oldest"))
    old = {p.start_s: at for p, at in store._catalog.committed_before("cam", 1e12)}
    assert sorted(old) == [4.0, 8.0]
    stream_id = store.begin_next("cam", {})
    info = store.stream(stream_id)
    assert (info.resume_s, [(g.start_s, g.end_s, g.reason) for g in info.gaps]) == (
        4.0,
        [(0.0, 4.0, "retention")],
    )
    store.remove_stream(stream_id)
    stream_id = make_next(store)
    store.switch_to(stream_id)
    new = [(p.start_s, at) for p, at in store._catalog.committed_before(stream_id, 1e12)]
    assert new == [(0.0, old[4.0]), (4.0, old[4.0]), (8.0, old[8.0]), (12.0, old[8.0]), (16.0, old[8.0])]


def test_room_is_never_made_for_a_memory_that_may_be_given_up(tmp_path: Path) -> None:
    with SegmentStore.open(tmp_path / "root", identity=IDENTITY) as store:
        store.add_stream("cam", "file:cam.mp4", tenant="acme")
        ended(store)
        num_bytes = store.stream("cam").file_bytes
    limits = RetentionConfig(tenant_bytes=round(1.5 * num_bytes), when_full="oldest")
    with SegmentStore.open(tmp_path / "root", identity=IDENTITY, retention=limits) as store:
        with pytest.raises(StoreFullError, match="tenant 'acme'"):
            make_next(store)
        (stream_id,) = [info.stream_id for info in store.streams() if info.is_next]
        assert "tenant 'acme'" in store.room(stream_id)
        assert is_old(store)
        assert store.stream(stream_id).tenant == "acme"


@pytest.mark.parametrize("stop_at", RETENTION_STEPS)
def test_stop_while_switching_leaves_the_old_or_the_new(
    store: SegmentStore, monkeypatch: pytest.MonkeyPatch, stop_at: str
) -> None:
    """`insert`: the transaction. Whoever opens the store next goes on, and cleans up."""
    ended(store)
    stream_id = make_next(store)
    disk = Disk(stop_at)
    with disk.in_place(monkeypatch), pytest.raises(Stopped):
        store.switch_to(stream_id)
    assert is_old(store) == (stop_at == "before insert")
    store.close()
    with SegmentStore.open(store.root, identity=IDENTITY) as again:
        again.switch_to(stream_id)
        assert not is_old(again)
        assert again.verify() == []
        assert not [path for path in segment_files(again) if stream_id not in path]


@pytest.mark.parametrize("stop_at", ["before insert", "during insert"])
@pytest.mark.parametrize("step", ["begin", "give up"])
def test_stop_at_the_beginning_or_end_of_it_leaves_the_old(
    store: SegmentStore, monkeypatch: pytest.MonkeyPatch, stop_at: str, step: str
) -> None:
    ended(store)
    stream_id = make_next(store) if step == "give up" else ""
    act: Callable[[], object] = (
        (lambda: store.remove_stream(stream_id)) if stream_id else (lambda: store.begin_next("cam", {}))
    )
    with Disk(stop_at).in_place(monkeypatch), pytest.raises(Stopped):
        act()
    store.close()
    with SegmentStore.open(store.root, identity=IDENTITY) as again:
        assert is_old(again)
        assert again.verify() == []


@on_both
def test_of_two_that_begin_at_once_one_does(store: SegmentStore, catalog_url: str) -> None:
    ended(store)
    results: list[object] = []

    def begin() -> None:
        with SegmentStore.open(store.root, catalog_url=catalog_url, identity=IDENTITY) as mine:
            try:
                results.append(mine.begin_next("cam", {}))
            except StoreError as exc:
                results.append(exc)

    threads = [threading.Thread(target=begin) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(isinstance(result, str) for result in results) == 1
    assert all("already" in str(r) for r in results if not isinstance(r, str))


@pytest.mark.parametrize("num_new", [1, NEW])
def test_a_lost_catalog_is_made_again_with_the_memory_that_goes_furthest(
    store: SegmentStore, num_new: int
) -> None:
    ended(store)
    make_next(store, num_new)
    (new,) = [info.stream_id for info in store.streams() if info.is_next]
    store.close()
    (store.root / "catalog.sqlite").unlink()
    repair.rebuild_catalog(store.root)
    with SegmentStore.open(store.root, identity=IDENTITY) as again:
        assert is_old(again) == (num_new < OLD)
        assert again.stream("cam@old" if num_new > OLD else new).num_segments == min(OLD, num_new)
        names = {info.stream_id: info.name for info in again.streams()}
        assert names == ({"cam": "cam", new: new} if num_new < OLD else {"cam": "cam@old", new: "cam"})


def test_the_objects_of_the_old_go_and_those_of_the_new_stay(tiered: Tiered) -> None:
    with tiered.open() as store:
        ended(store)
        store.offload()
        stream_id = make_next(store)
        store.offload()
        assert len(tiered.objects) == OLD + NEW
        store.switch_to(stream_id)
        assert store.offload().num_deleted == OLD
        assert tiered.objects == [place.path for place in store.segments("cam", 0, 99)]
        assert store.verify(read_objects=True) == []
    with tiered.open(1.5) as store:  # a longer id makes a longer header
        store.offload()
        assert len(segment_files(store)) == 1
        assert not is_old(store), "fetched again"
