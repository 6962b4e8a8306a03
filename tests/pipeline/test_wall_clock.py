"""A live stream's answer is from the time that is named by the clock on the wall."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tiny import random_segment_kv

from pipeline.answering import Answerer
from pipeline.dialogue import Query
from pipeline.schemas import Answer
from streamkv.config import load_config
from streamkv.errors import QuestionError
from streamkv.models import load_model
from streamkv.store import ModelIdentity, SegmentStore, write_segment
from streamkv.store import catalog as catalog_module

QUESTION = "what is the colour of the bus"
SEGMENTS = 6  # of 8 s each, up to now
AGE_S = 8.0 * SEGMENTS


@pytest.fixture
def answerer(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Answerer:
    """Of a store with `cam`, a live stream that was added 48 s ago."""
    config = load_config(None, [f"model.path={tiny_checkpoint}", f"store.root={tmp_path}"])
    model = load_model(config.model)
    identity = ModelIdentity.of(model)
    with SegmentStore.open(tmp_path, identity=identity) as store:
        with monkeypatch.context() as patched:
            born_s = time.time() - AGE_S
            patched.setattr(catalog_module.time, "time", lambda: born_s)
            store.add_stream("cam", "rtsp://cam/1", {"is_live": True})
        epoch = store.begin_writing("cam")
        for no in range(SEGMENTS):
            kv = random_segment_kv(model.geometry, no)
            store.commit(write_segment(tmp_path, identity, "cam", epoch, kv, "fp16"))
    return Answerer(config)


def asked(answerer: Answerer, question: str = QUESTION, **beside: str) -> Answer:
    return answerer.answer(Query("cam", question, **beside), threading.Event()).answer


def at(answerer: Answerer, stream_s: float) -> datetime:
    """By the clock on the wall."""
    return datetime.fromtimestamp(answerer.opened().stream("cam").created_at + stream_s, UTC)


def test_times_of_the_wall_clock_are_looked_up_in_the_stream(answerer: Answerer) -> None:
    answer = asked(answerer, start=at(answerer, 12).isoformat(), end=at(answerer, 28).isoformat())
    assert {e.segment for e in answer.evidence} == {1, 2, 3}
    assert answer.span is not None
    assert answer.span.start_s == pytest.approx(12, abs=1e-3)
    assert answer.as_of_s == AGE_S


def test_words_of_the_question_are_looked_up_as_well(answerer: Answerer) -> None:
    words = f"since {at(answerer, 28):%H:%M:%S}"
    answer = asked(answerer, f"{QUESTION} {words}")
    assert min(e.segment for e in answer.evidence) == 3
    assert answer.span is not None
    assert (answer.span.words, answer.span.end_s) == (words, None)


def test_times_of_which_there_is_no_footage_are_refused(answerer: Answerer) -> None:
    for beside, message in (
        ({"start": at(answerer, 4000).isoformat()}, "which is in the future"),
        ({"end": at(answerer, -3600.5).isoformat()}, "nothing of this stream is before -1:00:00"),
        (
            {"start": at(answerer, 20).isoformat(), "end": at(answerer, 10).isoformat()},
            "`from` must come before `to`",
        ),
    ):
        with pytest.raises(QuestionError, match=message):
            asked(answerer, **beside)
