"""The town square's script, pictures, video and questions."""

import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamkv.townsquare import Question, Scene, World, is_correct, make_questions, make_world, write_video
from streamkv.townsquare.draw import HEIGHT, WIDTH, draw_moment
from streamkv.townsquare.questions import COUNT_WORDS, KINDS_OF_QUESTION

SEEDS = st.integers(0, 10_000)


@settings(max_examples=40)
@given(seed=SEEDS, minutes=st.floats(0.1, 70))
def test_clock_and_sign_name_one_scene_each(seed: int, minutes: float) -> None:
    world = make_world(seed, minutes)
    clocks = [s.clock_minute for s in world.scenes]
    assert clocks == sorted(set(clocks))
    assert 0 <= clocks[0] <= clocks[-1] < 24 * 60
    assert len({s.sign for s in world.scenes}) == len(world.scenes)
    assert world.duration_s >= minutes * 60 > world.scenes[-1].start_s
    assert all(a.end_s == b.start_s for a, b in pairwise(world.scenes))


@settings(max_examples=30)
@given(seed=SEEDS)
def test_all_things_of_a_scene_are_on_stage_in_its_middle(seed: int) -> None:
    for scene in make_world(seed, 2).scenes:
        assert scene.visible((scene.start_s + scene.end_s) / 2) == scene.things
        assert len({t.kind for t in scene.things}) == len({t.zone for t in scene.things}) == len(scene.things)


def test_a_seed_is_a_world_and_another_seed_another() -> None:
    assert make_world(5, 3) == make_world(5, 3)
    assert make_world(5, 3).scenes != make_world(6, 3).scenes


@pytest.mark.parametrize("minutes", [0, -1, 241, float("nan")])
def test_a_length_that_cannot_be_is_refused(minutes: float) -> None:
    with pytest.raises(ValueError, match="minutes: got"):
        make_world(0, minutes)


def scenes_that_fit(world: World, text: str) -> list[Scene]:
    """The slow way: every scene that the question's words could mean."""
    found = list(world.scenes)
    if clock := re.search(r"at (\d\d:\d\d)", text):
        found = [s for s in found if s.clock == clock[1]]
    if sign := re.search(r"sign says? ([A-Z] \d\d)", text):
        found = [s for s in found if s.sign.text == sign[1]]
    if thing := re.search(r"(?:when|time is) the (\w+ \w+) (?:is )?there", text):
        found = [s for s in found if thing[1] in [t.name for t in s.things]]
    if not (clock or sign or thing) and (
        named := re.search(r"(?:colour|where) is the (\w+(?: \w+)?)\?", text)
    ):
        found = [s for s in found if any(named[1] in (t.kind, t.name) for t in s.things)]
    return found


def answer_of(scene: Scene, question: Question) -> str:
    """The answer, worked out from the question's words and the script alone."""
    text = question.question
    named = [t for t in scene.things if re.search(rf"\b{t.kind}\b", text)]
    match question.kind:
        case "colour":
            return next(t for t in named if f"the {t.kind}" in text).colour
        case "place":
            return next(t for t in named if f"is the {t.kind}" in text or f"is the {t.name}" in text).zone
        case "number":
            return scene.sign.text
        case "existence":
            asked = re.search(r"is there an? (.*?)(?: at| when|\?)", text)
            assert asked
            return "yes" if any(asked[1] in (t.kind, t.name) for t in scene.things) else "no"
        case "count":
            return COUNT_WORDS[len(scene.things)]
        case "weather":
            return scene.weather
        case "time":
            return scene.clock
    raise AssertionError(question.kind)


@settings(max_examples=25)
@given(seed=SEEDS, minutes=st.sampled_from([0.1, 1.0, 8.0]))
def test_answers_follow_from_the_script_and_questions_mean_one_scene(seed: int, minutes: float) -> None:
    world = make_world(seed, minutes)
    for question in make_questions(world, 48, seed):
        if question.kind == "order":
            signs = re.findall(r"[A-Z] \d\d", question.question)
            assert question.answer == next(s.sign.text for s in world.scenes if s.sign.text in signs)
            continue
        fitting = scenes_that_fit(world, question.question)
        assert len(fitting) == 1, (question.question, [s.clock for s in fitting])
        assert (question.start_s, question.end_s) == (fitting[0].start_s, fitting[0].end_s)
        assert question.answer == answer_of(fitting[0], question)


def test_questions_take_turns_and_no_answer_gives_itself_away() -> None:
    questions = make_questions(make_world(1, 30), 800, 0)
    counts = Counter(q.kind for q in questions)
    assert set(counts) == set(KINDS_OF_QUESTION)
    assert max(counts.values()) - min(counts.values()) <= 1
    said = Counter(q.answer for q in questions if q.kind == "existence")
    assert 0.35 < said["yes"] / said.total() < 0.65
    assert all(q.answer not in q.question for q in questions if q.kind not in ("order", "existence"))


@pytest.mark.parametrize(
    ("answer", "expected", "right"),
    [("k 42", "K 42", True), ("14:07", "14 : 07", True), (" Red.", "red", True), ("k 24", "K 42", False),
     ("", "red", False), ("red bus", "red", False)],
)  # fmt: skip
def test_an_answer_is_right_whatever_its_case_and_spacing(answer: str, expected: str, right: bool) -> None:
    assert is_correct(answer, expected) is right


def test_video_shows_the_script(tmp_path: Path) -> None:
    world = make_world(3, 0.2)
    shares: list[float] = []
    path = write_video(world, tmp_path / "deep" / "world.mp4", shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert [p.name for p in path.parent.iterdir()] == ["world.mp4"]
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        frames = {round(float(f.time), 3): f.to_ndarray(format="rgb24") for f in container.decode(video=0)}
    assert len(frames) == round(world.duration_s * 8)
    for time_s in (1.0, 4.0, world.scenes[0].end_s + 2):
        drawn = draw_moment(world, time_s)
        assert drawn.shape == (HEIGHT, WIDTH, 3)
        assert np.abs(frames[time_s].astype(int) - drawn).mean() < 6  # what the codec loses
