"""Many streams are searched as if they were one long one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import random_segment_kv

from streamkv.config import BudgetConfig, MethodConfig, RetrieveConfig
from streamkv.engine import Engine
from streamkv.excerpt import Excerpt, Span, between
from streamkv.many import FoundSegment, FoundStream, ManyVideos, best_streams
from streamkv.memory import InMemoryVideo, VideoMemory
from streamkv.models import VideoLLM
from streamkv.types import Geometry, SegmentKV

GEOMETRY = Geometry(num_layers=2, num_heads=6, num_kv_heads=2, head_dim=4, hidden_dim=24, frame_tokens=5)


def segments_of(stream: int, nos: list[int], geometry: Geometry = GEOMETRY) -> list[SegmentKV]:
    """Of one stream; no two streams have equal segments."""
    kept = tuple(2 + layer % 2 for layer in range(geometry.num_layers))
    made = [random_segment_kv(geometry, 100 * stream + no, kept=kept) for no in nos]
    return [
        replace(kv, segment_no=no, start_s=8.0 * no, end_s=8.0 * no + 8)
        for kv, no in zip(made, nos, strict=True)
    ]


def both(
    numbers: list[list[int]], geometry: Geometry = GEOMETRY
) -> tuple[list[VideoMemory], ManyVideos, InMemoryVideo]:
    """Streams apart, together, and as one that was always one."""
    streams: list[VideoMemory] = []
    one, offset = InMemoryVideo(geometry), 0
    for stream, nos in enumerate(numbers):
        segments = segments_of(stream, nos, geometry)
        streams.append(InMemoryVideo(geometry, segments))
        for kv in segments:
            one.add(replace(kv, segment_no=offset + kv.segment_no))
        offset += nos[-1] + 1
    return streams, ManyVideos(streams), one


numbers = st.lists(
    st.sets(st.integers(0, 9), min_size=1, max_size=5).map(lambda nos: sorted(nos)), min_size=1, max_size=5
)


@settings(max_examples=50)
@given(numbers, st.data())
def test_many_are_read_as_one(streams: list[list[int]], data: st.DataObject) -> None:
    _, many, one = both(streams)
    assert many.segments == one.segments
    assert many.as_of_s == one.as_of_s
    every = [s.segment_no for s in one.segments]
    some = np.array(sorted(data.draw(st.sets(st.sampled_from(every)))), np.int64)
    k, layer = data.draw(st.integers(1, 30)), data.draw(st.integers(0, 1))
    queries = torch.randn(2, GEOMETRY.summary_dim, generator=torch.Generator().manual_seed(k))
    for among in (None, some):
        found, wanted = (memory.search_each(layer, queries, k, among) for memory in (many, one))
        for got, truth in zip(found, wanted, strict=True):
            assert got.segment_nos.tolist() == truth.segment_nos.tolist()
            np.testing.assert_allclose(got.scores, truth.scores, rtol=1e-5, atol=1e-5)
        table, whole = many.table(layer, among), one.table(layer, among)
        assert table.segment_nos.tolist() == whole.segment_nos.tolist()
        assert table.slots.tolist() == whole.slots.tolist()
        assert torch.equal(table.mean_keys, whole.mean_keys)
    assert many.search(layer, queries[0], k).tolist() == one.search(layer, queries[0], k).tolist()


@settings(max_examples=50)
@given(numbers, st.data())
def test_blocks_are_gathered_in_the_order_named(streams: list[list[int]], data: st.DataObject) -> None:
    _, many, one = both(streams)
    table = one.table(1)
    rows = data.draw(st.lists(st.integers(0, table.num_blocks - 1), min_size=1, max_size=12))
    named = (table.segment_nos[rows], table.slots[rows])
    found, wanted = many.gather(1, *named), one.gather(1, *named)
    assert torch.equal(found.keys_bNGd, wanted.keys_bNGd)
    assert torch.equal(found.values_bNGd, wanted.values_bNGd)
    assert found.spans_s == wanted.spans_s


def test_each_memory_hears_of_its_own_segments() -> None:
    heard: list[tuple[int, list[int]]] = []

    class Hearing(InMemoryVideo):
        def prefetch(self, segment_nos: np.ndarray) -> None:
            heard.append((self.segments[0].segment_no, segment_nos.tolist()))

    streams = [[0, 3], [1, 2], [2, 4]]
    many = ManyVideos([Hearing(GEOMETRY, segments_of(i, nos)) for i, nos in enumerate(streams)])
    many.prefetch(np.array([0, 3, 4 + 3 + 2, 4 + 3 + 4]))
    assert heard == [(0, [0, 3]), (2, [2, 4])]


@given(numbers)
def test_every_segment_is_traced_to_its_stream(streams: list[list[int]]) -> None:
    apart, many, _ = both(streams)
    traced = [many.original(s.segment_no) for s in many.segments]
    assert traced == [(i, s) for i, memory in enumerate(apart) for s in memory.segments]


def test_best_streams_are_those_with_the_best_segments() -> None:
    apart, many, _ = both([[0, 1, 2], [0, 1], [5], [0]])
    scores = {0: 1.0, 1: 4.0, 2: 2.0, 3: 4.0, 4: 5.0, 10: 3.0}  # segment 5 of the third stream is 5 + 3 + 2
    (first, second) = best_streams(many, scores, 2, 2)
    assert first == FoundStream(
        1, (FoundSegment(apart[1].segments[1], 5.0), FoundSegment(apart[1].segments[0], 4.0))
    )
    assert second == FoundStream(
        0, (FoundSegment(apart[0].segments[1], 4.0), FoundSegment(apart[0].segments[2], 2.0))
    )
    assert [s.stream for s in best_streams(many, scores, 9, 1)] == [1, 0, 2]


@pytest.mark.parametrize("policy", ["cover", "recent", "everything"])
@pytest.mark.parametrize("budget", ["adaptive", "uniform"])
def test_search_of_many_finds_what_a_search_of_one_would(
    tiny_model: VideoLLM, policy: str, budget: str
) -> None:
    _, many, one = both([[0, 1, 2], [0, 3], [1]], tiny_model.geometry)
    retrieve = RetrieveConfig(
        policy=policy,
        blocks_per_layer=3,
        recent_blocks=2,
        candidate_segments=4,
        budget=BudgetConfig(policy=budget),
    )
    engine = Engine(tiny_model, MethodConfig(retrieve=retrieve))
    found, wanted = engine.find(many, "where is it?"), engine.find(one, "where is it?")
    assert found.keys() == wanted.keys()
    assert found == pytest.approx(wanted, rel=1e-4)
    assert len(set(found.values())) > 1
    without = MethodConfig(retrieve=replace(retrieve, policy="topk", recent_blocks=0))
    assert found == Engine(tiny_model, without).find(many, "where is it?"), "latest blocks are one stream's"


def test_search_of_many_opens_few_even_where_answers_score_every_block(tiny_model: VideoLLM) -> None:
    exact = RetrieveConfig(candidate_segments=0)
    _, many, _ = both([list(range(40)), list(range(40))], tiny_model.geometry)
    found = Engine(tiny_model, MethodConfig(retrieve=exact)).find(many, "where is it?")
    assert found == Engine(tiny_model, MethodConfig()).find(many, "where is it?")


def test_search_of_many_obeys_a_span_of_each(tiny_model: VideoLLM) -> None:
    apart, _, _ = both([[0, 1, 2, 3], [0, 1, 2, 3]], tiny_model.geometry)
    parts = [between(apart[0], Span(8.0, 16.0)), Excerpt(apart[1], apart[1].segments[2:])]
    many = ManyVideos(parts)
    found = Engine(tiny_model, MethodConfig()).find(many, "where is it?")
    assert {many.original(no)[0] for no in found} == {0, 1}
    assert {many.original(no)[1].segment_no for no in found if many.original(no)[0] == 0} == {1}
    assert {many.original(no)[1].segment_no for no in found if many.original(no)[0] == 1} == {2, 3}
