"""Prefill: any chunking gives the whole's answer, windows slide and come back, blocks know their frames."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from reference import whole_forward_kv
from tiny import FRAME_TOKENS, segment_of

from streamkv.attention import KV, attend_stream, grouped_query
from streamkv.config import BudgetConfig, CompressConfig, MethodConfig
from streamkv.excerpt import Excerpt
from streamkv.memory import InMemoryVideo
from streamkv.models import VideoLLM
from streamkv.prefill import StreamWindow, guidance_queries, prefill_segment, prefill_system, replay
from streamkv.types import Segment, SegmentKV

N = FRAME_TOKENS
KEEP_ALL = CompressConfig(policy="none", summary=False)


def method_of(n_local: int = 0, compress: CompressConfig = KEEP_ALL) -> MethodConfig:
    return MethodConfig(n_local=n_local, compress=compress)


def features(num_frames: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(num_frames, N, 48, generator=torch.Generator().manual_seed(seed))


def segments_of(counts: list[int]) -> list[Segment]:
    parts = features(sum(counts)).split(counts)
    starts = [2.0 * sum(counts[:i]) for i in range(len(counts))]
    return [
        segment_of(f, segment_no=i, start_s=s) for i, (f, s) in enumerate(zip(parts, starts, strict=True))
    ]


def run(
    model: VideoLLM, method: MethodConfig, segments: list[Segment], **options: int
) -> tuple[StreamWindow, list[SegmentKV]]:
    window = StreamWindow(prefill_system(model), method.n_local)
    return window, [prefill_segment(model, window, s, method, **options) for s in segments]


def assert_same_stream(got: list[SegmentKV], expected: list[SegmentKV]) -> None:
    """The same blocks, however they are cut into segments."""
    for layer in range(len(got[0].layers)):
        for name in ("keys_bNGd", "values_bNGd"):
            ours, theirs = (
                torch.cat([getattr(s.layers[layer], name) for s in kvs]) for kvs in (got, expected)
            )
            torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)


def test_without_limit_prefill_is_the_plain_causal_forward(tiny_model: VideoLLM) -> None:
    """system + 5 frames at once through every layer == two segments through the window."""
    _, kvs = run(tiny_model, method_of(), segments_of([2, 3]))
    tokens = torch.cat((tiny_model.system_embeds(), features(5).flatten(0, 1)))
    num_system = len(tiny_model.system_embeds())
    for layer, (_, keys, values) in enumerate(whole_forward_kv(tiny_model, tokens)):
        got = torch.cat([s.layers[layer].keys_bNGd.flatten(0, 1) for s in kvs])
        torch.testing.assert_close(got, keys[num_system:], atol=2e-5, rtol=1e-4)
        got = torch.cat([s.layers[layer].values_bNGd.flatten(0, 1) for s in kvs])
        torch.testing.assert_close(got, values[num_system:], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("n_local", [0, 1, 4, 10, 23, 1000])
def test_frame_by_frame_equals_at_once(n_local: int, tiny_model: VideoLLM) -> None:
    window, alone = run(tiny_model, method_of(n_local), segments_of([1] * 6))
    other, at_once = run(tiny_model, method_of(n_local), segments_of([6]))
    assert_same_stream(alone, at_once)
    assert window.num_tokens == other.num_tokens == 6 * N
    for ours, theirs in zip(window.layers, other.layers, strict=True):
        torch.testing.assert_close(ours.keys_TGd, theirs.keys_TGd, atol=2e-5, rtol=1e-4)
        assert ours.num_tokens == (min(n_local, 6 * N) if n_local else 6 * N)


@pytest.mark.parametrize("n_local", [0, 20])
@pytest.mark.parametrize("chunk_tokens", [1, 2, 4, 7, 9, 13, 1000])
def test_any_chunking_gives_the_same(chunk_tokens: int, n_local: int, tiny_model: VideoLLM) -> None:
    compress = CompressConfig(keep_ratio=0.5)
    segments = segments_of([3, 4])
    _, chunked = run(tiny_model, method_of(n_local, compress), segments, chunk_tokens=chunk_tokens)
    _, whole = run(tiny_model, method_of(n_local, compress), segments)
    assert_same_stream(chunked, whole)
    for ours, theirs in zip(chunked, whole, strict=True):
        assert [b.frame_ids for b in ours.layers] == [b.frame_ids for b in theirs.layers]
        torch.testing.assert_close(ours.summary_vectors, theirs.summary_vectors, atol=2e-5, rtol=1e-4)


@settings(max_examples=25)
@given(
    st.lists(st.integers(1, 3), min_size=1, max_size=4),
    st.integers(1, 40),
    st.sampled_from([0, 1, 13, 30, 1000]),
)
def test_any_cut_and_any_chunking_equal_one_pass(
    tiny_model: VideoLLM, counts: list[int], chunk_tokens: int, n_local: int
) -> None:
    _, pieces = run(tiny_model, method_of(n_local), segments_of(counts), chunk_tokens=chunk_tokens)
    _, whole = run(tiny_model, method_of(n_local), segments_of([sum(counts)]), chunk_tokens=10_000)
    assert_same_stream(pieces, whole)


def test_window_forgets_what_slid_out(one_layer_model: VideoLLM) -> None:
    """With one layer, a token's output depends on the last n_local tokens alone."""
    long, short = segments_of([6])[0], segment_of(features(6)[4:])
    method = method_of(n_local=N)
    window, _ = run(one_layer_model, method, [long])
    other, _ = run(one_layer_model, method, [short])
    for ours, theirs in zip(window.layers, other.layers, strict=True):
        torch.testing.assert_close(ours.keys_TGd, theirs.keys_TGd)
        assert ours.num_tokens == N


