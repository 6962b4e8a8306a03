"""A question to many streams: the right one first, each one's own answer, and what was not searched."""

from __future__ import annotations

import asyncio
import threading
import warnings
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from tiny import random_segment_kv

from pipeline.answering import Answerer
from pipeline.desk import Desk
from pipeline.dialogue import CancelledError, Query, Reply, SearchQuery
from pipeline.searching import Searcher
from streamkv.config import PipelineConfig, load_config
from streamkv.conversation import Turn
from streamkv.errors import QuestionError, StoreError, UnknownStreamError
from streamkv.models import load_model
from streamkv.store import ModelIdentity, SegmentStore, write_segment

QUESTION = "what is the colour of the bus"
LENGTHS = {"hall": 3, "lobby": 5, "yard": 2}  # segments of 8 s
GOING_ON = threading.Event()


@pytest.fixture(scope="module")
def config(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> PipelineConfig:
    """Of a store with these streams, and `empty` and `cam`, a live one, without a segment."""
    root = tmp_path_factory.mktemp("store")
    config = load_config(
        None, [f"model.path={tiny_checkpoint}", f"store.root={root}", "serve.max_new_tokens=3"]
    )
    model = load_model(config.model)
    identity = ModelIdentity.of(model)
    with SegmentStore.open(root, identity=identity) as store:
        for seed, (name, length) in enumerate(LENGTHS.items()):
            store.add_stream(name, f"/{name}.mp4", {"is_live": False})
            epoch = store.begin_writing(name)
            for no in range(length):
                kv = random_segment_kv(model.geometry, no, seed=seed)
                store.commit(write_segment(root, identity, name, epoch, kv, "fp16"))
        store.add_stream("cam", "rtsp://cam/1", {"is_live": True})
        store.add_stream("empty", "/empty.mp4", {"is_live": False})
    return config


@pytest.fixture(scope="module")
def answerer(config: PipelineConfig) -> Answerer:
    return Answerer(config)


@pytest.fixture
def searcher(answerer: Answerer) -> Searcher:
    return Searcher(answerer)


def test_all_streams_are_searched_and_the_best_answer_for_themselves(
    searcher: Searcher, answerer: Answerer
) -> None:
    reply = searcher.search(SearchQuery(QUESTION), GOING_ON)
    result, paid = reply.result, list[Reply]()
    assert {s.stream_id for s in result.streams} == set(LENGTHS)
    assert result.searched == 3
    assert {s.stream_id: s.reason for s in result.skipped}.keys() == {"cam", "empty"}
    assert all("nothing is committed yet" in s.reason for s in result.skipped)
    scores = [s.score for s in result.streams]
    assert scores == sorted(scores, reverse=True)
    for stream in result.streams:
        paid.append(answerer.answer(Query(stream.stream_id, QUESTION), GOING_ON))
        alone = paid[-1].answer
        assert stream.answer is not None
        assert (stream.answer.answer, stream.answer.evidence) == (alone.answer, alone.evidence)
        assert [m.score for m in stream.moments] == sorted((m.score for m in stream.moments), reverse=True)
        assert stream.score == stream.moments[0].score
        assert all(0 <= m.segment < LENGTHS[stream.stream_id] for m in stream.moments)
        assert all((m.start_s, m.end_s) == (8.0 * m.segment, 8.0 * m.segment + 8) for m in stream.moments)
        for shown in (*stream.moments, *stream.answer.evidence):
            span = f"from={shown.start_s:g}&to={shown.end_s:g}"
            assert shown.clip == f"/v1/streams/{stream.stream_id}/clip.mp4?{span}"
            assert shown.frame == f"/v1/streams/{stream.stream_id}/frames?at_s={shown.start_s + 4:g}"
    assert reply.prompt_tokens == sum(r.prompt_tokens for r in paid)
    assert reply.completion_tokens == sum(r.completion_tokens for r in paid)
    assert reply.finish == ("length" if "length" in [r.finish for r in paid] else "stop")


class CountingDesk(Desk):
    """Knows what it was asked."""

    def __init__(self, answerer: Answerer) -> None:
        super().__init__(answerer, 8)
        self.calls, self.asked = 0, list[str]()

    def ask(self, query: Query, *others: Any) -> Future[Reply]:
        self.asked.append(query.stream_id)
        return super().ask(query, *others)

    def call(self, *call: Any) -> Future[Any]:
        self.calls += 1
        return super().call(*call)


def test_a_replica_asks_the_streams_among_other_questions(searcher: Searcher, answerer: Answerer) -> None:
    """The desk is held for finding alone."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray Serve uses what pydantic deprecates
        from pipeline import app

    replica = object.__new__(app.Answer.func_or_class)
    replica._desk, replica._searcher = desk, _ = CountingDesk(answerer), searcher
    try:
        reply = asyncio.run(replica.search(SearchQuery(QUESTION)))
        with pytest.raises(UnknownStreamError):
            asyncio.run(replica.search(SearchQuery(QUESTION, ("attic",))))
    finally:
        desk.close()
    alone = searcher.search(SearchQuery(QUESTION), GOING_ON)
    for ours, theirs in zip(reply.result.streams, alone.result.streams, strict=True):
        assert ours.answer is not None
        assert theirs.answer is not None
        assert (ours.stream_id, ours.moments, ours.answer.answer) == (
            theirs.stream_id,
            theirs.moments,
            theirs.answer.answer,
        )
    assert (desk.calls, desk.asked) == (2, [s.stream_id for s in reply.result.streams])
    assert (reply.prompt_tokens, reply.completion_tokens) == (alone.prompt_tokens, alone.completion_tokens)


def test_earlier_turns_are_told_to_each(searcher: Searcher, answerer: Answerer) -> None:
    turns = (Turn("user", "how many dog"), Turn("assistant", "blue green two"))
    reply = searcher.search(SearchQuery(QUESTION, ("yard",), earlier=turns), GOING_ON)
    alone = answerer.answer(Query("yard", QUESTION, turns), GOING_ON)
    assert reply.result.streams[0].answer is not None
    assert reply.result.streams[0].answer.evidence == alone.answer.evidence
    assert reply.prompt_tokens == alone.prompt_tokens


def test_only_the_best_are_told_and_none_is_asked_without_need(searcher: Searcher) -> None:
    (best, *_) = searcher.search(SearchQuery(QUESTION), GOING_ON).result.streams
    (only,) = searcher.search(SearchQuery(QUESTION, max_streams=1, answer=False), GOING_ON).result.streams
    assert only == best.model_copy(update={"answer": None})


def test_named_streams_alone_are_searched(searcher: Searcher) -> None:
    result = searcher.search(SearchQuery(QUESTION, ("yard", "empty")), GOING_ON).result
    assert [s.stream_id for s in result.streams] == ["yard"]
    assert [s.stream_id for s in result.skipped] == ["empty"]


def test_span_is_looked_at_in_each_stream(searcher: Searcher) -> None:
    """Only two streams go on for 20 s; and nothing before counts."""
    result = searcher.search(SearchQuery(QUESTION, start=20), GOING_ON).result
    assert {s.stream_id for s in result.streams} == {"hall", "lobby"}
    assert all(m.end_s > 20 for s in result.streams for m in s.moments)
    assert all(e.end_s > 20 for s in result.streams if s.answer for e in s.answer.evidence)
    skipped = {s.stream_id: s.reason for s in result.skipped}
    assert "its footage spans 0:00:00 to 0:00:16" in skipped["yard"]


def test_words_that_name_a_span_are_not_searched_for(searcher: Searcher) -> None:
    """16 s ago every stream showed something; where that lies differs from stream to stream."""
    spoken = searcher.search(SearchQuery(f"{QUESTION} in the last 16 seconds", answer=False), GOING_ON).result
    lengths = {name: 8 * length for name, length in LENGTHS.items()}
    assert all(m.end_s > lengths[s.stream_id] - 16 for s in spoken.streams for m in s.moments)
    plain = searcher.search(SearchQuery(QUESTION, ("yard",), answer=False), GOING_ON)
    alone = searcher.search(
        SearchQuery(f"{QUESTION} in the last 16 seconds", ("yard",), answer=False), GOING_ON
    )
    assert alone.result.streams == plain.result.streams


@pytest.mark.parametrize(
    ("query", "error", "message"),
    [
        (SearchQuery(QUESTION, ("yard", "attic")), UnknownStreamError, "stream 'attic': unknown; known: cam"),
        (SearchQuery(QUESTION, ("empty",)), StoreError, "nothing is committed yet"),
        (SearchQuery(QUESTION, ("yard",), start=100), QuestionError, "nothing of this stream is"),
        (SearchQuery(QUESTION, ("hall", "yard"), start="noon"), QuestionError, "from: got 'noon'"),
        (SearchQuery(QUESTION, start="noon"), QuestionError, "from: got 'noon'"),
        (SearchQuery("  "), QuestionError, "got no text"),
        (SearchQuery("x" * 4001), QuestionError, "got 4001 characters"),
    ],
)
def test_what_no_stream_can_answer_is_refused(
    searcher: Searcher, query: SearchQuery, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        searcher.search(query, GOING_ON)


def test_search_that_nobody_waits_for_ends(searcher: Searcher) -> None:
    gone = threading.Event()
    gone.set()
    with pytest.raises(CancelledError):
        searcher.search(SearchQuery(QUESTION), gone)


def test_a_store_without_streams_has_nothing_to_search(tiny_checkpoint: Path, tmp_path: Path) -> None:
    config = load_config(None, [f"model.path={tiny_checkpoint}", f"store.root={tmp_path}"])
    identity = ModelIdentity.of(load_model(config.model))
    SegmentStore.open(tmp_path, identity=identity).close()
    with pytest.raises(StoreError, match="there is no stream yet"):
        Searcher(Answerer(config)).search(SearchQuery(QUESTION), GOING_ON)
