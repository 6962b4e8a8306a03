"""A batch looks at what a live question would: the same spans, answers and errors, of questions asked together."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest
from clips import steady, write_clip
from tiny import random_segment_kv

from pipeline import spans as spans_module
from pipeline.answering import Answerer
from pipeline.batch.footage import open_footage
from pipeline.batch.plan import TRIES, group, make_plan
from pipeline.batch.question_log import LogRow
from pipeline.batch.worker import Answered, Asked, VideoAnswerer, VideoQuestions
from pipeline.dialogue import Query
from pipeline.schemas import Answer
from streamkv.config import PipelineConfig, load_config
from streamkv.engine import Engine
from streamkv.errors import QuestionError
from streamkv.models import load_model
from streamkv.store import ModelIdentity, SegmentStore, write_segment
from streamkv.store import catalog as catalog_module

QUESTION = "what is the colour of the bus"
SEGMENTS = 6  # of 8 s each
AGE_S = 8.0 * SEGMENTS + 12  # of the live stream, which has shown nothing for 12 s


@pytest.fixture
def config(tiny_checkpoint: Path, tmp_path: Path) -> PipelineConfig:
    return load_config(None, [f"model.path={tiny_checkpoint}", f"store.root={tmp_path / 'store'}"])


@pytest.fixture
def store(config: PipelineConfig, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`cam`, a live stream, and `film`, an archive, both of the same 48 s."""
    root = Path(config.store.root)
    model = load_model(config.model)
    identity = ModelIdentity.of(model)
    with SegmentStore.open(root, identity=identity) as store:
        born_s = time.time() - AGE_S
        with monkeypatch.context() as patched:
            patched.setattr(catalog_module.time, "time", lambda: born_s)
            store.add_stream("cam", "rtsp://cam/1", {"is_live": True})
            store.add_stream("film", "film.mp4", {"is_live": False})
        for name in ("cam", "film"):
            epoch = store.begin_writing(name)
            for no in range(SEGMENTS):
                kv = random_segment_kv(model.geometry, no)
                store.commit(write_segment(root, identity, name, epoch, kv, "fp16"))
    return root


def in_batch(config: PipelineConfig, folder: Path, rows: Sequence[LogRow], now_s: float) -> list[Answered]:
    """What becomes of each row, in order."""
    footage = open_footage(folder, config)
    plan = make_plan(rows, footage, footage.config, "m", now_s)
    worker, work = VideoAnswerer(footage.config, chunk=32), folder.parent / "work"
    (work / TRIES).mkdir(parents=True, exist_ok=True)
    found = {}
    for questions in group(plan.questions.values(), work, most=32):
        for some in worker({"questions": [questions.to_json()]}):  # as Ray Data does
            answers = [Answered(**answer) for answer in json.loads(some["answers"][0])]
            found |= {answer.key: answer for answer in answers}
    return [found[p.asked.key] if p.asked else Answered("", error=p.error) for p in plan.rows]


def live(answerer: Answerer, row: LogRow) -> Answer | str:
    query = Query(row.video, row.question, (), row.max_new_tokens, start=row.start, end=row.end)
    try:
        return answerer.answer(query, threading.Event()).answer
    except QuestionError as exc:
        return f"QuestionError: {exc}"


def test_what_a_live_question_looks_at_a_batch_looks_at(
    config: PipelineConfig, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answerer = Answerer(config)
    born_s = answerer.opened().stream("cam").created_at
    now_s = born_s + AGE_S
    monkeypatch.setattr(spans_module.time, "time", lambda: now_s)
    at = [datetime.fromtimestamp(born_s + s, UTC) for s in (8, 20)]
    asks = [
        (QUESTION, None, None),
        (QUESTION, 8.0, "24"),
        (QUESTION, None, 16.0),
        (QUESTION, at[0].isoformat(), at[1].isoformat()),
        (f"{QUESTION} in the last 30 seconds?", None, None),
        (f"{QUESTION} in the last 2 seconds?", None, None),
        (f"{QUESTION} in the last 2 seconds?", 8.0, None),
        (f"{QUESTION} in the first 10 seconds?", None, None),
        (f"{QUESTION} between 0:09 and 0:12 of the video?", None, None),
        (f"{QUESTION} between {at[0]:%H:%M:%S} and {at[1]:%H:%M:%S}?", None, None),
        (f"{QUESTION} since 9:00 of the video?", None, None),
        (QUESTION, 1e6, None),
        (QUESTION, 24.0, 8.0),
        (QUESTION, "soon", None),
    ]
    rows = [LogRow("", text, v, 3, start, end) for v in ("cam", "film") for text, start, end in asks]
    failed, spans = 0, 0
    for row, found in zip(rows, in_batch(config, store, rows, now_s), strict=True):
        expected = live(answerer, row)
        if isinstance(expected, str):
            failed += 1
            assert found.error == expected
            continue
        spans += expected.span is not None
        assert found.span == (expected.span and expected.span.model_dump()), row
        assert [e["segment"] for e in found.evidence] == [e.segment for e in expected.evidence], row
        assert (found.error, found.answer) == (None, expected.answer), row
    assert (failed, spans) == (5 + 5, 8 + 7)


def test_questions_about_any_parts_of_a_file_are_answered_together(
    config: PipelineConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    footage = tmp_path / "footage"
    footage.mkdir()
    write_clip(footage / "a.mp4", steady(30))
    together = []
    answer_many = Engine.answer_many

    def counted(engine: Engine, questions: Sequence[object], *more: int) -> object:
        together.append(len(questions))
        return answer_many(engine, questions, *more)

    monkeypatch.setattr(Engine, "answer_many", counted)
    asks = [QUESTION, f"{QUESTION} in the last five seconds?", f"{QUESTION} since 9:00 of the video?"]
    rows = [
        *(LogRow("", text, "a.mp4") for text in asks),
        LogRow("", QUESTION, "a.mp4", None, 2.0, 4.0),
        LogRow("", QUESTION, "a.mp4", None, 600.0),
    ]
    whole, last, no_words, part, nothing = in_batch(config, footage, rows, time.time())
    assert together == [3]
    assert (whole.span, whole.error) == (None, None)
    assert last.span == {"start_s": 25.0, "end_s": None, "words": "in the last five seconds"}
    assert part.span == {"start_s": 2.0, "end_s": 4.0, "words": None}
    for found in (no_words, nothing):
        assert "QuestionError: " in (found.error or "")
        assert "nothing of this stream is from" in (found.error or "")
    assert all(e["end_s"] > 25 for e in last.evidence)
    assert all(e["end_s"] > 2 and e["start_s"] < 4 for e in part.evidence)


def test_the_last_minutes_of_a_live_stream_end_when_the_batch_began(
    config: PipelineConfig, store: Path
) -> None:
    row = LogRow("", f"{QUESTION} in the last 30 seconds?", "cam")
    born_s = Answerer(config).opened().stream("cam").created_at
    for begun_s, start_s in ((40.0, 10.0), (60.0, 30.0)):
        (found,) = in_batch(config, store, [row], born_s + begun_s)
        assert found.span is not None
        assert found.span["start_s"] == pytest.approx(start_s, abs=1e-3)


def test_a_message_is_the_same_after_its_journey() -> None:
    asked = (Asked("k", "why?", 3), Asked("l", "why?", 3, 60.0, origin_s=1.5e9 + 1 / 3, now_s=2e9))
    assert VideoQuestions.from_json(VideoQuestions("a.mp4", asked).to_json()) == VideoQuestions(
        "a.mp4", asked
    )
    assert (asked[0].named, asked[1].named) == (None, (60.0, float("inf")))
