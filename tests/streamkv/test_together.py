"""Questions answered together get the answers that each gets by itself, whoever joins, ends, fails or leaves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_engine import FIVE_BLOCKS, preset
from tiny import random_segment_kv

from streamkv.config import ConfidenceConfig, preset_names
from streamkv.conversation import Turn
from streamkv.engine import Engine
from streamkv.errors import CorruptSegmentError, QuestionError
from streamkv.excerpt import Span
from streamkv.memory import BlockTable, InMemoryVideo, Ranked
from streamkv.models import VideoLLM
from streamkv.question import Question
from streamkv.together import Outcome, Together, UnderWay
from streamkv.types import Answer, Geometry, LayerBlocks

TEXTS = (
    "what is the colour of the bus",
    "where is the dog",
    "when did it leave",
    "how many",
    "is it red",
    "what is the colour of the dog before a bus did leave",
)
LEFT = ConnectionResetError("hung up")


def segments_of(geometry: Geometry, count: int, seed: int) -> list[Any]:
    return [random_segment_kv(geometry, no, kept=(2, 4, 3), seed=seed) for no in range(count)]


ON_THE_WAY = (
    "method.retrieve.policy=cover",
    "method.retrieve.agree_layers=[0, 1]",
    "method.retrieve.budget.policy=uniform",
)


@pytest.fixture(
    scope="module", params=[("method.retrieve.looks=reading",), ("method.retrieve.looks=first",), ON_THE_WAY]
)
def engine(tiny_model: VideoLLM, request: pytest.FixtureRequest) -> Engine:
    method = preset("streamkv", *FIVE_BLOCKS, "method.retrieve.candidate_segments=4", *request.param)
    return Engine(tiny_model, replace(method, confidence=ConfidenceConfig(first_token=1.0)))


@pytest.fixture(scope="module")
def memories(tiny_model: VideoLLM) -> tuple[InMemoryVideo, ...]:
    """Streams of one, six and nine segments of 8 s."""
    sizes = ((1, 0), (6, 1), (9, 2))
    return tuple(InMemoryVideo(tiny_model.geometry, segments_of(tiny_model.geometry, *s)) for s in sizes)


class Alone:
    """The slow, obvious way: one by one, each once."""

    def __init__(self, engine: Engine) -> None:
        self._answer = lru_cache(None)(lambda question: engine.answer_many([question])[0])

    def __call__(self, question: Question) -> Outcome:
        outcome: Outcome = self._answer(replace(question, on_token=None))
        return outcome


@pytest.fixture(scope="module")
def alone(engine: Engine) -> Alone:
    return Alone(engine)


def check_same(got: Outcome | None, expected: Outcome) -> None:
    if isinstance(expected, Exception):
        assert (type(got), str(got)) == (type(expected), str(expected))
        return
    assert isinstance(got, Answer)
    for name in ("text", "as_of_s", "num_tokens", "num_prompt_tokens", "blocks_per_layer"):
        assert getattr(got, name) == getattr(expected, name), name
    assert [(e.segment_no, e.layers) for e in got.evidence] == [
        (e.segment_no, e.layers) for e in expected.evidence
    ]
    weights = [[e.weight for e in answer.evidence] for answer in (got, expected)]
    assert weights[0] == pytest.approx(weights[1], abs=1e-5)
    assert got.confidence == pytest.approx(expected.confidence, abs=1e-5)


questions = st.fixed_dictionaries(
    {
        "memory": st.integers(0, 2),
        "text": st.sampled_from([*TEXTS, " "]),
        "span": st.sampled_from([None, None, Span(8.0, 30.0), Span(500.0)]),
        "earlier": st.sampled_from([(), (Turn("user", "how many dog"), Turn("assistant", "two"))]),
        "max_new_tokens": st.sampled_from([0, 1, 2, 5, 9]),
        "min_confidence": st.sampled_from([0.0, 0.6]),
    }
)
moves = st.lists(
    st.one_of(
        st.lists(questions, min_size=1, max_size=4),  # join
        st.just("step"),
        st.tuples(st.just("leave"), st.integers(0, 9)),  # one of those under way
        st.tuples(st.just("hang up"), st.integers(0, 9)),
    ),
    max_size=12,
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(moves=moves)
def test_whoever_joins_ends_or_leaves_answers_are_those_of_one_by_one(
    moves: list[Any], engine: Engine, memories: Sequence[InMemoryVideo], alone: Alone
) -> None:
    together, joined, heard, gone = Together(engine), list[UnderWay](), list[list[str]](), set[int]()

    def ask(given_: dict[str, Any]) -> Question:
        number, pieces = len(heard), list[str]()
        heard.append(pieces)

        def on_token(text: str) -> None:
            if number in gone:
                raise LEFT
            pieces.append(text)

        return Question(**{**given_, "memory": memories[given_["memory"]]}, on_token=on_token)

    left: dict[int, Exception] = {}
    for move in [*moves, *["step"] * 10]:
        if isinstance(move, list):
            joined += together.join([ask(given_) for given_ in move])
        elif move == "step":
            ended = together.step()
            assert all(one.outcome is not None for one in ended)
        elif going := [number for number, one in enumerate(joined) if one.outcome is None]:
            number = going[move[1] % len(going)]
            if move[0] == "hang up":
                gone.add(number)
            else:
                left[number] = TimeoutError("told to leave")
                joined[number].leave(left[number])
    assert together.num_going == 0
    for number, one in enumerate(joined):
        expected = alone(one.question)
        if number in left:
            assert one.outcome is left[number]
        elif one.outcome is LEFT:
            assert number in gone
        else:
            check_same(one.outcome, expected)
        if isinstance(expected, Answer):
            assert expected.text.startswith("".join(heard[number]))


@pytest.mark.parametrize("name", preset_names())
def test_what_is_read_together_is_read_alone(name: str, tiny_model: VideoLLM) -> None:
    """Same blocks in each layer, and logits within float tolerance, of one memory and of several."""
    engine = Engine(tiny_model, preset(name, "method.n_local=45"))
    memories = [InMemoryVideo(tiny_model.geometry, segments_of(tiny_model.geometry, n, n)) for n in (12, 3)]
    asked = [Question(memories[i % 2], text) for i, text in enumerate(TEXTS)]
    for question, got in zip(asked, engine.read_each(asked), strict=True):
        assert not isinstance(got, Exception)
        expected = engine.read(question.memory, question.text)
        torch.testing.assert_close(got.logits, expected.logits, atol=1e-4, rtol=1e-4)
        for ours, theirs in zip(got.signs.parts(), expected.signs.parts(), strict=True):
            assert ours == pytest.approx(theirs, abs=1e-4)
        for ours, theirs in zip(got.layers, expected.layers, strict=True):
            assert ours.choice.same_as(theirs.choice)
            torch.testing.assert_close(ours.cache.keys, theirs.cache.keys, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(ours.block_mass_b, theirs.block_mass_b, atol=1e-5, rtol=1e-4)


class Counted(InMemoryVideo):
    """Counts what is read of it; a segment may be broken."""

    broken: int | None = None

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.reads: list[str] = []

    def search_each(self, *args: Any) -> list[Ranked]:
        self.reads.append("search")
        return super().search_each(*args)

    def table(self, layer: int, segment_nos: np.ndarray | None = None) -> BlockTable:
        self.reads.append("table")
        return super().table(layer, segment_nos)

    def gather(self, layer: int, segment_nos: np.ndarray, slots: np.ndarray) -> LayerBlocks:
        self.reads.append("gather")
        if self.broken in segment_nos:
            raise CorruptSegmentError(f"segment {self.broken}: broken")
        assert len(set(zip(segment_nos.tolist(), slots.tolist(), strict=True))) == len(slots)
        return super().gather(layer, segment_nos, slots)


def test_questions_share_the_layers_work_and_their_memorys_blocks(
    tiny_model: VideoLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many they are: a layer is run once, and searched and read once for each memory."""
    calls: list[int] = []
    original = type(tiny_model).finish_layer

    def count(self: VideoLLM, layer: int, *args: torch.Tensor) -> torch.Tensor:
        calls.append(layer)
        return original(self, layer, *args)

    method = preset("streamkv", "method.retrieve.budget.policy=uniform", *FIVE_BLOCKS)
    engine = Engine(tiny_model, method)
    geometry = tiny_model.geometry
    memories = [Counted(geometry, segments_of(geometry, 6, seed)) for seed in (1, 2)]
    monkeypatch.setattr(type(tiny_model), "finish_layer", count)
    answers = engine.answer_many(
        [Question(memories[i % 2], text, max_new_tokens=3) for i, text in enumerate(TEXTS)]
    )
    assert all(isinstance(answer, Answer) and answer.num_tokens == 3 for answer in answers)
    assert calls == [0, 1, 2] * 3, "the prompts, then two more words"
    for memory in memories:
        assert {kind: memory.reads.count(kind) for kind in ("search", "gather")} == {"search": 3, "gather": 3}


