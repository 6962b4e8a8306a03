"""Answers from a stream whose beginning retention deletes, also while the question is being answered."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny import random_segment_kv

from pipeline.answering import Answerer
from pipeline.dialogue import Query
from pipeline.schemas import Gap
from streamkv.config import MethodConfig, ModelConfig, PipelineConfig, RetentionConfig, StoreConfig
from streamkv.engine import Engine
from streamkv.errors import StoreError
from streamkv.models import load_model
from streamkv.question import Question
from streamkv.store import ModelIdentity, SegmentStore, write_segment

QUESTION = Query("cam", "what is the colour of the bus")


@pytest.fixture
def config(tiny_checkpoint: Path, tmp_path: Path) -> PipelineConfig:
    return PipelineConfig(
        model=ModelConfig(path=str(tiny_checkpoint)), store=StoreConfig(root=str(tmp_path / "store"))
    )


@pytest.fixture
def store(config: PipelineConfig) -> Iterator[SegmentStore]:
    """Six segments of 8 s."""
    model = load_model(config.model)
    with SegmentStore.open(config.store.root, identity=ModelIdentity.of(model)) as opened:
        opened.add_stream("cam", "file:x")
        epoch = opened.begin_writing("cam")
        for no in range(6):
            kv = random_segment_kv(model.geometry, no)
            opened.commit(write_segment(opened.root, opened.identity, "cam", epoch, kv))
        yield opened


def keep(store: SegmentStore, count: int) -> None:
    sizes = [place.file_bytes for place in store.segments("cam", 0, 99)]
    store.retain(RetentionConfig(stream_bytes=sum(sizes[len(sizes) - count :]) or 1, when_full="oldest"))
    assert store.stream("cam").num_segments == count


def test_answer_says_from_when_on_footage_was_deleted(config: PipelineConfig, store: SegmentStore) -> None:
    keep(store, 4)
    found = Answerer(config).answer(QUESTION, threading.Event()).answer
    until_s = store.segments("cam", 0, 1)[0].start_s
    assert found.gaps == [Gap(start_s=0.0, end_s=until_s, reason="retention")]
    assert found.evidence
    assert {evidence.segment for evidence in found.evidence} <= {2, 3, 4, 5}


def test_a_question_is_answered_alike_from_blocks_that_a_replica_keeps(
    config: PipelineConfig, store: SegmentStore
) -> None:
    kept = replace(config, serve=replace(config.serve, device_bytes=20_000, host_bytes=2**24))
    plain, near = Answerer(config), Answerer(kept)
    wanted = plain.answer(QUESTION, threading.Event()).answer
    answers = [near.answer(QUESTION, threading.Event()).answer for _ in range(2)]
    assert plain.opened().near is None
    device = near.opened().near
    assert device is not None
    assert device.behind is not None
    assert device.behind.num_hits > 0, "the second time nothing is read from files"
    for answer in answers:
        assert answer.model_copy(update={"timings_ms": wanted.timings_ms}) == wanted


def test_question_is_answered_from_what_is_left_when_segments_go_meanwhile(
    config: PipelineConfig, store: SegmentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, seen = Engine.read_each, []

    def read_each(engine: Engine, questions: Sequence[Question], *args: Any) -> Any:
        seen.extend([segment.segment_no for segment in q.memory.segments] for q in questions)
        if len(seen) == 1:
            keep(store, 2)
        return real(engine, questions, *args)

    monkeypatch.setattr(Engine, "read_each", read_each)
    found = Answerer(config).answer(QUESTION, threading.Event()).answer
    assert seen == [[0, 1, 2, 3, 4, 5], [4, 5]]
    assert {evidence.segment for evidence in found.evidence} <= {4, 5}
    assert [gap.reason for gap in found.gaps] == ["retention"]


def test_stream_of_which_nothing_is_left_cannot_be_asked(config: PipelineConfig, store: SegmentStore) -> None:
    answerer = Answerer(config)
    answerer.answer(QUESTION, threading.Event())
    store.retain(RetentionConfig(stream_bytes=1, when_full="oldest"))
    with pytest.raises(StoreError, match="all of it was deleted by retention"):
        answerer.answer(QUESTION, threading.Event())


@pytest.mark.parametrize("left", [0, 1, 4])
def test_window_is_made_of_what_is_left(config: PipelineConfig, store: SegmentStore, left: int) -> None:
    """Its last tokens are those of the window that is made of everything."""
    model = load_model(config.model)
    engine = Engine(model, MethodConfig(n_local=0))
    whole = engine.open_window(store.reader("cam").snapshot)
    keep(store, left)
    window = engine.open_window(store.reader("cam").snapshot)
    for kept, all_of_it in zip(window.layers, whole.layers, strict=True):
        count = kept.num_tokens
        assert (count > 0) == (left > 0)
        assert kept.keys_TGd.equal(all_of_it.keys_TGd[all_of_it.num_tokens - count :])
        assert kept.values_TGd.equal(all_of_it.values_TGd[all_of_it.num_tokens - count :])
