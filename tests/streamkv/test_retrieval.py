"""Each layer reads the blocks that its query scores highest, and the latest ones, in time order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import random_segment_kv

from streamkv.config import BudgetConfig, MethodConfig, RetrieveConfig
from streamkv.errors import ConfigError
from streamkv.memory import InMemoryVideo, VideoMemory, last_blocks
from streamkv.retrieval import BlockChoice, Candidates, Looks, Query, Retriever, TopK, make_retriever
from streamkv.retrieval.agreement import Agreement, agreed_segments
from streamkv.types import Geometry

GEOMETRY = Geometry(num_layers=3, num_heads=6, num_kv_heads=2, head_dim=4, hidden_dim=24, frame_tokens=5)
UNIFORM = BudgetConfig(policy="uniform")
VECTOR = torch.randn(GEOMETRY.summary_dim, generator=torch.Generator().manual_seed(5))
QUERY = Query(VECTOR, VECTOR[None])
LAYER = 1


def memory_of(num_segments: int, *, first_no: int = 0) -> InMemoryVideo:
    """Layers keep different numbers of blocks: 2, 3 and 4 of a segment's 4."""
    return InMemoryVideo(
        GEOMETRY, [random_segment_kv(GEOMETRY, first_no + i, kept=(2, 3, 4)) for i in range(num_segments)]
    )


def retriever_of(n_local: int = 15_000, **retrieve: object) -> Retriever:
    config = RetrieveConfig(**({"candidate_segments": 0, "budget": UNIFORM} | retrieve))
    return make_retriever(MethodConfig(n_local=n_local, retrieve=config), GEOMETRY)


def pairs(choice: BlockChoice | Candidates) -> list[tuple[int, int]]:
    return list(zip(choice.segment_nos.tolist(), choice.slots.tolist(), strict=True))


def best_blocks(
    memory: InMemoryVideo, layer: int, count: int, *, skip_last: int = 0, similarity: str = "dot"
) -> list[tuple[int, int]]:
    """By sorting all blocks, scored one by one against the keys themselves."""
    table, scored = memory.table(layer), []
    for row in range(table.num_blocks - skip_last):
        no, slot = int(table.segment_nos[row]), int(table.slots[row])
        blocks = memory.gather(layer, np.array([no]), np.array([slot]))
        key = blocks.keys_bNGd[0].mean(0)
        length = float(key.norm()) if similarity == "cosine" else 1.0
        scored.append((float((key * VECTOR.view(2, 4)).sum()) / length, no, slot))
    return sorted((no, slot) for _, no, slot in sorted(scored, reverse=True)[:count])


def look_and_choose(retriever: Retriever, memory: InMemoryVideo, layer: int = LAYER) -> list[tuple[int, int]]:
    return pairs(retriever.choose(retriever.look(memory, layer, QUERY)))


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
@pytest.mark.parametrize("layer", range(GEOMETRY.num_layers))
def test_exact_topk_equals_sorting_all_blocks(layer: int, similarity: str) -> None:
    memory = memory_of(6)
    retriever = retriever_of(blocks_per_layer=5, recent_blocks=0, similarity=similarity)
    assert look_and_choose(retriever, memory, layer) == best_blocks(memory, layer, 5, similarity=similarity)


def test_similarities_differ() -> None:
    """Else the test above would not see one for the other."""
    memory = memory_of(6)
    assert best_blocks(memory, LAYER, 5) != best_blocks(memory, LAYER, 5, similarity="cosine")


def test_latest_blocks_are_always_in_and_count() -> None:
    memory = memory_of(6)
    got = look_and_choose(retriever_of(blocks_per_layer=6, recent_blocks=4), memory)
    assert got[-4:] == [(4, 2), (5, 0), (5, 1), (5, 2)]
    assert got[:-4] == best_blocks(memory, LAYER, 2, skip_last=4)


def test_more_recent_blocks_than_k_leave_the_latest_k() -> None:
    got = look_and_choose(retriever_of(blocks_per_layer=2, recent_blocks=8), memory_of(3))
    assert got == [(2, 1), (2, 2)]


def test_fewer_blocks_than_k_are_all_taken() -> None:
    memory = memory_of(2)
    assert look_and_choose(retriever_of(), memory) == pairs(retriever_of().look(memory, LAYER, QUERY))