def test_summary_is_the_mean_frame_prefilled_last_and_never_evicted(tiny_model: VideoLLM) -> None:
    frames = features(4)
    compress = CompressConfig(keep_ratio=0.3, budget=BudgetConfig(policy="uniform"))
    window, (kv,) = run(tiny_model, method_of(0, compress), [segment_of(frames)])
    other, (plain,) = run(
        tiny_model, method_of(), [segment_of(torch.cat((frames, frames.mean(0, keepdim=True))))]
    )
    assert window.num_tokens == other.num_tokens == 5 * N
    assert kv.num_frames == 4
    for layer, (blocks, everything) in enumerate(zip(kv.layers, plain.layers, strict=True)):
        assert blocks.frame_ids[-1] == 4
        assert blocks.spans_s[-1] == (kv.start_s, kv.end_s) == (0.0, 8.0)
        torch.testing.assert_close(blocks.keys_bNGd, everything.keys_bNGd[list(blocks.frame_ids)])
        torch.testing.assert_close(blocks.values_bNGd, everything.values_bNGd[list(blocks.frame_ids)])
        assert blocks.spans_s[:-1] == tuple(everything.spans_s[i] for i in blocks.frame_ids[:-1])
        torch.testing.assert_close(kv.summary_vectors[layer], blocks.mean_keys()[-1])


def test_without_summary_the_vector_is_the_mean_of_kept_frames(tiny_model: VideoLLM) -> None:
    compress = CompressConfig(keep_ratio=0.5, summary=False)
    _, (kv,) = run(tiny_model, method_of(0, compress), segments_of([5]))
    assert kv.summary_vectors.shape == (3, tiny_model.geometry.summary_dim)
    for vector, blocks in zip(kv.summary_vectors, kv.layers, strict=True):
        torch.testing.assert_close(vector, blocks.mean_keys().mean(0))
        assert max(blocks.frame_ids) < 5


def test_kept_frames_are_those_that_the_guidance_prompt_scores_highest(tiny_model: VideoLLM) -> None:
    """The guidance prompt as plain further tokens of the stream: its queries there score the frames."""
    compress = CompressConfig(
        keep_ratio=0.5, summary=False, guidance="red bus dog", budget=BudgetConfig("uniform")
    )
    _, (kv,) = run(tiny_model, method_of(0, compress), segments_of([6]))
    guidance = tiny_model.guidance_embeds("red bus dog")
    tokens = torch.cat((tiny_model.system_embeds(), features(6).flatten(0, 1), guidance))
    num_system, T, G = len(tiny_model.system_embeds()), len(guidance), tiny_model.geometry.num_kv_heads
    for layer, (q, keys, _) in enumerate(whole_forward_kv(tiny_model, tokens)):
        mean_keys = keys[num_system:-T].view(6, N, -1).mean(1)
        best = (mean_keys @ grouped_query(q[-T:], G)).topk(3).indices.sort().values
        assert kv.layers[layer].frame_ids == tuple(best.tolist())