def test_at_most_so_many_are_under_way(engine: Engine, memories: Sequence[InMemoryVideo]) -> None:
    joins: list[tuple[int, int]] = []
    original = Together.join

    def join(self: Together, questions: Sequence[Question]) -> list[UnderWay]:
        joins.append((self.num_going, len(questions)))
        return original(self, questions)

    asked = [Question(memories[1], text, max_new_tokens=n) for n, text in enumerate(TEXTS, 1)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Together, "join", join)
        got = engine.answer_many(asked, at_once=2)
    assert sum(new for _, new in joins) == len(asked)
    assert all(before + new <= 2 for before, new in joins)
    for answer, expected in zip(got, engine.answer_many(asked, at_once=99), strict=True):
        check_same(answer, expected)
    with pytest.raises(ValueError, match="at_once"):
        engine.answer_many(asked, at_once=0)


@pytest.mark.parametrize("budget", ["uniform", "adaptive"])
def test_a_broken_block_fails_the_questions_that_read_it(budget: str, tiny_model: VideoLLM) -> None:
    method = preset(
        "streamkv",
        f"method.retrieve.budget.policy={budget}",
        "method.retrieve.blocks_per_layer=2",
        "method.retrieve.recent_blocks=0",
    )
    engine, geometry = Engine(tiny_model, method), tiny_model.geometry
    memory, whole = (Counted(geometry, segments_of(geometry, 9, 4)) for _ in range(2))
    asked = [Question(m, text, max_new_tokens=2) for text in TEXTS for m in (memory, whole)]
    seen = set()
    for memory.broken in (0, 4, 8):
        expected = [engine.answer_many([question])[0] for question in asked]
        for got, wanted in zip(engine.answer_many(asked), expected, strict=True):
            check_same(got, wanted)
        seen.add(sum(isinstance(outcome, CorruptSegmentError) for outcome in expected))
    assert len(seen - {0, len(TEXTS)}) > 0, "some failed and some did not"


