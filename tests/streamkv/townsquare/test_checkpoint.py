"""The shipped demo model: what it is, and that it answers about H.264 that it never saw."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch

from streamkv.config import ModelConfig, load_config
from streamkv.engine import Engine
from streamkv.memory import InMemoryVideo
from streamkv.models import load_model
from streamkv.models.base import VideoLLM
from streamkv.segmentation import Segmenter
from streamkv.townsquare import World, is_correct, make_questions, make_world, write_video
from streamkv.townsquare.script import TEST_SEEDS, TRAIN_SEED_BASE
from streamkv.video import sample_frames

CHECKPOINT = Path(__file__).parents[3] / "streamkv" / "townsquare" / "checkpoint"
LOCAL = Path(__file__).parents[3] / "configs" / "local.yaml"
SEEDS = (900_001, 900_002, 900_003, 900_004, 900_005, 900_006)


@pytest.fixture(scope="module")
def model() -> VideoLLM:
    return load_model(ModelConfig())


def watch(model: VideoLLM, engine: Engine, world: World, folder: Path) -> InMemoryVideo:
    """The world as the system takes it in: H.264, sampled, encoded, segmented, prefilled."""
    path = write_video(world, folder / f"{world.seed}.mp4")
    frames = list(sample_frames(str(path), 0.5, on_gap=lambda *gap: pytest.fail(str(gap))))
    features = model.encode_frames([f.rgb for f in frames])
    segmenter, window = Segmenter(engine.method.segment), engine.open_window()
    memory = InMemoryVideo(model.geometry)
    closed = [
        segmenter.push(f, frame.start_s, frame.end_s) for f, frame in zip(features, frames, strict=True)
    ]
    for segment in [*closed, segmenter.flush()]:
        if segment is not None:
            memory.add(engine.prefill(window, segment))
    return memory


def score(model: VideoLLM, preset: str, minutes: float, folder: Path) -> tuple[float, float]:
    """Share of right answers, and what always saying the commonest answer of the kind would get."""
    engine = Engine(model, load_config(LOCAL, [f"preset={preset}"]).method)
    right, truths = [], []
    for seed in SEEDS:
        world = make_world(seed, minutes)
        memory = watch(model, engine, world, folder)
        for question in make_questions(world, 16, 0):
            said = engine.answer(memory, question.question, max_new_tokens=8).text
            right.append(is_correct(said, question.answer))
            truths.append((question.kind, question.answer))
    commonest: Counter[str] = Counter()
    for (kind, _), count in Counter(truths).items():
        commonest[kind] = max(commonest[kind], count)
    return sum(right) / len(right), commonest.total() / len(truths)


def test_the_folder_is_small_and_of_the_stated_family() -> None:
    config = json.loads((CHECKPOINT / "config.json").read_text())
    assert config["architectures"] == ["LlavaOnevisionForConditionalGeneration"]
    assert sum(f.stat().st_size for f in CHECKPOINT.iterdir()) < 20_000_000


def test_test_seeds_are_none_of_the_training_seeds() -> None:
    assert set(SEEDS) <= set(TEST_SEEDS)
    assert TEST_SEEDS.stop <= TRAIN_SEED_BASE


@pytest.mark.parametrize("preset", ["full", "streamkv"])
def test_answers_about_unseen_video_far_above_the_commonest_answer(
    model: VideoLLM, preset: str, tmp_path: Path
) -> None:
    """96 questions about clips of two scenes; the floor is well below what docs/demo-model.md reports."""
    torch.manual_seed(0)
    accuracy, baseline = score(model, preset, 0.3, tmp_path)
    assert accuracy > max(FLOOR, baseline + 0.3), f"{accuracy:.2f}, commonest answer {baseline:.2f}"


FLOOR = 0.85