def test_candidates_are_the_found_segments_and_those_of_the_latest_blocks() -> None:
    """Segments come from the layer's own index; no other block is scored, however well it would do."""
    memory = memory_of(9, first_no=3)
    retriever = retriever_of(blocks_per_layer=4, recent_blocks=4, candidate_segments=2)
    candidates = retriever.look(memory, LAYER, QUERY)
    vectors = torch.stack(
        [random_segment_kv(GEOMETRY, no, kept=(2, 3, 4)).summary_vectors[LAYER] for no in range(3, 12)]
    )
    found = set((3 + (vectors @ VECTOR).topk(2).indices).tolist())
    assert set(candidates.segment_nos.tolist()) == found | {10, 11}
    assert pairs(candidates) == sorted(pairs(candidates))


def test_candidates_of_all_segments_equal_the_exact_scan() -> None:
    memory = memory_of(7)
    settings_ = {"blocks_per_layer": 5, "recent_blocks": 2}
    exact = retriever_of(**settings_)
    two_steps = retriever_of(**settings_, candidate_segments=7)
    assert look_and_choose(two_steps, memory) == look_and_choose(exact, memory)


@settings(max_examples=40)
@given(
    st.integers(1, 8),
    st.integers(1, 12),
    st.integers(0, 12),
    st.integers(0, 5),
    st.sampled_from([None, 0.0, 0.5, 1.0]),
)
def test_budgets_hit_l_times_k_and_keep_the_latest(
    num_segments: int, k: int, recent: int, candidate_segments: int, tau: float | None
) -> None:
    memory = memory_of(num_segments)
    retriever = retriever_of(
        blocks_per_layer=k,
        recent_blocks=recent,
        candidate_segments=candidate_segments,
        budget=BudgetConfig(policy="adaptive", tau=tau),
    )
    assert retriever.is_adaptive
    candidates = [retriever.look(memory, layer, QUERY) for layer in range(3)]
    counts = retriever.allocate(candidates)
    highest = [
        c.num_blocks if tau is None else min(int(np.ceil(k * (1 + tau))), c.num_blocks) for c in candidates
    ]
    assert sum(counts) == min(3 * k, sum(highest))
    for layer, (candidate, count) in enumerate(zip(candidates, counts, strict=True)):
        choice = retriever.choose(candidate, count)
        assert choice.num_blocks == count
        assert pairs(choice) == sorted(set(pairs(choice)))
        latest = min(recent, k, count)
        assert pairs(choice)[count - latest :] == pairs(candidate)[candidate.num_blocks - latest :]
        assert latest == min(recent, k, memory.table(layer).num_blocks)


def test_recent_takes_the_latest_of_each_layer() -> None:
    retriever = retriever_of(policy="recent", recent_blocks=4)
    memory = memory_of(4)
    assert look_and_choose(retriever, memory, 0) == [(2, 0), (2, 1), (3, 0), (3, 1)]
    assert look_and_choose(retriever, memory, 2) == [(3, 0), (3, 1), (3, 2), (3, 3)]
    assert look_and_choose(retriever, memory_of(1), 0) == [(0, 0), (0, 1)]
    assert not retriever.is_adaptive


def test_recent_without_blocks_is_refused() -> None:
    with pytest.raises(ConfigError, match="policy `recent` needs at least 1"):
        retriever_of(policy="recent", recent_blocks=0)


@pytest.mark.parametrize(("n_local", "count"), [(0, 12), (5, 1), (24, 4), (25, 5), (3, 1), (10_000, 12)])
def test_window_takes_whole_blocks_within_n_local(n_local: int, count: int) -> None:
    got = look_and_choose(retriever_of(n_local, policy="window"), memory_of(4))
    assert got == [(no, slot) for no in range(4) for slot in range(3)][-count:]


def test_everything_takes_everything() -> None:
    got = look_and_choose(retriever_of(policy="everything", blocks_per_layer=1), memory_of(4))
    assert got == [(no, slot) for no in range(4) for slot in range(3)]


def test_last_blocks_reach_over_segments() -> None:
    memory = memory_of(5)
    assert pairs(BlockChoice(*(lambda t: (t.segment_nos, t.slots))(last_blocks(memory, 0, 3)))) == [
        (3, 1),
        (4, 0),
        (4, 1),
    ]
    assert last_blocks(memory, 0, 0).num_blocks == 0
    assert last_blocks(memory, 0, 99).num_blocks == 10
    assert last_blocks(InMemoryVideo(GEOMETRY), 0, 3).num_blocks == 0


