"""What is held of a memory is what the memory says, as much of it as was allowed."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import random_segment_kv

from streamkv.config import load_config
from streamkv.engine import Engine
from streamkv.held import HeldVideo
from streamkv.memory import BlockTable, InMemoryVideo
from streamkv.models import VideoLLM
from streamkv.types import Geometry, LayerBlocks

GEOMETRY = Geometry(num_layers=3, num_heads=6, num_kv_heads=2, head_dim=4, hidden_dim=24, frame_tokens=5)


class Counted(InMemoryVideo):
    """Six segments; counts what is read."""

    def __init__(self) -> None:
        super().__init__(GEOMETRY, [random_segment_kv(GEOMETRY, i, kept=(2, 3, 4)) for i in range(6)])
        self.reads = 0

    def table(self, layer: int, segment_nos: np.ndarray | None = None) -> BlockTable:
        self.reads += 1
        return super().table(layer, segment_nos)

    def gather(self, layer: int, segment_nos: np.ndarray, slots: np.ndarray) -> LayerBlocks:
        self.reads += 1
        return super().gather(layer, segment_nos, slots)


looks = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.none() | st.lists(st.integers(0, 5), min_size=1, max_size=3, unique=True).map(sorted),
    ),
    max_size=20,
)


@given(looks=looks, max_bytes=st.sampled_from([0, 500, 3000, 10**6]))
def test_it_says_what_the_memory_says(looks: list[tuple[int, list[int] | None]], max_bytes: int) -> None:
    memory = Counted()
    held = HeldVideo(memory, max_bytes)
    for layer, nos in looks:
        named = None if nos is None else np.array(nos, np.int64)
        table, expected = held.table(layer, named), InMemoryVideo.table(memory, layer, named)
        assert np.array_equal(table.segment_nos, expected.segment_nos)
        assert np.array_equal(table.slots, expected.slots)
        assert torch.equal(table.mean_keys, expected.mean_keys)
        blocks = held.gather(layer, table.segment_nos, table.slots)
        same = InMemoryVideo.gather(memory, layer, table.segment_nos, table.slots)
        assert torch.equal(blocks.keys_bNGd, same.keys_bNGd)
        assert torch.equal(blocks.values_bNGd, same.values_bNGd)
    distinct = len({(layer, tuple(nos or ())) for layer, nos in looks})
    if max_bytes == 10**6:
        assert memory.reads <= 2 * distinct
    if max_bytes == 0:
        assert memory.reads == 2 * len(looks)


def test_what_was_used_longest_ago_is_let_go() -> None:
    memory = Counted()
    one = memory.table(0).mean_keys.nbytes
    held, memory.reads = HeldVideo(memory, 2 * one), 0
    layers_of_one_size = [
        np.array(nos) for nos in ([0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [1, 0, 2, 3, 4, 5])
    ]
    a, b, c = layers_of_one_size
    for nos, reads in ((a, 1), (b, 2), (a, 2), (c, 3), (a, 3), (b, 4)):
        held.table(0, nos)
        assert memory.reads == reads


def test_answers_are_the_same(tiny_model: VideoLLM) -> None:
    method = load_config(overrides=["model.path=other", "method.retrieve.blocks_per_layer=6"]).method
    engine = Engine(tiny_model, method)
    segments = [random_segment_kv(tiny_model.geometry, i) for i in range(6)]
    memory = InMemoryVideo(tiny_model.geometry, segments)
    held = HeldVideo(memory)
    for question in ("what is red", "where is the dog", "what is red"):
        found, expected = (engine.answer(m, question, max_new_tokens=3) for m in (held, memory))
        assert (found.text, found.evidence) == (expected.text, expected.evidence)


def test_it_is_searched_as_the_memory_is() -> None:
    memory = Counted()
    query = torch.randn(GEOMETRY.summary_dim, generator=torch.Generator().manual_seed(2))
    for among in (None, np.array([1, 4])):
        found, expected = (m.search(1, query, 3, among) for m in (HeldVideo(memory), memory))
        assert found.tolist() == expected.tolist()
        (each,) = HeldVideo(memory).search_each(1, query[None], 3, among)
        assert each.segment_nos.tolist() == expected.tolist()
