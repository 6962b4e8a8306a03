"""The engine against transformers where everything is kept, and against fresh forwards where it is not."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reference import generate_with_transformers
from tiny import FRAME_TOKENS, random_frames, random_segment_kv, write_tiny_checkpoint

from streamkv.attention import attend
from streamkv.config import (
    BudgetConfig,
    CompressConfig,
    MethodConfig,
    ModelConfig,
    RetrieveConfig,
    SegmentConfig,
    load_config,
    preset_names,
)
from streamkv.engine import Engine
from streamkv.errors import ConfigError, ForeignStoreError, QuestionError, StoreError
from streamkv.memory import InMemoryVideo
from streamkv.models import VideoLLM, load_model
from streamkv.question import check_question
from streamkv.reading import find_evidence
from streamkv.segmentation import Segmenter
from streamkv.types import Geometry, LayerBlocks

N = FRAME_TOKENS
FIVE_BLOCKS = ("method.retrieve.blocks_per_layer=5", "method.retrieve.recent_blocks=1")
QUESTION = "what is the colour of the bus"


def preset(name: str, *overrides: str) -> MethodConfig:
    """As shipped, without what suits the demo model."""
    return load_config(overrides=[f"preset={name}", "model.path=other", *overrides]).method


def ingest(engine: Engine, frames: list[np.ndarray], *, together: bool = True, **own: Any) -> InMemoryVideo:
    """Encode, segment and prefill; 2 seconds a frame."""
    memory, window = InMemoryVideo(engine.model.geometry), engine.open_window()
    segmenter = Segmenter(engine.method.segment)
    features = (
        engine.model.encode_frames(frames)
        if together
        else [engine.model.encode_frames([f])[0] for f in frames]
    )
    closed = [segmenter.push(f, 2.0 * t, 2.0 * (t + 1)) for t, f in enumerate(features)]
    for segment in [*closed, segmenter.flush()]:
        if segment is not None:
            memory.add(engine.prefill(window, segment, **own))
    return memory


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("max_frames", [3, 16], ids=["three segments", "one segment"])
def test_full_preset_equals_transformers_generate(seed: int, max_frames: int, tmp_path: Path) -> None:
    """frames -> Segmenter -> prefill -> memory -> answer  ==  model.generate(pixel_values_videos)."""
    folder = write_tiny_checkpoint(tmp_path, seed=seed)
    model, frames = load_model(ModelConfig(path=str(folder))), random_frames(7, seed=seed)
    engine = Engine(model, preset("full", f"method.segment.max_frames={max_frames}"))
    memory = ingest(engine, frames)
    expected = generate_with_transformers(folder, model, frames, QUESTION, max_new_tokens=10)
    torch.testing.assert_close(engine.read(memory, QUESTION).logits, expected.logits, atol=1e-4, rtol=0)
    answer = engine.answer(memory, QUESTION, max_new_tokens=10)
    words = [t for t in expected.token_ids if t not in model.eos_token_ids]
    assert answer.text == model.decode(words).strip()
    assert answer.num_tokens == len(words)
    assert answer.blocks_per_layer == (7, 7, 7)


EVERYTHING = (  # compression and retrieval that leave nothing out
    "method.compress.keep_ratio=1",
    "method.compress.summary=false",
    "method.retrieve.blocks_per_layer=1000",
)


@pytest.mark.parametrize("name", ["streamkv", "streamkv-paper", "streamkv-code"])
@pytest.mark.parametrize(("num_frames", "max_seconds"), [(1, 0), (9, 0), (9, 4)])
def test_with_budget_for_everything_the_method_equals_full(
    name: str, num_frames: int, max_seconds: int, tiny_model: VideoLLM
) -> None:
    """However the stream is cut into segments, and by whatever path its blocks are found."""
    ours = Engine(tiny_model, preset(name, *EVERYTHING, f"method.segment.max_seconds={max_seconds}"))
    full, frames = Engine(tiny_model, preset("full")), random_frames(num_frames)
    memory = ingest(ours, frames)
    assert len(memory.segments) >= (4 if max_seconds else 1)
    got, expected = ours.read(memory, QUESTION), full.read(ingest(full, frames), QUESTION)
    torch.testing.assert_close(got.logits, expected.logits, atol=1e-4, rtol=0)
    assert [layer.choice.num_blocks for layer in got.layers] == [num_frames] * 3


def kept_frames(memory: InMemoryVideo) -> list[tuple[int, ...]]:
    return [blocks.frame_ids for segment in memory._by_no.values() for blocks in segment.layers]


def test_a_streams_own_guidance_chooses_its_frames(tiny_model: VideoLLM) -> None:
    """As if it were the method's, whichever streams the engine prefills besides."""
    method, frames = preset("streamkv", "method.segment.max_seconds=16"), random_frames(16)
    engine, kept = Engine(tiny_model, method), {}
    for guidance in ("", "red bus dog", "where", "red bus dog"):
        kept[guidance] = kept_frames(ingest(engine, frames, guidance=guidance))
    assert len({str(frames) for frames in kept.values()}) == 3
    for guidance in ("red bus dog", "where"):
        alone = dataclasses.replace(method, compress=dataclasses.replace(method.compress, guidance=guidance))
        assert kept[guidance] == kept_frames(ingest(Engine(tiny_model, alone), frames))
    assert kept[""] == kept_frames(ingest(Engine(tiny_model, method), frames))


