"""The thread that answers: what waits is answered together, and nobody's end is another's."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from pathlib import Path
from typing import Any

import pytest
from tiny import random_segment_kv

from actors.right_of_way import RightOfWay
from pipeline.answering import Answerer, Answering
from pipeline.desk import Desk
from pipeline.dialogue import CancelledError, Query, Reply
from streamkv.config import ModelConfig, PipelineConfig, ServeConfig, StoreConfig
from streamkv.errors import ConfigError, QuestionError, UnknownStreamError
from streamkv.models import load_model
from streamkv.store import ModelIdentity, SegmentStore, write_segment

GOING_ON = threading.Event()
LONG, WAIT_S = 4096, 60


@pytest.fixture(scope="module")
def answerer(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Answerer:
    """Two streams of six segments."""
    root = tmp_path_factory.mktemp("store")
    config = PipelineConfig(
        model=ModelConfig(path=str(tiny_checkpoint)),
        store=StoreConfig(root=str(root)),
        serve=ServeConfig(max_new_tokens=6),
    )
    model = load_model(config.model)
    with SegmentStore.open(root, identity=ModelIdentity.of(model)) as store:
        for seed, stream_id in enumerate(("lobby", "yard")):
            store.add_stream(stream_id, "file:x")
            epoch = store.begin_writing(stream_id)
            for no in range(6):
                kv = random_segment_kv(model.geometry, no, seed=seed)
                store.commit(write_segment(store.root, store.identity, stream_id, epoch, kv))
    found = Answerer(config)
    # A question that is to be interrupted must not end by itself.
    found.engine.model.eos_token_ids = frozenset()
    return found


@pytest.fixture
def desk(answerer: Answerer) -> Iterator[Desk]:
    opened = Desk(answerer, at_once=3)
    yield opened
    opened.close()


QUERIES = [
    Query(stream_id, question, max_new_tokens=count)
    for stream_id in ("lobby", "yard")
    for question, count in (("what is the colour of the bus", 5), ("where is the dog", None), ("how many", 1))
]


class Asked:
    """A question that somebody listens to."""

    def __init__(self, desk: Desk, query: Query) -> None:
        self.cancelled, self.begun, self.pieces = threading.Event(), threading.Event(), list[str]()
        self.future: Future[Reply] = desk.ask(query, self.cancelled, self._hear)

    def _hear(self, text: str) -> None:
        self.pieces.append(text)
        self.begun.set()


def without_times(reply: Reply) -> Any:
    answer = reply.answer.model_dump(exclude={"timings_ms", "evidence"})
    weights = {e.segment: pytest.approx(e.weight, abs=1e-5) for e in reply.answer.evidence}
    return answer, weights, reply[1:]


def alone(answerer: Answerer, query: Query) -> Reply:
    """On a thread of its own, as the desk has one."""
    desk = Desk(answerer, at_once=1)
    try:
        return desk.call(answerer.answer, query, GOING_ON).result(WAIT_S)
    finally:
        desk.close()


def test_each_gets_the_reply_that_it_gets_alone(desk: Desk, answerer: Answerer) -> None:
    asked = [Asked(desk, query) for query in QUERIES]
    for one, query in zip(asked, QUERIES, strict=True):
        reply = one.future.result(WAIT_S)
        assert without_times(reply) == without_times(alone(answerer, query))
        assert "".join(one.pieces) == reply.answer.answer


def test_a_newcomer_waits_for_nobodys_end(desk: Desk) -> None:
    long = Asked(desk, Query("lobby", "where is the dog", max_new_tokens=LONG))
    assert long.begun.wait(WAIT_S)
    assert Asked(desk, QUERIES[0]).future.result(WAIT_S).completion_tokens == 5
    assert not long.future.done()
    long.cancelled.set()
    with pytest.raises(CancelledError):
        long.future.result(WAIT_S)


def test_no_more_are_under_way_than_allowed(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []
    original = Answering.step

    def step(self: Answering) -> None:
        counts.append(self.num_going)
        original(self)

    monkeypatch.setattr(Answering, "step", step)
    asked = [Asked(desk, query) for query in QUERIES * 2]
    wait_for([one.future for one in asked], WAIT_S)
    assert all(one.future.exception() is None for one in asked)
    assert max(counts) == 3


def test_those_who_leave_and_those_in_error_leave_the_others_alone(desk: Desk, answerer: Answerer) -> None:
    """One leaves while it is answered, one before it is read, two cannot be answered."""
    long = [Asked(desk, Query("lobby", "where is the dog", max_new_tokens=LONG)) for _ in range(3)]
    assert all(one.begun.wait(WAIT_S) for one in long)
    rest = [
        Asked(desk, q) for q in (QUERIES[0], Query("nobody", "how many"), Query("yard", " "), *QUERIES[3:])
    ]
    rest[0].cancelled.set()  # there is no room for it yet
    assert not any(one.future.done() for one in rest)
    for one in long:
        one.cancelled.set()
    for one, error in zip(
        [*long, *rest[:3]], [CancelledError] * 4 + [UnknownStreamError, QuestionError], strict=True
    ):
        assert isinstance(one.future.exception(WAIT_S), error)
    assert not rest[0].begun.is_set()
    for one, query in zip(rest[3:], QUERIES[3:], strict=True):
        assert without_times(one.future.result(WAIT_S)) == without_times(alone(answerer, query))


def test_who_leaves_is_not_answered_on_though_nothing_is_said(
    desk: Desk, answerer: Answerer, monkeypatch: pytest.MonkeyPatch
) -> None:
    under_way, original = threading.Event(), Answering.step

    def step(self: Answering) -> None:
        under_way.set()
        original(self)

    monkeypatch.setattr(Answering, "step", step)
    monkeypatch.setattr(type(answerer.engine.model), "decode", lambda *_: "")
    asked = Asked(desk, Query("lobby", "where is the dog", max_new_tokens=LONG))
    assert under_way.wait(WAIT_S)
    asked.cancelled.set()
    assert isinstance(asked.future.exception(WAIT_S), CancelledError)
    assert not asked.begun.is_set()


def test_a_future_that_was_cancelled_is_passed_over(desk: Desk) -> None:
    long = [Asked(desk, Query("lobby", "where is the dog", max_new_tokens=LONG)) for _ in range(3)]
    assert all(one.begun.wait(WAIT_S) for one in long)
    waiting = Asked(desk, QUERIES[0])
    assert waiting.future.cancel()
    for one in long:
        one.cancelled.set()
    assert Asked(desk, QUERIES[1]).future.result(WAIT_S)
    assert not waiting.begun.is_set()


def test_other_work_has_its_turn_between_two_words(desk: Desk) -> None:
    long = Asked(desk, Query("lobby", "where is the dog", max_new_tokens=LONG))
    assert long.begun.wait(WAIT_S)
    assert desk.call(sum, [1, 2]).result(WAIT_S) == 3
    assert isinstance(desk.call(int, "x").exception(WAIT_S), ValueError)
    assert not long.future.done()
    long.cancelled.set()


def test_a_closed_desk_has_answered_all_that_came(answerer: Answerer) -> None:
    desk = Desk(answerer, at_once=2)
    asked = [Asked(desk, query) for query in QUERIES]
    desk.close()
    assert all(one.future.done() and one.future.result() for one in asked)
    with pytest.raises(RuntimeError, match="has ended"):
        desk.check_health()


def test_it_has_the_right_of_way_while_somebody_is_answered(answerer: Answerer, tmp_path: Path) -> None:
    way, ingest = (RightOfWay("cpu", tmp_path) for _ in range(2))
    desk = Desk(answerer, 2, way)
    assert not ingest.is_taken
    asked = [Asked(desk, Query("lobby", "where is the dog", max_new_tokens=LONG)) for _ in range(2)]
    assert all(one.begun.wait(WAIT_S) for one in asked)
    assert ingest.is_taken
    asked[0].cancelled.set()
    assert isinstance(asked[0].future.exception(WAIT_S), CancelledError)
    assert ingest.is_taken
    asked[1].cancelled.set()
    assert isinstance(asked[1].future.exception(WAIT_S), CancelledError)
    assert desk.call(lambda: ingest.is_taken).result(WAIT_S) is False
    desk.close()


def test_a_mistake_of_ours_leaves_nobody_waiting(
    answerer: Answerer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    way, ingest = (RightOfWay("cpu", tmp_path) for _ in range(2))
    desk = Desk(answerer, 2, way)
    desk.check_health()

    def fail(self: Answering, askings: Sequence[Any]) -> None:
        raise AssertionError("a mistake")

    monkeypatch.setattr(Answering, "join", fail)
    with pytest.raises(AssertionError, match="a mistake"):
        Asked(desk, QUERIES[0]).future.result(WAIT_S)
    desk.close()
    assert not ingest.is_taken
    with pytest.raises(RuntimeError, match="has ended"):
        desk.check_health()


def test_one_at_least_is_answered_at_once() -> None:
    with pytest.raises(ConfigError, match=r"serve.batch_questions: got 0"):
        ServeConfig(batch_questions=0)
