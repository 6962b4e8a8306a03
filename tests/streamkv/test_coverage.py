"""Policy `cover`: one segment when one stands out, else segments that together answer for the question's tokens."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from tiny import random_segment_kv
from torch import Tensor

from streamkv.config import BudgetConfig, MethodConfig, RetrieveConfig
from streamkv.memory import BlockTable, InMemoryVideo, Ranked
from streamkv.retrieval import Looks, Query, make_retriever
from streamkv.retrieval.agreement import Agreement
from streamkv.retrieval.coverage import cover
from streamkv.types import Geometry, SegmentKV

GEOMETRY = Geometry(num_layers=2, num_heads=8, num_kv_heads=2, head_dim=8, hidden_dim=64, frame_tokens=3)
SIGNS = torch.eye(GEOMETRY.summary_dim)
"""What a token of a sign and the segment that shows it have in common."""


def slowly_covered(gains: np.ndarray, count: int, least: float) -> list[int]:
    """Every column's set tried, one after another."""

    def value(columns: list[int]) -> float:
        return sum(max((gains[t][c] for c in columns), default=0.0) for t in range(len(gains)))

    chosen: list[int] = []
    first = 0.0
    while len(chosen) < count:
        added = [value([*chosen, c]) - value(chosen) for c in range(gains.shape[1])]
        best = max(range(len(added)), key=lambda c: (added[c], -c))
        if not chosen:
            first = added[best]
        if added[best] <= 0 or added[best] < least * first:
            break
        chosen.append(best)
    return chosen


@given(
    arrays(np.float64, st.tuples(st.integers(1, 5), st.integers(1, 6)), elements=st.integers(0, 8)),
    st.integers(0, 4),
    st.sampled_from([0.0, 0.25, 0.5, 1.0]),
)
def test_covers_as_one_set_at_a_time(gains: np.ndarray, count: int, least: float) -> None:
    chosen = cover(gains, count, least)
    assert chosen == slowly_covered(gains, count, least)
    assert len(set(chosen)) == len(chosen)


def test_two_tokens_bring_a_segment_each() -> None:
    assert cover(np.array([[9.0, 0.0, 5.0], [0.0, 8.0, 5.0]]), 3, 0.3) == [2, 0, 1]
    assert cover(np.array([[9.0, 0.0, 3.0], [0.0, 8.0, 3.0]]), 3, 0.3) == [0, 1]


def square(showing: dict[int, Tensor], num_segments: int = 12) -> InMemoryVideo:
    """Faint noise, but for the segments that show something."""

    def segment(no: int) -> SegmentKV:
        kv = random_segment_kv(GEOMETRY, no, num_frames=2)
        added = showing.get(no, torch.zeros(GEOMETRY.summary_dim)).view(1, 1, 2, 8)
        layers = tuple(replace(b, keys_bNGd=0.1 * b.keys_bNGd + added) for b in kv.layers)
        return replace(kv, layers=layers, summary_vectors=torch.stack([b.mean_keys()[-1] for b in layers]))

    return InMemoryVideo(GEOMETRY, [segment(no) for no in range(num_segments)])


