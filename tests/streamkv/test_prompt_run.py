"""How often a question's prompt runs, what each layer then reads, and where the blocks are placed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from test_engine import FIVE_BLOCKS, QUESTION, N, preset
from tiny import random_segment_kv

from streamkv.attention import attend_with_weights
from streamkv.engine import Engine
from streamkv.memory import InMemoryVideo
from streamkv.models import VideoLLM
from streamkv.retrieval import Query
from streamkv.retrieval.agreement import Agreement, agreed_segments
from streamkv.retrieval.topk import TopK
from streamkv.types import LayerBlocks


def test_layers_with_different_counts_place_the_question_after_their_own_blocks(tiny_model: VideoLLM) -> None:
    """A layer's forward from stored keys, by hand: [system | b blocks | prompt] at positions 0, 1, 2 ..."""
    engine = Engine(tiny_model, preset("streamkv", *FIVE_BLOCKS))
    geometry = tiny_model.geometry
    memory = InMemoryVideo(geometry, [random_segment_kv(geometry, no, kept=(2, 4, 3)) for no in range(4)])
    reading = engine.read(memory, QUESTION)
    counts = [layer.choice.num_blocks for layer in reading.layers]
    assert len(set(counts)) > 1
    assert sum(counts) == 15

    hidden = tiny_model.question_prompt(QUESTION).embeds_TD
    for layer, state in enumerate(reading.layers):
        torch.testing.assert_close(state.input_TD, hidden, atol=1e-4, rtol=1e-4)
        q, k, v = tiny_model.qkv(layer, hidden)
        blocks = memory.gather(layer, state.choice.segment_nos, state.choice.slots)
        system = engine.system[layer]
        keys = torch.cat((system.keys_TGd, blocks.keys_bNGd.flatten(0, 1), k))
        values = torch.cat((system.values_TGd, blocks.values_bNGd.flatten(0, 1), v))
        positions = torch.arange(len(keys))
        attended, weights = attend_with_weights(
            tiny_model.rope(q, positions[-len(q) :]), tiny_model.rope(keys, positions), values
        )
        by_block = weights.mean(0)[system.num_tokens : -len(q)].view(-1, N).sum(1)
        torch.testing.assert_close(state.block_mass_b, by_block, atol=1e-5, rtol=1e-4)
        hidden = tiny_model.finish_layer(layer, hidden, attended)
    torch.testing.assert_close(reading.logits, tiny_model.logits(hidden)[-1], atol=1e-4, rtol=1e-4)


def test_second_pass_takes_adapted_counts_of_the_first_passes_scores(tiny_model: VideoLLM) -> None:
    """First pass == the method with uniform budgets; its candidates, allocated, are what the second reads."""
    adaptive = Engine(tiny_model, preset("streamkv", *FIVE_BLOCKS))
    uniform = Engine(
        tiny_model,
        preset("streamkv", *FIVE_BLOCKS, "method.retrieve.budget.policy=uniform"),
    )
    geometry = tiny_model.geometry
    memory = InMemoryVideo(geometry, [random_segment_kv(geometry, no) for no in range(6)])
    first, second = uniform.read(memory, QUESTION), adaptive.read(memory, QUESTION)
    assert [layer.choice.num_blocks for layer in first.layers] == [5, 5, 5]
    prompt = tiny_model.question_prompt(QUESTION)
    candidates = []
    for layer, state in enumerate(first.layers):
        q, _, _ = tiny_model.qkv(layer, state.input_TD)
        tokens = q[prompt.question].view(-1, 2, 3, geometry.head_dim).sum(2).flatten(1)
        candidates.append(adaptive.retriever.look(memory, layer, Query(tokens.mean(0), tokens)))
    counts = adaptive.retriever.allocate(candidates)
    assert counts != [5, 5, 5]
    for state, candidate, count in zip(second.layers, candidates, counts, strict=True):
        assert state.choice.same_as(adaptive.retriever.choose(candidate, count))