def test_a_streams_own_share_is_kept(tiny_model: VideoLLM) -> None:
    """As by an engine whose method has that share."""
    engine = Engine(tiny_model, preset("streamkv", "method.segment.max_seconds=16"))
    frames = random_frames(16)
    for share in (0.1, 1.0):
        compress = dataclasses.replace(engine.method.compress, keep_ratio=share)
        alone = Engine(tiny_model, dataclasses.replace(engine.method, compress=compress))
        own = kept_frames(ingest(engine, frames, keep_ratio=share))
        assert own == kept_frames(ingest(alone, frames))
        assert own != kept_frames(ingest(engine, frames))


def test_a_guidance_prompt_is_tokenized_once(tiny_model: VideoLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    original, seen = type(tiny_model).guidance_embeds, list[str]()

    def count(self: VideoLLM, text: str) -> torch.Tensor:
        seen.append(text)
        return original(self, text)

    monkeypatch.setattr(type(tiny_model), "guidance_embeds", count)
    engine = Engine(tiny_model, preset("streamkv", "method.segment.max_seconds=16"))
    for guidance in ("dog", "bus", "dog"):
        ingest(engine, random_frames(16), guidance=guidance)
    assert seen == ["dog", "bus"]


def test_answer_stops_at_the_end_token(tiny_model: VideoLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(tiny_model, preset("full"))
    memory = ingest(engine, random_frames(3))
    whole = engine.answer(memory, QUESTION, max_new_tokens=6)
    first = int(engine.read(memory, QUESTION).logits.argmax())
    monkeypatch.setattr(tiny_model, "eos_token_ids", frozenset({first}))
    ended = engine.answer(memory, QUESTION, max_new_tokens=6)
    assert (ended.text, ended.num_tokens) == ("", 0)
    assert whole.num_tokens > 0


def test_positions_given_at_retrieval_equal_a_fresh_forward(one_layer_model: VideoLLM) -> None:
    """With one layer keys and values do not depend on what came before, so a forward over just
    [system | the retrieved frames | question] must give the same logits."""
    method = MethodConfig(
        segment=SegmentConfig(policy="uniform", min_frames=1, max_frames=3),
        compress=CompressConfig(policy="none", summary=False),
        retrieve=RetrieveConfig(
            blocks_per_layer=4, recent_blocks=1, candidate_segments=0, budget=BudgetConfig("uniform")
        ),
    )
    engine, frames = Engine(one_layer_model, method), random_frames(9)
    reading = engine.read(ingest(engine, frames), QUESTION)
    choice = reading.layers[0].choice
    chosen = [
        3 * no + slot for no, slot in zip(choice.segment_nos.tolist(), choice.slots.tolist(), strict=True)
    ]
    assert len(chosen) == 4
    assert chosen != [5, 6, 7, 8]  # else nothing was skipped

    video = one_layer_model.encode_frames([frames[i] for i in chosen]).flatten(0, 1)
    prompt = one_layer_model.question_prompt(QUESTION).embeds_TD
    hidden = torch.cat((one_layer_model.system_embeds(), video, prompt))
    positions = torch.arange(len(hidden))
    q, k, v = one_layer_model.qkv(0, hidden)
    attended = attend(one_layer_model.rope(q, positions), one_layer_model.rope(k, positions), v)
    logits = one_layer_model.logits(one_layer_model.finish_layer(0, hidden, attended))[-1]
    torch.testing.assert_close(reading.logits, logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", preset_names())
@pytest.mark.parametrize("num_frames", [1, 2, 23])
def test_every_preset_answers(name: str, num_frames: int, tiny_model: VideoLLM) -> None:
    engine = Engine(tiny_model, preset(name))
    memory = ingest(engine, random_frames(num_frames))
    pieces: list[str] = []
    answer = engine.answer(memory, QUESTION, max_new_tokens=5, on_token=pieces.append)
    assert "".join(pieces) == answer.text
    assert answer.as_of_s == 2.0 * num_frames
    assert len(answer.blocks_per_layer) == 3
    assert all(count >= 1 for count in answer.blocks_per_layer)
    assert sum(e.weight for e in answer.evidence) == pytest.approx(1.0) or len(answer.evidence) == 5
    assert set(answer.timings_ms) == {"query", "search", "fetch", "prefill", "first_token", "total"}
    assert 0 < answer.timings_ms["first_token"] <= answer.timings_ms["total"]


@pytest.mark.parametrize("name", ["full", "streamkv"])
def test_frame_by_frame_equals_at_once(name: str, tiny_model: VideoLLM) -> None:
    engine, frames = Engine(tiny_model, preset(name)), random_frames(9)
    together, alone = ingest(engine, frames), ingest(engine, frames, together=False)
    ours, theirs = engine.read(alone, QUESTION), engine.read(together, QUESTION)
    torch.testing.assert_close(ours.logits, theirs.logits, atol=1e-4, rtol=1e-4)
    assert engine.answer(alone, QUESTION).text == engine.answer(together, QUESTION).text


def test_same_question_gives_the_same_answer(tiny_model: VideoLLM) -> None:
    """Reading changes neither the memory nor the system prompt's cache."""
    engine = Engine(tiny_model, preset("streamkv"))
    memory = ingest(engine, random_frames(9))
    first = engine.read(memory, QUESTION).logits
    engine.answer(memory, "where is the dog")
    assert torch.equal(engine.read(memory, QUESTION).logits, first)


def test_window_reopens_from_memory(tiny_model: VideoLLM) -> None:
    engine, frames = Engine(tiny_model, preset("rekv", "method.segment.max_frames=2")), random_frames(6)
    whole = ingest(engine, frames)
    memory = ingest(engine, frames[:4])
    segmenter = Segmenter(engine.method.segment, segment_no=2)
    for t, features in enumerate(engine.model.encode_frames(frames[4:]), start=4):
        if segment := segmenter.push(features, 2.0 * t, 2.0 * (t + 1)):
            memory.add(engine.prefill(engine.open_window(memory), segment))
    torch.testing.assert_close(engine.read(memory, QUESTION).logits, engine.read(whole, QUESTION).logits)


def test_evidence_is_the_share_of_attention_on_video(tiny_model: VideoLLM) -> None:
    engine = Engine(tiny_model, preset("rekv", "method.segment.max_frames=2", *FIVE_BLOCKS))
    memory = ingest(engine, random_frames(16))
    reading = engine.read(memory, QUESTION)
    evidence = find_evidence(reading, memory, count=99)
    assert sum(e.weight for e in evidence) == pytest.approx(1.0)
    assert [e.weight for e in evidence] == sorted((e.weight for e in evidence), reverse=True)
    for e in evidence:
        shares = [
            float(
                s.block_mass_b[torch.from_numpy(s.choice.segment_nos == e.segment_no)].sum()
                / s.block_mass_b.sum()
            )
            for s in reading.layers
        ]
        assert e.weight == pytest.approx(sum(shares) / 3)
        assert e.layers == sum(e.segment_no in s.choice.segment_nos for s in reading.layers)
        assert (e.start_s, e.end_s) == (4.0 * e.segment_no, 4.0 * e.segment_no + 4)
    assert find_evidence(reading, memory) == evidence[:5]


def test_evidence_names_the_segment_whose_keys_fit(one_layer_model: VideoLLM) -> None:
    """A block whose keys are the last token's own query, many times over, takes the attention."""
    engine, geometry = Engine(one_layer_model, preset("full")), one_layer_model.geometry
    memory = InMemoryVideo(geometry, [random_segment_kv(geometry, no, num_frames=1) for no in range(8)])
    q, _, _ = one_layer_model.qkv(0, one_layer_model.question_prompt(QUESTION).embeds_TD)
    num_system = engine.system[0].num_tokens
    distance = torch.tensor([num_system + 8 * N + len(q) - 1 - (num_system + 3 * N)])
    turned = (
        one_layer_model.rope(q[-1:], distance).view(2, 3, -1).mean(1)
    )  # seen from the block's first token
    memory._by_no[3].layers[0].keys_bNGd[0, 0] = 50 * turned
    (top, *_) = engine.answer(memory, QUESTION, max_new_tokens=1).evidence
    assert top.segment_no == 3
    assert top.weight > 0.5


def test_half_precision_blocks_answer_a_float32_model(tiny_model: VideoLLM) -> None:
    """A store may keep fp16: what is lost is that rounding and nothing more, all sums are float32."""
    engine = Engine(tiny_model, preset("full"))
    half, rounded = InMemoryVideo(tiny_model.geometry), InMemoryVideo(tiny_model.geometry)
    for segment in ingest(engine, random_frames(4))._by_no.values():
        keys_and_values = [(b.keys_bNGd.half(), b.values_bNGd.half()) for b in segment.layers]
        for memory, convert in ((half, torch.Tensor.half), (rounded, torch.Tensor.float)):
            layers = tuple(
                LayerBlocks(convert(k), convert(v), b.frame_ids, b.spans_s)
                for (k, v), b in zip(keys_and_values, segment.layers, strict=True)
            )
            memory.add(dataclasses.replace(segment, layers=layers))
    assert half.gather(0, np.array([0]), np.array([0])).keys_bNGd.dtype == torch.float16
    assert torch.equal(engine.read(half, QUESTION).logits, engine.read(rounded, QUESTION).logits)


def test_bfloat16_model_runs_every_stage(tiny_folder: Path) -> None:
    model = load_model(ModelConfig(path=str(tiny_folder), dtype="bfloat16"))
    engine = Engine(model, preset("streamkv", "method.n_local=40"))
    memory = ingest(engine, random_frames(12))
    assert memory.gather(0, np.array([0]), np.array([0])).keys_bNGd.dtype == torch.bfloat16
    assert engine.answer(memory, QUESTION, max_new_tokens=3).num_tokens > 0


def test_pieces_wait_for_whole_characters(tiny_model: VideoLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte-level tokenizer may end a token within a character; space at the end is stripped at last."""
    texts = {0: "", 1: " a", 2: " a \ufffd", 3: " a é ", 4: " a é b"}
    monkeypatch.setattr(type(tiny_model), "decode", lambda self, ids: texts[len(ids)])
    engine, pieces = Engine(tiny_model, preset("full")), list[str]()
    answer = engine.answer(
        ingest(engine, random_frames(2)), QUESTION, max_new_tokens=4, on_token=pieces.append
    )
    assert answer.text == "a é b"
    assert pieces == ["a", " é", " b"]


def test_error_of_on_token_ends_the_answer(tiny_model: VideoLLM) -> None:
    engine = Engine(tiny_model, preset("full"))
    memory = ingest(engine, random_frames(2))

    def hang_up(piece: str) -> None:
        raise ConnectionResetError(piece)

    with pytest.raises(ConnectionResetError):
        engine.answer(memory, QUESTION, on_token=hang_up)


def test_empty_memory_says_what_to_do(tiny_model: VideoLLM) -> None:
    engine = Engine(tiny_model, preset("streamkv"))
    with pytest.raises(StoreError, match=r"nothing of this stream is committed yet.*wait until"):
        engine.answer(InMemoryVideo(tiny_model.geometry), QUESTION)


def test_memory_of_another_shape_is_refused(tiny_model: VideoLLM) -> None:
    other = Geometry(num_layers=2, num_heads=6, num_kv_heads=2, head_dim=8, hidden_dim=48, frame_tokens=9)
    memory = InMemoryVideo(other, [random_segment_kv(other, 0)])
    with pytest.raises(ForeignStoreError, match=r"num_layers=2.*num_layers=3"):
        Engine(tiny_model, preset("streamkv")).answer(memory, QUESTION)


@pytest.mark.parametrize("question", ["", "   ", "\n\t"])
def test_empty_question_is_refused(question: str, tiny_model: VideoLLM) -> None:
    engine = Engine(tiny_model, preset("full"))
    memory = ingest(engine, random_frames(1))
    with pytest.raises(QuestionError, match="got no text"):
        engine.answer(memory, question)


def test_check_question() -> None:
    assert check_question("  when? ", 5) == "when?"
    with pytest.raises(QuestionError, match="half of a character at 4"):
        check_question("why \ud83d?", 99)
    with pytest.raises(QuestionError, match="got 6 characters, allowed 5"):
        check_question("where?", 5)


@pytest.mark.parametrize("key", ["segment", "compress", "retrieve", "compress.budget", "retrieve.budget"])
def test_unknown_policies_fail_when_the_engine_is_built(key: str, tiny_model: VideoLLM) -> None:
    with pytest.raises(ConfigError, match=r"policy: unknown 'magic'; known: "):
        Engine(tiny_model, preset("streamkv", f"method.{key}.policy=magic"))