def test_guidance_leaves_no_trace(tiny_model: VideoLLM) -> None:
    """The next segment's blocks are the same whether the one before it was scored or not."""
    scored = CompressConfig(keep_ratio=0.99, summary=False)
    for compress in (scored, dataclasses.replace(scored, guidance="bus")):
        window, kvs = run(tiny_model, method_of(30, compress), segments_of([4, 1]))
        other, plain = run(tiny_model, method_of(30), segments_of([4, 1]))
        assert_same_stream(kvs[1:], plain[1:])
        assert window.num_tokens == other.num_tokens


def test_guidance_sees_the_window(tiny_model: VideoLLM) -> None:
    window, _ = run(tiny_model, method_of(), segments_of([2]))
    empty = StreamWindow(prefill_system(tiny_model), 0)
    bus = tiny_model.guidance_embeds("bus")
    first, later = guidance_queries(tiny_model, empty, bus), guidance_queries(tiny_model, window, bus)
    torch.testing.assert_close(first[0], later[0])  # layer 0 has seen nothing yet
    assert not torch.allclose(first[1], later[1], atol=1e-3)


@pytest.mark.parametrize("n_local", [0, 5, 18, 25, 1000])
@pytest.mark.parametrize("summary", [False, True])
def test_rebuilt_window_goes_on_as_if_nothing_happened(
    n_local: int, summary: bool, tiny_model: VideoLLM
) -> None:
    method = method_of(n_local, CompressConfig(policy="none", summary=summary))
    segments = segments_of([2, 3, 1, 2])
    window, kvs = run(tiny_model, method, segments[:3])
    memory = InMemoryVideo(tiny_model.geometry, kvs)
    rebuilt = StreamWindow.rebuild(window.system, memory, method)
    assert rebuilt.num_tokens == window.num_tokens
    assert [kv.num_tokens for kv in rebuilt.layers] == [kv.num_tokens for kv in window.layers]
    ours, theirs = (prefill_segment(tiny_model, w, segments[3], method) for w in (rebuilt, window))
    assert_same_stream([ours], [theirs])


def test_rebuilt_window_of_a_compressed_stream_holds_the_kept_tokens(tiny_model: VideoLLM) -> None:
    method = method_of(4 * N + 2, CompressConfig(keep_ratio=0.5))
    window, kvs = run(tiny_model, method, segments_of([4, 4, 4]))
    rebuilt = StreamWindow.rebuild(window.system, InMemoryVideo(tiny_model.geometry, kvs), method)
    assert rebuilt.num_tokens == window.num_tokens == 15 * N
    for layer, kv in enumerate(rebuilt.layers):
        kept = torch.cat([s.layers[layer].keys_bNGd.flatten(0, 1) for s in kvs])
        torch.testing.assert_close(kv.keys_TGd, kept[-(4 * N + 2) :])


def test_rebuilt_window_counts_the_stream_not_what_was_kept(tiny_model: VideoLLM) -> None:
    """The system prompt is as far away as the stream is long: dropped frames count."""
    method = method_of(8 * N, CompressConfig(keep_ratio=0.3))  # kept tokens do not fill it, the stream does
    window, kvs = run(tiny_model, method, segments_of([4, 4]))
    rebuilt = StreamWindow.rebuild(window.system, InMemoryVideo(tiny_model.geometry, kvs), method)
    next_segment = segment_of(features(1, seed=1), segment_no=2)
    got = prefill_segment(tiny_model, rebuilt.fork(), next_segment, method_of(8 * N)).layers[1].keys_bNGd[0]

    hidden = next_segment.features_nND[0]
    q, k, v = tiny_model.qkv(0, hidden)
    local = rebuilt.layers[0].join(KV(k, v))
    assert local.num_tokens < 8 * N < rebuilt.num_tokens == 10 * N
    attended = attend_stream(tiny_model.rope, q, rebuilt.system[0], local, num_past=10 * N, n_local=8 * N)
    _, expected, _ = tiny_model.qkv(1, tiny_model.finish_layer(0, hidden, attended))
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=1e-4)