def test_one_pass_when_nothing_adapts(tiny_model: VideoLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Uniform budgets run each layer once; adaptive ones all but the last twice, or once when every block is read
    anyway."""
    geometry = tiny_model.geometry
    memory = InMemoryVideo(geometry, [random_segment_kv(geometry, no) for no in range(6)])
    calls: list[int] = []
    original = type(tiny_model).finish_layer

    def count(self: VideoLLM, layer: int, *args: torch.Tensor) -> torch.Tensor:
        calls.append(layer)
        return original(self, layer, *args)

    all_of_them = "method.retrieve.blocks_per_layer=64"
    engines = [
        Engine(tiny_model, preset("streamkv", *FIVE_BLOCKS, "method.retrieve.budget.policy=uniform")),
        Engine(tiny_model, preset("streamkv", *FIVE_BLOCKS)),
        Engine(tiny_model, preset("streamkv", all_of_them)),
    ]
    monkeypatch.setattr(type(tiny_model), "finish_layer", count)
    runs = []
    for engine in engines:
        calls.clear()
        engine.read(memory, QUESTION)
        runs.append(list(calls))
    assert runs[0] == [0, 1, 2]
    assert runs[1][:2] == [0, 1]
    assert len(runs[1]) > 3
    assert runs[1].count(2) == 1
    assert runs[2] == [0, 1, 2]


def test_layers_agree_on_the_way_and_those_after_read_what_they_chose(
    tiny_model: VideoLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One run, by hand: layer 0 as by itself, layers 1 and 2 among what layers 0 and 1 chose by queries made so far."""
    retrieve = ["policy=agree", "agree_layers=[0, 1]", "agree_segments=2", "budget.policy=uniform"]
    settings = [f"method.retrieve.{setting}" for setting in retrieve]
    engine = Engine(tiny_model, preset("streamkv", *FIVE_BLOCKS, *settings))
    alone = Engine(tiny_model, preset("streamkv", *FIVE_BLOCKS, settings[-1]))
    geometry = tiny_model.geometry
    memory = InMemoryVideo(geometry, [random_segment_kv(geometry, no) for no in range(8)])
    by_itself = alone.read(memory, QUESTION)

    runs: list[int] = []
    original = type(tiny_model).finish_layer

    def count(self: VideoLLM, layer: int, *args: torch.Tensor) -> torch.Tensor:
        runs.append(layer)
        return original(self, layer, *args)

    monkeypatch.setattr(type(tiny_model), "finish_layer", count)
    reading = engine.read(memory, QUESTION)
    assert runs == [0, 1, 2]
    assert reading.layers[0].choice.same_as(by_itself.layers[0].choice)

    prompt, retriever = tiny_model.question_prompt(QUESTION), engine.retriever
    assert isinstance(retriever, Agreement)
    queries, looks = [], []
    for layer, state in enumerate(reading.layers):
        q, _, _ = tiny_model.qkv(layer, state.input_TD)
        tokens = q[prompt.question].view(-1, 2, 3, geometry.head_dim).sum(2).flatten(1)
        queries.append(Query(tokens.mean(0), tokens))
        looks.append(retriever.look(memory, layer, queries[-1]))
    chosen = np.sort(agreed_segments(looks[:2], 2))
    for layer in (1, 2):
        (there,) = retriever.look_in_each(memory, layer, [queries[layer]], [chosen])
        assert reading.layers[layer].choice.same_as(retriever.choose(there))
        assert not reading.layers[layer].choice.same_as(by_itself.layers[layer].choice)
    for kept, look in zip(reading.candidates, looks[:2], strict=True):
        torch.testing.assert_close(kept.scores, look.scores)


@pytest.mark.parametrize(
    "retrieve",
    [("policy=agree", "agree_layers=[0, 1]", "budget.policy=uniform"), ("policy=agree",), ("policy=topk",)],
)
def test_a_memory_hears_of_what_layers_will_read_before_they_do(
    retrieve: tuple[str, ...], tiny_model: VideoLLM
) -> None:
    """Where that is known before: of layers that have agreed, or of a second run."""
    events: list[set[int]] = []

    class Hearing(InMemoryVideo):
        def prefetch(self, segment_nos: np.ndarray) -> None:
            events.append(set(segment_nos.tolist()))

        def gather(self, layer: int, segment_nos: np.ndarray, slots: np.ndarray) -> LayerBlocks:
            if events:
                assert set(segment_nos.tolist()) <= events[0]
                events.append(set(segment_nos.tolist()))
            return super().gather(layer, segment_nos, slots)

    settings = [
        f"method.retrieve.{setting}" for setting in (*retrieve, "agree_segments=2", "recent_blocks=0")
    ]
    engine = Engine(tiny_model, preset("streamkv", *FIVE_BLOCKS, *settings))
    geometry = tiny_model.geometry
    engine.read(Hearing(geometry, [random_segment_kv(geometry, no) for no in range(8)]), QUESTION)
    assert any(events[1:])


@pytest.mark.parametrize("looks", ["reading", "first"])
def test_queries_that_are_made_first_do_not_depend_on_what_is_stored(
    looks: str, tiny_model: VideoLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that are made while reading do, above the first layer."""
    seen: list[torch.Tensor] = []
    real = TopK.look_each

    def noting(self: TopK, memory: Any, layer: int, queries: Any) -> Any:
        seen.append(queries[0].mean)
        return real(self, memory, layer, queries)

    monkeypatch.setattr(TopK, "look_each", noting)
    engine = Engine(tiny_model, preset("streamkv", f"method.retrieve.looks={looks}"))
    for seed in (1, 2):
        kv = random_segment_kv(tiny_model.geometry, 0, kept=(2, 4, 3), seed=seed)
        reading = engine.read(InMemoryVideo(tiny_model.geometry, [kv]), QUESTION)
        assert any(layer.choice.num_blocks for layer in reading.layers)
    L = tiny_model.num_layers
    same = [torch.equal(a, b) for a, b in zip(seen[:L], seen[L:], strict=True)]
    assert same == ([True] * L if looks == "first" else [True, *[False] * (L - 1)])
