"""A window takes the very next segment of its own session, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from stage import GEOMETRY, IDENTITY, CountingEngine, prefill_parts

from actors.failures import SessionLostError
from actors.messages import Replay, SegmentMessage, StreamSpec
from actors.prefill import Prefill
from streamkv.config import StoreConfig
from streamkv.errors import FencedError
from streamkv.store import SegmentPlace, SegmentStore
from streamkv.types import Segment, SegmentKV
from streamkv.watches import OpenAnswers, WatchAnswer, WatchQuestion


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SegmentStore]:
    with SegmentStore.open(tmp_path / "store", identity=IDENTITY) as store:
        store.add_stream("s", "uri")
        yield store


@pytest.fixture
def prefill(store: SegmentStore) -> Prefill:
    prefill = Prefill(partial(prefill_parts, StoreConfig(str(store.root))), store.commit)
    assert prefill.start() == IDENTITY
    return prefill


def message(segment_no: int, epoch: int, stream_id: str = "s") -> SegmentMessage:
    features = torch.zeros(2, GEOMETRY.frame_tokens, GEOMETRY.hidden_dim)
    start = 2.0 * segment_no
    spans = ((start, start + 1), (start + 1, start + 2))
    segment = Segment(segment_no, features, spans, (1.0, 1.0), 2, start + 2)
    return SegmentMessage.of(StreamSpec(stream_id, "uri", epoch), segment)


def test_segments_are_committed_in_turn(prefill: Prefill, store: SegmentStore) -> None:
    epoch = store.begin_writing("s")
    prefill.open_stream("s", epoch, 0)
    assert [prefill.ingest(message(no, epoch)) for no in range(3)] == [True, True, True]
    assert store.stream("s").next_segment_no == 3
    assert prefill.status().windows == {"s": epoch}
    totals = prefill.status().totals
    assert (totals["committed_segments"], totals["prefilled_frames"]) == (3, 6)


def test_each_stream_is_guided_by_its_own_prompt(prefill: Prefill, store: SegmentStore) -> None:
    engine = prefill._started().engine
    assert isinstance(engine, CountingEngine)
    for stream_id, guidance in (("s", ""), ("signs", "what signs say"), ("cars", "cars")):
        if stream_id != "s":
            store.add_stream(stream_id, "uri")
        epoch = store.begin_writing(stream_id)
        prefill.open_stream(stream_id, epoch, 0, guidance)
        engine.heard.clear()
        for no in range(2):
            prefill.ingest(message(no, epoch, stream_id))
        assert engine.heard == {guidance}


@pytest.mark.parametrize("wrong", [message(0, 99), message(1, 1), message(0, 1, "other")])
def test_what_is_not_due_is_refused(prefill: Prefill, store: SegmentStore, wrong: SegmentMessage) -> None:
    epoch = store.begin_writing("s")
    prefill.open_stream("s", epoch, 0)
    with pytest.raises(SessionLostError):
        prefill.ingest(SegmentMessage(**{**vars(wrong), "epoch": epoch if wrong.epoch == 1 else wrong.epoch}))
    assert store.stream("s").next_segment_no == 0


def test_the_same_segment_twice_is_refused_the_second_time(prefill: Prefill, store: SegmentStore) -> None:
    epoch = store.begin_writing("s")
    prefill.open_stream("s", epoch, 0)
    prefill.ingest(message(0, epoch))
    with pytest.raises(SessionLostError, match="segment 1 is due"):
        prefill.ingest(message(0, epoch))


def test_a_failed_commit_drops_the_window_and_a_new_one_is_rebuilt(
    prefill: Prefill, store: SegmentStore
) -> None:
    epoch = store.begin_writing("s")
    prefill.open_stream("s", epoch, 0)
    prefill.ingest(message(0, epoch))

    def broken(place: SegmentPlace, answers: Sequence[WatchAnswer]) -> bool:
        raise RuntimeError("no answer")

    prefill.set_commit(broken)
    with pytest.raises(RuntimeError, match="no answer"):
        prefill.ingest(message(1, epoch))
    assert prefill.status().windows == {}
    prefill.set_commit(store.commit)
    with pytest.raises(SessionLostError, match="no window"):
        prefill.ingest(message(1, epoch))
    epoch = store.begin_writing("s")
    prefill.open_stream("s", epoch, store.stream("s").next_segment_no)
    assert prefill.ingest(message(1, epoch))


def test_an_archive_sees_its_last_segments_again_and_commits_none_twice(
    prefill: Prefill, store: SegmentStore
) -> None:
    epoch = store.begin_writing("s")
    prefill.open_stream("s", epoch, 0)
    for no in range(4):
        prefill.ingest(message(no, epoch))
    files = {place.checksum for place in store.segments("s", 0, 99)}
    prefill.close_stream("s")
    epoch = store.begin_writing("s")
    prefill.open_stream("s", epoch, 4)
    prefill.close_stream("s")  # without leave to replay, segment 4 would have been due
    asked = [WatchQuestion("a", "every 1")]
    assert prefill.open_stream("s", epoch, 4, watches=asked, may_replay=True) == Replay(2, 4.0)
    with pytest.raises(SessionLostError, match="segment 2 is due"):
        prefill.ingest(message(4, epoch))
    assert [prefill.ingest(message(no, epoch)) for no in (2, 3, 4)] == [False, False, True]
    places = store.segments("s", 0, 99)
    assert [place.segment_no for place in places] == list(range(5))
    assert files < {place.checksum for place in places}
    totals = prefill.status().totals
    assert (totals["replayed_segments"], totals["committed_segments"], totals["watch_answers"]) == (2, 5, 1)
    assert prefill.open_stream("s", epoch, 5, may_replay=True) is None, "its window is there"


def test_a_gap_before_what_is_replayed_is_not_read_into(prefill: Prefill, store: SegmentStore) -> None:
    """The source goes on where the segment before ended, though the first that is replayed begins later."""
    epoch = store.begin_writing("s")
    prefill.open_stream("s", epoch, 0)
    for no, later in enumerate((0.0, 0.0, 30.0, 30.0)):
        spans = ((2.0 * no + later, 2.0 * no + later + 1), (2.0 * no + later + 1, 2.0 * no + later + 2))
        prefill.ingest(replace(message(no, epoch), spans_s=spans, resume_s=spans[-1][1]))
    prefill.close_stream("s")
    assert prefill.open_stream("s", epoch, 4, may_replay=True) == Replay(2, 4.0)


def test_what_was_lost_is_not_replayed_over(prefill: Prefill, store: SegmentStore) -> None:
    epoch = store.begin_writing("s")
    prefill.open_stream("s", epoch, 0)
    for no in range(5):
        prefill.ingest(message(no, epoch))
    (last,) = store.segments("s", 4, 1)
    assert store._catalog.lose(last, "a bad disk")
    prefill.close_stream("s")
    assert prefill.open_stream("s", epoch, 5, may_replay=True) is None, "segment 5 would follow 3"


def test_a_new_stream_of_a_name_is_not_the_one_that_changed(prefill: Prefill, store: SegmentStore) -> None:
    epoch = store.begin_writing("s")
    prefill._changed.add("s")
    prefill.open_stream("s", epoch, 0)
    for no in range(3):
        prefill.ingest(message(no, epoch))
    prefill.close_stream("s")
    assert prefill.open_stream("s", epoch, 3, may_replay=True) is not None


def test_an_archive_that_has_changed_goes_on_without_replay(prefill: Prefill, store: SegmentStore) -> None:
    epoch = store.begin_writing("s")
    prefill.open_stream("s", epoch, 0)
    for no in range(3):
        prefill.ingest(message(no, epoch))
    prefill.close_stream("s")
    assert prefill.open_stream("s", epoch, 3, may_replay=True) == Replay(1, 2.0)
    other = message(1, epoch)
    with pytest.raises(SessionLostError, match="its source or settings have changed"):
        prefill.ingest(replace(other, spans_s=((2.0, 3.0), (3.0, 4.5))))
    assert prefill.open_stream("s", epoch, 3, may_replay=True) is None
    assert prefill.ingest(message(3, epoch))


def test_a_writer_that_was_overtaken_commits_nothing(prefill: Prefill, store: SegmentStore) -> None:
    epoch = store.begin_writing("s")
    prefill.open_stream("s", epoch, 0)
    store.begin_writing("s")
    with pytest.raises(FencedError):
        prefill.ingest(message(0, epoch))
    assert store.stream("s").next_segment_no == 0


def test_one_that_was_just_started_asks_for_its_streams(store: SegmentStore) -> None:
    fresh = Prefill(partial(prefill_parts, StoreConfig(str(store.root))))
    assert not fresh.status().started
    with pytest.raises(SessionLostError, match="just been started"):
        fresh.ingest(message(0, 1))


def test_watches_are_asked_of_each_segment_and_change_while_a_stream_is_open(
    prefill: Prefill, store: SegmentStore
) -> None:
    heard: list[list[tuple[str, str]]] = []

    def commit(place: SegmentPlace, answers: Sequence[WatchAnswer]) -> bool:
        heard.append([(answer.watch_id, answer.text) for answer in answers])
        return store.commit(place, answers)

    prefill.set_commit(commit)
    epoch = store.begin_writing("s")
    prefill.open_stream("s", epoch, 0, watches=[WatchQuestion("a", "every 1")])
    prefill.ingest(message(0, epoch))
    prefill.set_watches("s", [WatchQuestion("a", "every 1"), WatchQuestion("b", "every 2")])
    prefill.ingest(message(1, epoch))
    prefill.set_watches("s", [])
    prefill.ingest(message(2, epoch))
    assert heard == [[("a", "0")], [("a", "1"), ("b", "0")], []]
    assert prefill.status().totals["watch_answers"] == 3
    prefill.set_watches("s", [WatchQuestion("a", "every 1")])
    prefill.close_stream("s")
    epoch = store.begin_writing("s")
    prefill.open_stream("s", epoch, 3)
    prefill.ingest(message(3, epoch))
    assert heard[3] == [], "a session asks what it was opened with"


Heard = list[tuple[str, int, tuple[float, float], list[str]]]


def hearing(prefill: Prefill, store: SegmentStore) -> Heard:
    """Fills with what watches make of open segments."""
    heard: Heard = []

    def hear(one: OpenAnswers) -> int:
        heard.append((one.stream_id, one.segment_no, one.span_s, [answer.text for answer in one.answers]))
        return 1

    prefill.set_commit(store.commit, hear)
    return heard


def test_watches_look_at_an_open_segment_and_leave_nothing(prefill: Prefill, store: SegmentStore) -> None:
    heard = hearing(prefill, store)
    epoch = store.begin_writing("s")
    prefill.open_stream("s", epoch, 0, watches=[WatchQuestion("a", "every 1")])
    assert prefill.look(message(0, epoch))
    assert prefill.look(message(0, epoch))
    assert not prefill.look(message(1, epoch)), "another is due"
    assert not prefill.look(message(0, epoch + 1))
    assert not prefill.look(message(0, epoch, "other"))
    assert prefill.ingest(message(0, epoch))
    assert prefill.look(message(1, epoch))
    assert heard == [("s", 0, (0.0, 2.0), ["0"])] * 2 + [("s", 1, (2.0, 4.0), ["1"])]
    assert [place.segment_no for place in store.segments("s", 0, 99)] == [0]
    prefill.set_watches("s", [])
    assert not prefill.look(message(1, epoch))
    totals = prefill.status().totals
    assert (totals["looks"], totals["told_early"], totals["prefilled_frames"]) == (3, 3, 2)


def test_looks_take_no_more_than_their_share(store: SegmentStore) -> None:
    parts = replace(prefill_parts(StoreConfig(str(store.root))), open_share=0.0)
    prefill = Prefill(lambda: parts)
    prefill.start()
    heard = hearing(prefill, store)
    epoch = store.begin_writing("s")
    prefill.open_stream("s", epoch, 0, watches=[WatchQuestion("a", "every 1")])
    assert not prefill.look(message(0, epoch))
    assert prefill.ingest(message(0, epoch))
    assert heard == []
    assert prefill.status().totals["looks_left_out"] == 1


def test_watches_that_cannot_be_asked_do_not_end_their_stream(prefill: Prefill, store: SegmentStore) -> None:
    epoch = store.begin_writing("s")
    prefill.open_stream("s", epoch, 0, watches=[WatchQuestion("a", "every none")])
    assert prefill.ingest(message(0, epoch))
    assert prefill.status().totals["watch_errors"] == 1
    assert store.stream("s").next_segment_no == 1


def test_every_segment_gives_way_before_it_is_prefilled(store: SegmentStore) -> None:
    happened: list[str] = []

    class Noting(CountingEngine):
        def prefill(self, *given: Any) -> SegmentKV:
            happened.append("prefilled")
            return super().prefill(*given)

    made = prefill_parts(StoreConfig(str(store.root)))
    parts = replace(made, engine=Noting(), give_way=lambda: happened.append("gave way"))
    prefill = Prefill(lambda: parts, store.commit)
    prefill.start()
    epoch = store.begin_writing("s")
    prefill.open_stream("s", epoch, 0)
    assert [prefill.ingest(message(no, epoch)) for no in range(3)] == [True] * 3
    assert happened == ["gave way", "prefilled"] * 3