def agreed(memory: InMemoryVideo, *tokens: Tensor, **retrieve: object) -> list[int]:
    """`tokens`: of each layer, or of all."""
    settings_ = {"policy": "cover", "agree_segments": 4, "agree_share": 0.75, "candidate_segments": 0}
    config = MethodConfig(retrieve=RetrieveConfig(**(settings_ | retrieve)))
    retriever = make_retriever(config, GEOMETRY)
    assert isinstance(retriever, Agreement)
    each = tokens * (GEOMETRY.num_layers // len(tokens))
    queries = [Query(tokens_TD.mean(dim=0), tokens_TD) for tokens_TD in each]
    looks = [retriever.look(memory, layer, query) for layer, query in enumerate(queries)]
    segment_nos: list[int] = retriever.agree_each(memory, [Looks(queries, looks)])[0].tolist()
    return segment_nos


BOTH = torch.stack([SIGNS[0] - SIGNS[2], SIGNS[0], SIGNS[1], SIGNS[1] - SIGNS[2]])
"""Tokens of a question that names two signs."""


@pytest.mark.parametrize("candidate_segments", [0, 6])
def test_each_of_two_signs_is_found_though_others_resemble_their_mean(candidate_segments: int) -> None:
    """Segments 4 and 5 show a bit of both signs; the mean query prefers them to segments 2 and 9."""
    blurred = 0.6 * (SIGNS[0] + SIGNS[1])
    memory = square({2: SIGNS[0], 9: SIGNS[1], 4: blurred, 5: blurred})
    assert set(agreed(memory, BOTH, policy="agree", agree_segments=2)) == {4, 5}
    assert set(agreed(memory, BOTH, candidate_segments=candidate_segments, agree_segments=2)) == {2, 9}
    assert agreed(memory, BOTH, cover_share=0.0) == agreed(memory, BOTH, policy="agree")


def test_a_segment_that_stands_out_is_read_alone() -> None:
    memory = square({2: SIGNS[0], 9: 0.3 * SIGNS[1]})
    assert agreed(memory, BOTH) == [2]


def test_a_question_about_one_moment_is_left_to_agreement() -> None:
    """Its tokens and their mean say the same, and a second segment comes near: nothing to cover."""
    memory = square({2: SIGNS[0], 9: 0.9 * SIGNS[0], 5: SIGNS[1]})
    one = torch.stack([SIGNS[0], SIGNS[0], SIGNS[0] + 0.1 * SIGNS[1]])
    assert agreed(memory, one) == agreed(memory, one, policy="agree") == [2, 9]


def test_tokens_count_in_the_layers_that_are_named() -> None:
    """All tokens of layer 0 are sure of another segment."""
    memory = square({2: SIGNS[0], 9: SIGNS[1], 5: SIGNS[3]})
    other = SIGNS[3].expand_as(BOTH)
    assert 5 in agreed(memory, other, BOTH, cover_share=1.0)
    named = {"agree_layers": [1], "budget": BudgetConfig("uniform")}
    assert set(agreed(memory, other, BOTH, cover_share=1.0, **named)) == {2, 9}


def test_no_more_than_agree_segments() -> None:
    memory = square({2: SIGNS[0], 9: SIGNS[1], 4: SIGNS[3]})
    tokens = torch.stack([SIGNS[0], SIGNS[1], SIGNS[3]])
    for most in (1, 2, 3):
        assert len(agreed(memory, tokens, agree_segments=most)) == most


def test_a_memory_of_one_segment_is_read() -> None:
    assert agreed(square({}, num_segments=1), BOTH) == [0]


def test_a_question_of_many_tokens_opens_a_bounded_number_of_segments() -> None:
    """A thousand tokens would else open the whole store. The mean query brings 4, 20 tokens one each."""
    opened: list[int] = []

    class Watched(InMemoryVideo):
        def table(self, layer: int, segment_nos: np.ndarray | None = None) -> BlockTable:
            opened.append(len(self.segments) if segment_nos is None else len(segment_nos))
            return super().table(layer, segment_nos)

    kvs = [random_segment_kv(GEOMETRY, no, num_frames=2) for no in range(60)]
    tokens = torch.randn(20, GEOMETRY.summary_dim, generator=torch.Generator().manual_seed(1))
    agreed(Watched(GEOMETRY, kvs), tokens, agree_share=0.0, candidate_segments=4)
    assert max(opened) <= 20


def test_tokens_are_searched_for_in_the_middle_layer_alone() -> None:
    """What the others would find by themselves is theirs only in the mean."""
    searches: list[tuple[int, int]] = []

    class Watched(InMemoryVideo):
        def search_each(
            self, layer: int, queries: Tensor, k: int, among: np.ndarray | None = None
        ) -> list[Ranked]:
            searches.append((layer, len(queries)))
            return super().search_each(layer, queries, k, among)

    kvs = [random_segment_kv(GEOMETRY, no, num_frames=2) for no in range(12)]
    layers = list(range(GEOMETRY.num_layers))
    agreed(
        Watched(GEOMETRY, kvs),
        BOTH,
        agree_share=0.0,
        candidate_segments=4,
        agree_layers=layers,
        budget=BudgetConfig("uniform"),
    )
    assert searches == [*((layer, 1) for layer in layers), (len(layers) // 2, 1 + len(BOTH))]