@settings(max_examples=60)
@example(
    counts=[2, 3, 3], n_local=2 * N + 5, summary=True
)  # what was kept of the first does not fill a window
@given(
    counts=st.lists(st.integers(1, 4), min_size=1, max_size=9),
    n_local=st.sampled_from([0, 5, N, 2 * N, 2 * N + 5]),
    summary=st.booleans(),
)
def test_replayed_segments_make_a_window_what_it_was_to_the_bit(
    counts: list[int], n_local: int, summary: bool, tiny_model: VideoLLM
) -> None:
    """Whatever was dropped of them: the stream goes on as one that was never broken off."""
    method = method_of(n_local, CompressConfig(keep_ratio=0.3, summary=summary))
    *segments, last = segments_of([*counts, 2])
    window, kvs = run(tiny_model, method, segments)
    memory = InMemoryVideo(tiny_model.geometry, kvs)
    rebuilt, again = replay(window.system, memory, method)
    for segment in segments[len(segments) - len(again) :]:
        prefill_segment(tiny_model, rebuilt, segment, method)
    assert rebuilt.num_tokens == window.num_tokens
    for ours, theirs in zip(rebuilt.layers, window.layers, strict=True):
        assert torch.equal(ours.keys_TGd, theirs.keys_TGd)
        assert torch.equal(ours.values_TGd, theirs.values_TGd)
    ours, theirs = (prefill_segment(tiny_model, w, last, method) for w in (rebuilt, window))
    assert all(torch.equal(a.keys_bNGd, b.keys_bNGd) for a, b in zip(ours.layers, theirs.layers, strict=True))


def test_no_more_is_replayed_than_the_layers_look_back(tiny_model: VideoLLM) -> None:
    """Layers x window: here two frames and a summary a segment, and a window of two segments."""
    method = method_of(6 * N, CompressConfig(keep_ratio=0.3))
    _, kvs = run(tiny_model, method, segments_of([2] * 12))
    memory = InMemoryVideo(tiny_model.geometry, kvs)
    _, again = replay(prefill_system(tiny_model), memory, method)
    assert [s.segment_no for s in again] == list(range(12 - 2 * tiny_model.num_layers, 12))


def test_nothing_is_replayed_from_before_what_was_lost(tiny_model: VideoLLM) -> None:
    method = method_of(6 * N, CompressConfig(keep_ratio=0.3))
    _, kvs = run(tiny_model, method, segments_of([2] * 8))
    memory = InMemoryVideo(tiny_model.geometry, [kv for kv in kvs if kv.segment_no != 5])
    window, again = replay(prefill_system(tiny_model), memory, method)
    assert [s.segment_no for s in again] == [6, 7]
    rebuilt = StreamWindow.rebuild(window.system, Excerpt(memory, memory.segments[:5]), method)
    assert window.num_tokens == rebuilt.num_tokens == 5 * 3 * N
    assert all(
        torch.equal(a.keys_TGd, b.keys_TGd) for a, b in zip(window.layers, rebuilt.layers, strict=True)
    )


def test_rebuilt_window_of_an_empty_stream_is_new(tiny_model: VideoLLM) -> None:
    system = prefill_system(tiny_model)
    rebuilt = StreamWindow.rebuild(system, InMemoryVideo(tiny_model.geometry), method_of(9))
    assert rebuilt.num_tokens == 0
    assert all(kv.num_tokens == 0 for kv in rebuilt.layers)


def test_error_leaves_the_window_as_it_was(tiny_model: VideoLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last step fails; the segment can be tried again and gives what it would have given."""
    method, segments = method_of(30, CompressConfig(keep_ratio=0.5)), segments_of([3, 3])
    window, _ = run(tiny_model, method, segments[:1])
    with monkeypatch.context() as patch:
        patch.setattr(type(tiny_model), "guidance_embeds", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prefill_segment(tiny_model, window, segments[1], method)
    again = prefill_segment(tiny_model, window, segments[1], method)
    _, (_, expected) = run(tiny_model, method, segments)
    assert_same_stream([again], [expected])


def test_blocks_are_copies(tiny_model: VideoLLM) -> None:
    """A kept frame must not hold the memory of those that were dropped."""
    compress = CompressConfig(keep_ratio=0.3)
    _, (kv,) = run(tiny_model, method_of(0, compress), segments_of([8]))
    for blocks in kv.layers:
        for tensor in (blocks.keys_bNGd, blocks.values_bNGd):
            assert tensor.untyped_storage().nbytes() == tensor.nbytes


def test_segment_fields_travel_along(tiny_model: VideoLLM) -> None:
    segment = dataclasses.replace(segments_of([3, 2])[1], num_source_frames=9, resume_s=10.0)
    _, (kv,) = run(tiny_model, method_of(), [segment])
    assert (kv.segment_no, kv.start_s, kv.end_s, kv.num_frames) == (1, 6.0, 10.0, 2)
    assert (kv.num_source_frames, kv.resume_s, kv.similarities) == (9, 10.0, segment.similarities)