def test_unknown_policy_is_named() -> None:
    with pytest.raises(
        ConfigError, match=r"retrieve.policy: unknown 'magic'; known: agree, cover, everything, recent, topk"
    ):
        retriever_of(policy="magic")


def test_in_memory_video_refuses_a_segment_out_of_order() -> None:
    memory = memory_of(2)
    with pytest.raises(ValueError, match="segment_no: got 1, need more than 1"):
        memory.add(random_segment_kv(GEOMETRY, 1))


def test_in_memory_video_gathers_in_the_order_named() -> None:
    memory = memory_of(3)
    blocks = memory.gather(2, np.array([2, 0, 2]), np.array([1, 3, 0]))
    source = [random_segment_kv(GEOMETRY, no, kept=(2, 3, 4)).layers[2] for no in (2, 0, 2)]
    expected = [s.keys_bNGd[slot] for s, slot in zip(source, (1, 3, 0), strict=True)]
    torch.testing.assert_close(blocks.keys_bNGd, torch.stack(expected))
    assert blocks.frame_ids == (1, 3, 0)
    assert [start for start, _ in blocks.spans_s] == [18.0, 6.0, 16.0]


def test_in_memory_video_searches_best_first() -> None:
    memory = memory_of(5)
    vectors = torch.stack(
        [random_segment_kv(GEOMETRY, no, kept=(2, 3, 4)).summary_vectors[0] for no in range(5)]
    )
    expected = (vectors @ VECTOR).argsort(descending=True).tolist()
    assert memory.search(0, VECTOR, 3).tolist() == expected[:3]
    assert memory.search(0, VECTOR, 99).tolist() == expected
    opposite = memory.search_each(0, torch.stack([VECTOR, -VECTOR]), 3)
    assert [found.segment_nos.tolist() for found in opposite] == [expected[:3], expected[::-1][:3]]
    assert InMemoryVideo(GEOMETRY).search(0, VECTOR, 3).tolist() == []
    assert memory.as_of_s == 40.0
    assert InMemoryVideo(GEOMETRY).as_of_s == 0.0


def candidates_of(*scored: tuple[int, float]) -> Candidates:
    nos = np.array([no for no, _ in scored], np.int64)
    return Candidates(nos, np.zeros(len(nos), np.int64), torch.tensor([score for _, score in scored]))


def slowly_agreed(layers: list[Candidates], count: int) -> list[int]:
    """One segment and layer at a time."""
    every = sorted({int(no) for c in layers for no in c.segment_nos})
    sums = dict.fromkeys(every, 0.0)
    for c in layers:
        best = {
            no: max(float(s) for n, s in zip(c.segment_nos, c.scores, strict=True) if n == no)
            for no in every
            if no in c.segment_nos
        }
        values = np.array(list(best.values()))
        spread = values.std() or 1.0
        for no in every:
            sums[no] += (best.get(no, values.min()) - values.min()) / spread
    return sorted(every, key=lambda no: (-round(sums[no], 9), no))[:count]


@given(st.integers(0, 10_000), st.integers(1, 6))
def test_layers_agree_as_one_by_one(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    layers = []
    for _ in range(3):
        nos = np.sort(rng.choice(6, rng.integers(1, 12)))
        layers.append(candidates_of(*((int(no), float(rng.integers(-20, 20))) for no in nos)))
    assert agreed_segments(layers, count) == slowly_agreed(layers, count)


def test_one_layer_alone_does_not_bring_in_its_segment() -> None:
    fooled = candidates_of((0, 1.0), (1, 9.0), (2, 8.0), (3, 0.0))
    sure = candidates_of((0, 0.0), (1, 0.0), (2, 9.0), (3, 0.0))
    assert agreed_segments([fooled, sure, sure], 1) == [2]


def test_agreeing_layers_read_the_agreed_segments_and_the_latest_blocks() -> None:
    """Also where a layer's index had not found them: a layer must not be left with nothing to read."""
    memory = memory_of(8)
    retriever = retriever_of(
        policy="agree", agree_segments=2, blocks_per_layer=6, recent_blocks=1, candidate_segments=1
    )
    looks = [retriever.look(memory, layer, QUERY) for layer in range(GEOMETRY.num_layers)]
    assert isinstance(retriever, Agreement)
    queries = [QUERY] * GEOMETRY.num_layers
    agreed = retriever.agree_each(memory, [Looks(queries, looks)])[0].tolist()
    assert agreed == agreed_segments(looks, 2)
    again = retriever.reconsider(memory, queries, looks)
    for candidates, count in zip(again, retriever.allocate(again), strict=True):
        choice = retriever.choose(candidates, count)
        assert set(agreed) <= set(candidates.segment_nos.tolist())
        assert set(choice.segment_nos.tolist()) <= {*agreed, 7}
        assert choice.segment_nos[-1] == 7
    assert retriever.is_adaptive


def test_only_the_layers_that_are_named_choose() -> None:
    memory = memory_of(8)
    retriever = retriever_of(policy="agree", agree_segments=2, agree_layers=[1])
    assert isinstance(retriever, Agreement)
    looks = [retriever.look(memory, layer, QUERY) for layer in range(2)]
    (agreed,) = retriever.agree_each(memory, [Looks([QUERY, QUERY], looks)])
    assert agreed.tolist() == agreed_segments([looks[1]], 2) != agreed_segments(looks, 2)
    assert (retriever.agrees_at, list(retriever.voters(2)), retriever.is_adaptive) == (1, [1], False)


def test_layers_that_the_model_lacks_and_counts_that_wait_for_all_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"agree_layers: got \[1, 3\], but the model's layers are 0 to 2"):
        retriever_of(policy="cover", agree_layers=[1, 3])
    with pytest.raises(ConfigError, match=r"agree_layers: .*budget.policy=adaptive, which waits for all"):
        retriever_of(policy="agree", agree_layers=[1], budget=BudgetConfig())
    assert retriever_of(policy="topk", agree_layers=[1], budget=BudgetConfig()).is_adaptive, "not its setting"