def test_what_fails_for_all_fails_those_that_share_it(
    engine: Engine, memories: Sequence[InMemoryVideo], alone: Alone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Newcomers whose prompts do not fit leave those alone who came before."""
    first, second = (Question(memories[1], text, max_new_tokens=4) for text in TEXTS[:2])
    together = Together(engine)
    (one,) = together.join([first])
    with monkeypatch.context() as patch:
        patch.setattr(engine.model, "qkv", lambda *_: (_ for _ in ()).throw(MemoryError("no room")))
        (two,) = together.join([second])
    assert isinstance(two.outcome, MemoryError)
    while one.outcome is None:
        together.step()
    check_same(one.outcome, alone(first))
    (three,) = together.join([second])
    with monkeypatch.context() as patch:
        patch.setattr(engine.model, "qkv", lambda *_: (_ for _ in ()).throw(MemoryError("no room")))
        assert together.step() == [three]
    assert isinstance(three.outcome, MemoryError)
    assert together.num_going == 0


def test_nothing_is_asked(engine: Engine, memories: Sequence[InMemoryVideo]) -> None:
    assert engine.answer_many([]) == []
    assert Together(engine).step() == []
    (outcome,) = engine.answer_many([Question(memories[0], " ")])
    assert isinstance(outcome, QuestionError)
