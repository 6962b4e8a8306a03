"""A question about a part of the past reads that part, and searches in it alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import random_segment_kv

from streamkv.config import BudgetConfig, MethodConfig, RetrieveConfig
from streamkv.engine import Engine
from streamkv.errors import QuestionError
from streamkv.excerpt import Excerpt, Span, between
from streamkv.memory import InMemoryVideo
from streamkv.models import VideoLLM
from streamkv.types import Geometry

GEOMETRY = Geometry(num_layers=2, num_heads=6, num_kv_heads=2, head_dim=4, hidden_dim=24, frame_tokens=5)
LONG = 12
MEMORY = InMemoryVideo(GEOMETRY, [random_segment_kv(GEOMETRY, no, kept=(2, 3)) for no in range(LONG)])
SEGMENTS = MEMORY.segments
END = MEMORY.as_of_s
sides = st.one_of(st.floats(-20, END + 20), st.sampled_from([s.start_s for s in SEGMENTS]))


def overlapping(span: Span) -> list[int]:
    return [s.segment_no for s in SEGMENTS if s.start_s < span.end_s and s.end_s > span.start_s]


@given(st.one_of(st.just(-math.inf), sides), st.one_of(st.just(math.inf), sides))
def test_span_holds_the_segments_that_overlap_it(start_s: float, end_s: float) -> None:
    span = Span(start_s, end_s)
    inside = overlapping(span)
    if start_s >= end_s or not inside:
        with pytest.raises(QuestionError):
            between(MEMORY, span)
    else:
        assert [s.segment_no for s in between(MEMORY, span).segments] == inside


@given(st.sets(st.integers(0, LONG - 1), min_size=1), st.integers(1, LONG), st.integers(0, 1))
def test_excerpt_is_searched_as_if_there_were_no_more(inside: set[int], k: int, layer: int) -> None:
    excerpt = Excerpt(MEMORY, [s for s in SEGMENTS if s.segment_no in inside])
    alone = InMemoryVideo(GEOMETRY, [random_segment_kv(GEOMETRY, no, kept=(2, 3)) for no in sorted(inside)])
    queries = torch.randn(3, GEOMETRY.summary_dim, generator=torch.Generator().manual_seed(k))
    for found, wanted in zip(
        excerpt.search_each(layer, queries, k), alone.search_each(layer, queries, k), strict=True
    ):
        assert len(found.segment_nos) == min(k, len(inside))
        assert found.segment_nos.tolist() == wanted.segment_nos.tolist()
    assert excerpt.search(layer, queries[0], k).tolist() == alone.search(layer, queries[0], k).tolist()
    for named in (None, np.arange(LONG)):
        table, own = excerpt.table(layer, named), alone.table(layer)
        assert table.segment_nos.tolist() == own.segment_nos.tolist()
        assert torch.equal(table.mean_keys, own.mean_keys)


@pytest.mark.parametrize(
    ("span", "message"),
    [
        (Span(70.0, 70.0), "got from 0:01:10 to 0:01:10; it must end after it begins"),
        (Span(90.0, 30.0), "got from 0:01:30 to 0:00:30; it must end after it begins"),
        (Span(3600.0), "nothing of this stream is from 1:00:00 on; its footage spans 0:00:00 to 0:01:36"),
        (Span(end_s=-5.0), "nothing of this stream is before -0:00:05"),
        (Span(200.0, 210.0), "nothing of this stream is between 0:03:20 and 0:03:30"),
    ],
)
def test_refused_span_says_what_there_is(span: Span, message: str) -> None:
    with pytest.raises(QuestionError, match=message):
        between(MEMORY, span)


@pytest.mark.parametrize("policy", ["topk", "agree", "cover", "recent", "window", "everything"])
def test_every_policy_reads_only_what_the_span_holds(tiny_model: VideoLLM, policy: str) -> None:
    geometry = tiny_model.geometry
    memory = InMemoryVideo(
        geometry, [random_segment_kv(geometry, no, kept=(2,) * geometry.num_layers) for no in range(LONG)]
    )
    retrieve = RetrieveConfig(
        policy=policy,
        blocks_per_layer=6,
        recent_blocks=2,
        candidate_segments=4,
        budget=BudgetConfig(policy="uniform"),
    )
    engine = Engine(tiny_model, MethodConfig(retrieve=retrieve))
    span = Span(SEGMENTS[3].start_s, SEGMENTS[6].end_s)
    answer = engine.answer(memory, "what is there?", span=span, max_new_tokens=2)
    assert answer.evidence
    assert {e.segment_no for e in answer.evidence} <= {3, 4, 5, 6}
    read = {
        int(no)
        for layer in engine.read(memory, "what is there?", span=span).layers
        for no in layer.choice.segment_nos
    }
    assert read <= {3, 4, 5, 6}
    assert answer.as_of_s == memory.as_of_s