def test_segments_far_below_the_best_are_left_out() -> None:
    layer = candidates_of((0, 10.0), (1, 9.0), (2, 4.0), (3, 0.0))
    assert agreed_segments([layer], 4) == [0, 1, 2, 3]
    assert agreed_segments([layer], 4, share=0.5) == [0, 1]
    assert agreed_segments([layer], 4, share=0.3) == [0, 1, 2]
    assert agreed_segments([layer], 4, share=1.0) == [0]


@pytest.mark.parametrize("policy", ["topk", "agree", "cover", "recent", "window", "everything"])
@pytest.mark.parametrize("similarity", ["dot", "cosine"])
@pytest.mark.parametrize(("candidates", "recent"), [(0, 1), (3, 0), (3, 2)])
def test_several_questions_find_what_each_finds(
    policy: str, similarity: str, candidates: int, recent: int
) -> None:
    retriever = retriever_of(
        n_local=20,
        policy=policy,
        similarity=similarity,
        candidate_segments=candidates,
        recent_blocks=max(recent, policy == "recent"),
        agree_segments=2,
        blocks_per_layer=4,
    )
    memory, generator = memory_of(9, first_no=3), torch.Generator().manual_seed(1)

    def query() -> Query:
        tokens = torch.randn(4, GEOMETRY.summary_dim, generator=generator)
        return Query(tokens.mean(0), tokens)

    asked = [[query() for _ in range(GEOMETRY.num_layers)] for _ in range(5)]
    layers = [
        retriever.look_each(memory, layer, [queries[layer] for queries in asked])
        for layer in range(GEOMETRY.num_layers)
    ]
    looks = [Looks(queries, found) for queries, found in zip(asked, zip(*layers, strict=True), strict=True)]
    again = retriever.reconsider_each(memory, looks)
    for queries, look, reconsidered in zip(asked, looks, again, strict=True):
        alone = [retriever.look(memory, layer, q) for layer, q in enumerate(queries)]
        check_same(look.candidates, alone)
        check_same(reconsidered, retriever.reconsider(memory, queries, alone))


def check_same(got: Sequence[Candidates], expected: Sequence[Candidates]) -> None:
    for ours, theirs in zip(got, expected, strict=True):
        assert pairs(ours) == pairs(theirs)
        torch.testing.assert_close(ours.scores, theirs.scores, atol=1e-5, rtol=1e-5)


def test_a_policy_that_looks_otherwise_does_so_for_one_too() -> None:
    class Last(TopK):
        def look_each(self, memory: VideoMemory, layer: int, queries: Sequence[Query]) -> list[Candidates]:
            return [
                Candidates(found.segment_nos[-1:], found.slots[-1:], found.scores[-1:])
                for found in super().look_each(memory, layer, queries)
            ]

    last = Last(MethodConfig(), GEOMETRY)
    assert pairs(last.look(memory_of(3), LAYER, QUERY)) == [(2, 2)]
