"""One variant over one video: what is seen when a question is asked, and what is written down."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import random_segment_kv

from streamkv.config import AgeingStep, load_config
from streamkv.errors import SourceError
from streamkv.evaluation.oracle import holding
from streamkv.evaluation.report import read_answers, write_answers
from streamkv.evaluation.runner import EncodedVideo, Variant, encoded, run_video, unanswered
from streamkv.evaluation.townsquare import TownSquareSuite
from streamkv.evaluation.types import EvalQuestion, EvalVideo
from streamkv.memory import InMemoryVideo
from streamkv.models import VideoLLM
from streamkv.types import Geometry

FPS = 0.5
NUM_FRAMES = 12


def seen_by(model: VideoLLM) -> EncodedVideo:
    geometry = model.geometry
    torch.manual_seed(3)
    features = torch.randn(NUM_FRAMES, geometry.frame_tokens, geometry.hidden_dim)
    return EncodedVideo(features, tuple((k / FPS, (k + 1) / FPS) for k in range(NUM_FRAMES)), gaps=0)


def asked(name: str, at_s: float, moment: tuple[float, float] = (2.0, 4.0)) -> EvalQuestion:
    return EvalQuestion(name, "colour", "what colour is the bus", "red", "exact", at_s, (moment,))


def variant_of(preset: str, *settings: str, oracle: bool = False) -> Variant:
    method = load_config(overrides=["model.path=other", f"preset={preset}", *settings]).method
    return Variant(preset, method, oracle=oracle, codec="raw")


def run(model: VideoLLM, variant: Variant, *questions: EvalQuestion) -> list:
    video = EvalVideo("v", Path("v.mp4"), questions)
    return run_video(model, variant, video, seen_by(model), suite="s", seed=4, max_new_tokens=3)


def test_a_question_sees_what_came_before_it_and_nothing_later(tiny_model: VideoLLM) -> None:
    full = variant_of("full")
    rows = run(tiny_model, full, asked("late", float("inf")), asked("early", 8.0))
    early, late = rows
    assert [r.question_id for r in rows] == ["early", "late"]
    assert (early.blocks_per_layer, late.blocks_per_layer) == (4.0, 12.0)
    assert (early.asked_at_s, late.asked_at_s) == (8.0, 24.0)
    assert (early.age_s, late.age_s) == (4.0, 20.0)


def test_a_question_before_the_first_frame_is_unanswered_and_wrong(tiny_model: VideoLLM) -> None:
    (row,) = run(tiny_model, variant_of("streamkv"), asked("first", 0.0))
    assert row.score == 0.0
    assert "nothing was shown" in row.error


def test_a_question_that_cannot_be_answered_leaves_the_others_their_answers(tiny_model: VideoLLM) -> None:
    blank = replace(asked("blank", 20.0), question="   ")
    bad, good = run(tiny_model, variant_of("streamkv"), blank, asked("good", 20.0))
    assert (bad.question_id, bad.score, bad.error[:13]) == ("blank", 0.0, "QuestionError")
    assert (good.error, good.blocks_per_layer > 0) == ("", True)


def test_bytes_are_those_of_the_files_and_smaller_where_less_is_kept(tiny_model: VideoLLM) -> None:
    kept = {
        name: run(tiny_model, variant_of(name, *settings), asked("q", float("inf")))[0]
        for name, settings in {"rekv": (), "streamkv": ("method.compress.keep_ratio=0.1",)}.items()
    }
    assert kept["rekv"].kv_bytes == NUM_FRAMES * tiny_model.geometry.block_bytes(4) * tiny_model.num_layers
    assert kept["streamkv"].kv_bytes < kept["rekv"].kv_bytes
    assert all(row.stored_bytes > row.kv_bytes for row in kept.values())
    assert all(row.frames == NUM_FRAMES and row.duration_s == NUM_FRAMES / FPS for row in kept.values())


def test_the_oracle_is_shown_the_true_segments_only(tiny_model: VideoLLM) -> None:
    uniform = ("method.segment.policy=uniform", "method.segment.min_frames=1", "method.segment.max_frames=3")
    moment = (6.5, 11.0)  # in the second of four segments
    (row,) = run(tiny_model, variant_of("streamkv", *uniform, oracle=True), asked("q", float("inf"), moment))
    assert row.in_top3 is True
    assert row.blocks_per_layer <= 4


GEOMETRY = Geometry(num_layers=2, num_heads=6, num_kv_heads=2, head_dim=4, hidden_dim=24, frame_tokens=5)


def test_only_segments_hides_the_others_everywhere() -> None:
    memory = InMemoryVideo(GEOMETRY, [random_segment_kv(GEOMETRY, i, kept=(2, 3)) for i in range(5)])
    spans = {s.segment_no: (s.start_s, s.end_s) for s in memory.segments}
    view = holding(memory, (spans[1], spans[3]))
    inside = {s.segment_no for s in view.segments}
    assert {1, 3} <= inside < set(spans)
    query = torch.randn(GEOMETRY.summary_dim)
    assert set(view.search(0, query, 5).tolist()) == inside
    assert set(view.table(1).segment_nos.tolist()) == inside
    assert view.search(0, query, 1).tolist() == view.search(0, query, 5).tolist()[:1]


def test_features_are_encoded_once_and_again_when_the_file_changes(
    tiny_model: VideoLLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = TownSquareSuite(0.2, 1, 4, 0, tmp_path)
    (video,) = suite.videos()
    path = suite.prepare(video)
    first = encoded(tiny_model, path, FPS, tmp_path / "cache")
    passes = []
    monkeypatch.setattr(type(tiny_model), "encode_frames", lambda *_: passes.append(1))
    again = encoded(tiny_model, path, FPS, tmp_path / "cache")
    assert torch.equal(first.features_FND, again.features_FND)
    assert first.spans_s == again.spans_s
    assert not passes
    path.write_bytes(b"no video")
    with pytest.raises(SourceError):
        encoded(tiny_model, path, FPS, tmp_path / "cache")


def test_answers_come_back_from_parquet_as_they_went_in(tiny_model: VideoLLM, tmp_path: Path) -> None:
    rows = run(tiny_model, variant_of("recent"), asked("q", float("inf")), asked("early", 0.0))
    rows.append(unanswered("s", "recent", 4, "gone", asked("q2", 5.0), "MissingVideoError: gone.mp4"))
    write_answers(rows, tmp_path / "answers.parquet")
    back = read_answers(tmp_path / "answers.parquet")
    assert [r.question_id for r in back] == [r.question_id for r in rows]
    assert repr(back) == repr(rows)  # nan equals itself here


def test_every_seed_gives_other_worlds_and_the_same_ones_again(tmp_path: Path) -> None:
    def videos(seed: int) -> list[EvalVideo]:
        return list(TownSquareSuite(1.0, 2, 8, seed, tmp_path).videos())

    assert videos(1) == videos(1)
    ids = [video.id for seed in (1, 2) for video in videos(seed)]
    assert len(set(ids)) == 4
    assert len({q.id for seed in (1, 2) for v in videos(seed) for q in v.questions}) == 32


def test_a_variant_is_asked_of_segments_as_old_as_it_says(tiny_model: VideoLLM) -> None:
    """Bytes are those of the aged files."""
    question, variant = asked("q", float("inf")), variant_of("rekv")
    few = replace(variant, ageing=(AgeingStep(0, "int4", keep_ratio=0.25),))
    (whole,), (left,) = run(tiny_model, variant, question), run(tiny_model, few, question)
    assert (left.error, left.segments) == ("", whole.segments)
    assert left.stored_bytes < whole.stored_bytes
    assert left.kv_bytes < whole.kv_bytes / 2
