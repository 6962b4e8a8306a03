"""An answer says how likely it is right, and one that is too unlikely is not given."""

from __future__ import annotations

import dataclasses
import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_engine import QUESTION, ingest, preset
from tiny import random_frames

from bench.confidence import absent, off_by
from streamkv.confidence import NOT_SHOWN, Signs, confidence, fit, why_not
from streamkv.config import ConfidenceConfig, load_config
from streamkv.engine import Engine
from streamkv.models import VideoLLM
from streamkv.townsquare import make_world

WEIGHTS = ConfidenceConfig(intercept=-4.0, stands_out=1.5, first_token=3.0, log_segments=-0.4)
signs_of = st.builds(Signs, st.floats(-5, 9), st.floats(0, 1), st.integers(1, 100_000))


@given(signs_of, st.floats(0.01, 3))
def test_what_stands_out_more_is_likelier_right(signs: Signs, more: float) -> None:
    higher = dataclasses.replace(signs, stands_out=signs.stands_out + more)
    assert 0 <= confidence(WEIGHTS, signs) < confidence(WEIGHTS, higher) <= 1


def test_a_fit_finds_the_weights_that_made_the_outcomes() -> None:
    rng = random.Random(3)
    signs = [Signs(rng.uniform(0, 5), rng.random(), rng.choice([10, 60, 300])) for _ in range(6_000)]
    is_right = [rng.random() < confidence(WEIGHTS, s) for s in signs]
    found = fit(signs, is_right)
    assert found.scores == found.hidden == []
    for name in ("intercept", "stands_out", "first_token", "log_segments"):
        wanted = getattr(WEIGHTS, name)
        assert getattr(found, name) == pytest.approx(wanted, abs=0.5), name
    far = [abs(confidence(found, s) - confidence(WEIGHTS, s)) for s in signs]
    assert sum(far) / len(far) < 0.02


BY_LAYER = dataclasses.replace(
    WEIGHTS, scores=[0.5, -1.0], attention=[2.0, 0.0, -2.0], heaviest=[0.0] * 3, hidden=[1.0, -1.0]
)


def drawn(rng: random.Random) -> Signs:
    def some(count: int) -> list[float]:
        return [rng.gauss(0, 1) for _ in range(count)]

    return Signs(rng.uniform(0, 5), rng.random(), 60, some(2), some(3), some(3), some(2))


def test_signs_of_each_layer_are_worth_what_their_weights_say() -> None:
    rng = random.Random(4)
    signs = [drawn(rng) for _ in range(4_000)]
    for one in signs[:20]:
        plain = Signs(one.stands_out, one.first_token, one.num_segments)
        more = 0.5 * one.scores[0] - one.scores[1] + 2 * (one.attention[0] - one.attention[2])
        more += one.hidden[0] - one.hidden[1]
        odds = [p / (1 - p) for p in (confidence(WEIGHTS, plain), confidence(BY_LAYER, one))]
        assert math.log(odds[1] / odds[0]) == pytest.approx(more)
        assert confidence(WEIGHTS, one) == confidence(WEIGHTS, plain), "no weights, no say"
    found = fit(signs, [rng.random() < confidence(BY_LAYER, s) for s in signs])
    for name in ("scores", "attention", "heaviest", "hidden"):
        assert getattr(found, name) == pytest.approx(getattr(BY_LAYER, name), abs=0.3), name


def test_weights_of_another_model_or_method_say_nothing(
    tiny_model: VideoLLM, caplog: pytest.LogCaptureFixture
) -> None:
    method = dataclasses.replace(preset("streamkv"), confidence=BY_LAYER)
    engine = Engine(tiny_model, method)
    answer = engine.answer(ingest(engine, random_frames(3)), QUESTION, max_new_tokens=2, min_confidence=1.0)
    assert (answer.confidence, answer.text) != (None, NOT_SHOWN)
    assert answer.confidence is None
    assert "confidence.scores: got 2 weights, this model and method have 3 such signs" in caplog.text
    L, D = tiny_model.num_layers, tiny_model.geometry.hidden_dim
    fits = dataclasses.replace(BY_LAYER, scores=[0.1] * L, hidden=[0.0] * D)
    for name in ("attention", "heaviest", "hidden"):
        other = dataclasses.replace(fits, **{name: [0.0] * 5})
        assert f"confidence.{name}: got 5" in why_not(other, L, tiny_model.geometry)
    engine = Engine(tiny_model, dataclasses.replace(method, confidence=fits))
    assert engine.answer(ingest(engine, random_frames(3)), QUESTION, max_new_tokens=2).confidence is not None


