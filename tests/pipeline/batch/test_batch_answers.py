"""A batch's worker: each question once and in order, a video shown once, and errors that stay with their rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from clips import steady, write_clip
from tiny import write_tiny_checkpoint

from pipeline.batch.worker import MAX_TRIES, PARTIAL, Answered, Asked, VideoAnswerer, VideoQuestions
from streamkv.config import ModelConfig, PipelineConfig, SourceConfig, StoreConfig
from streamkv.engine import Engine
from streamkv.frame_batches import FrameBatches
from streamkv.ingest import ingest
from streamkv.models import load_model
from streamkv.store import ModelIdentity, SegmentStore
from streamkv.video import sample_frames

WORDS = ("what is the colour of the bus", "where is the dog", "when did it leave", "how many", "is it red")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> PipelineConfig:
    folder = write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))
    return PipelineConfig(
        model=ModelConfig(path=str(folder)),
        source=SourceConfig(sample_fps=2.0),
        store=StoreConfig(codec="raw"),
    )


@pytest.fixture(scope="module")
def worker(config: PipelineConfig) -> VideoAnswerer:
    return VideoAnswerer(config, chunk=2)


@pytest.fixture
def video(tmp_path: Path) -> Path:
    return write_clip(tmp_path / "a.mp4", steady(6))


def about(video: Path, *, words: tuple[str, ...] = WORDS, tries: str = "") -> VideoQuestions:
    asked = tuple(Asked(f"key-{i}", text, 3) for i, text in enumerate(words))
    return VideoQuestions(video.name, asked, str(video), str(video.with_suffix(".memory")), tries)


def without_times(answers: list[list[Answered]]) -> list[Answered]:
    return [replace(a, answer_s=None) for chunk in answers for a in chunk]


def test_a_message_is_the_same_after_its_journey(video: Path) -> None:
    assert VideoQuestions.from_json(about(video).to_json()) == about(video)


def test_every_question_is_answered_once_and_in_order(worker: VideoAnswerer, video: Path) -> None:
    chunks = list(worker.answer(about(video)))
    assert [len(chunk) for chunk in chunks] == [2, 2, 1]
    answers = [answer for chunk in chunks for answer in chunk]
    assert [a.key for a in answers] == [f"key-{i}" for i in range(5)]
    for answer in answers:
        assert answer.error is None
        assert answer.evidence
        assert 1 <= (answer.answer_tokens or 0) <= 3
        assert (answer.frames, answer.as_of_s) == (12, 6.0)
        assert (answer.decode_encode_s, answer.prefill_s) == (
            answers[0].decode_encode_s,
            answers[0].prefill_s,
        )


def test_a_video_is_shown_once_whatever_comes_after(
    worker: VideoAnswerer, config: PipelineConfig, video: Path
) -> None:
    first = without_times(list(worker.answer(about(video))))
    video.unlink()
    assert without_times(list(VideoAnswerer(config, chunk=3).answer(about(video)))) == first


def test_a_memory_that_is_not_whole_is_none(
    worker: VideoAnswerer, video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(SegmentStore, "commit", lambda *_: (_ for _ in ()).throw(OSError("no space left")))
        (chunk, *_) = worker.answer(about(video))
        assert "no space left" in (chunk[0].error or "")
    assert not list(video.parent.glob(f"*{PARTIAL}"))
    assert all(answer.error is None for answer in without_times(list(worker.answer(about(video)))))


def test_a_video_that_is_none_fails_all_its_questions_and_no_other(
    worker: VideoAnswerer, video: Path, tmp_path: Path
) -> None:
    text = tmp_path / "text.mp4"
    text.write_text("no video\n" * 50)
    failed = without_times(list(worker.answer(about(text))))
    assert [a.key for a in failed] == [f"key-{i}" for i in range(5)]
    assert all("SourceError" in (a.error or "") and a.answer is None for a in failed)
    assert all(a.error is None for a in without_times(list(worker.answer(about(video)))))


def test_a_question_that_fails_leaves_its_neighbours(worker: VideoAnswerer, video: Path) -> None:
    answers = without_times(list(worker.answer(about(video, words=("where is the dog", " ", "how many")))))
    assert [bool(a.error) for a in answers] == [False, True, False]
    assert "QuestionError" in (answers[1].error or "")


def test_what_kills_its_workers_is_not_begun_for_ever(
    worker: VideoAnswerer, video: Path, tmp_path: Path
) -> None:
    questions = about(video, tries=str(tmp_path / "tries"))
    for _ in range(MAX_TRIES):
        next(worker.answer(questions)).clear()  # and then the worker died
    assert all("WorkerLostError" in (a.error or "") for a in without_times(list(worker.answer(questions))))


def test_missing_footage_is_named_in_every_answer(worker: VideoAnswerer, tmp_path: Path) -> None:
    times = [t for t in steady(40) if not 5 < t < 30]
    video = write_clip(tmp_path / "hole.mp4", times)
    for answer in without_times(list(worker.answer(about(video)))):
        assert [(round(g["start_s"]), round(g["end_s"])) for g in answer.gaps] == [(6, 30)]


def test_a_stream_of_a_store_is_answered_as_its_engine_does(
    config: PipelineConfig, video: Path, tmp_path: Path
) -> None:
    model = load_model(config.model)
    engine = Engine(model, config.method)
    with SegmentStore.open(tmp_path / "store", identity=ModelIdentity.of(model)) as store:
        for stream_id in ("lobby", "empty"):
            store.add_stream(stream_id, str(video))
        frames = sample_frames(str(video), 2.0)
        ingest(engine, store, "lobby", frames, batches=FrameBatches(2.0, 4), codec="raw")
        memory = store.reader("lobby").refresh()
    worker = VideoAnswerer(replace(config, store=StoreConfig(root=str(tmp_path / "store"))), chunk=2)
    asked = replace(about(video), path="", memory="")
    for answer, words in zip(
        without_times(list(worker.answer(replace(asked, video="lobby")))), WORDS, strict=True
    ):
        expected = engine.answer(memory, words, max_new_tokens=3)
        assert (answer.answer, answer.as_of_s, answer.frames) == (expected.text, 6.0, 12)
        assert [e["weight"] for e in answer.evidence] == [e.weight for e in expected.evidence]
    for stream_id, error in (("empty", "nothing of this stream"), ("hall", "UnknownStreamError")):
        failed = without_times(list(worker.answer(replace(asked, video=stream_id))))
        assert all(error in (a.error or "") for a in failed)