def test_signs_are_what_the_layers_found_and_looked_at(tiny_model: VideoLLM) -> None:
    engine = engine_of(tiny_model, None)
    reading = engine.read(ingest(engine, random_frames(9)), QUESTION)
    signs = reading.signs
    assert signs.scores == [max(c.scores.tolist()) for c in reading.candidates]
    assert len(signs.attention) == len(signs.heaviest) == len(signs.scores) == tiny_model.num_layers
    for layer, seen, heaviest in zip(reading.layers, signs.attention, signs.heaviest, strict=True):
        assert seen == pytest.approx(float(layer.video_weights_S.sum()), abs=1e-5)
        by_block = layer.video_weights_S.view(-1, tiny_model.geometry.frame_tokens).sum(dim=1)
        assert heaviest == pytest.approx(float(by_block.max()), abs=1e-5)
    last = reading.layers[-1].input_TD[-1]
    assert torch.equal(torch.tensor(signs.hidden), last)


def engine_of(model: VideoLLM, intercept: float | None) -> Engine:
    method = preset("streamkv")
    weights = None if intercept is None else ConfidenceConfig(intercept=intercept)
    return Engine(model, dataclasses.replace(method, confidence=weights))


def test_an_answer_that_is_too_unlikely_is_not_given(tiny_model: VideoLLM) -> None:
    sure, unsure, silent = (engine_of(tiny_model, i) for i in (2.0, -2.0, None))
    memory = ingest(sure, random_frames(6))
    given_ = sure.answer(memory, QUESTION, max_new_tokens=4, min_confidence=0.5)
    assert given_.confidence == pytest.approx(1 / (1 + math.exp(-2)))
    assert given_.text == silent.answer(memory, QUESTION, max_new_tokens=4, min_confidence=0.5).text
    heard: list[str] = []
    refused = unsure.answer(memory, QUESTION, max_new_tokens=4, min_confidence=0.5, on_token=heard.append)
    assert (refused.text, "".join(heard), refused.num_tokens) == (NOT_SHOWN, NOT_SHOWN, 0)
    assert refused.evidence == given_.evidence, "where it looked"
    assert unsure.answer(memory, QUESTION, max_new_tokens=4).text == given_.text, "without a threshold"


def test_a_method_without_weights_says_nothing_of_it(tiny_model: VideoLLM) -> None:
    engine = engine_of(tiny_model, None)
    assert engine.answer(ingest(engine, random_frames(3)), QUESTION, max_new_tokens=2).confidence is None


def test_weights_come_with_the_model_that_they_were_fitted_for() -> None:
    assert load_config().method.confidence is not None
    assert load_config(overrides=["model.path=other"]).method.confidence is None
    assert load_config(overrides=["preset=rekv"]).method.confidence is None
    own = load_config(overrides=["model.path=other", "method.confidence.stands_out=2"]).method.confidence
    assert own == ConfidenceConfig(stands_out=2.0)


def test_questions_about_nothing_name_what_the_world_never_shows() -> None:
    world = make_world(5, 10)
    questions = absent(world, 5, 40)
    assert len(questions) == 40
    for scene in world.scenes:
        assert not [q for q in questions if scene.clock in q.question or scene.sign.text in q.question]


def test_off_by_is_nothing_for_shares_that_are_true() -> None:
    import numpy as np

    sure = np.repeat([0.25, 0.75], 400)
    right = np.concatenate([np.arange(400) % 4 == 0, np.arange(400) % 4 != 0])
    assert off_by(sure, right) == pytest.approx(0.0)
    assert off_by(sure, ~right) == pytest.approx(0.5)
