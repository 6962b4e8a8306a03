"""`Engine`: a model and a method; takes in one segment, answers one question. Knows no Ray and no file.

An answer's cache, in each layer (positions are rows, so no position is ever stored):

    0 .. S-1 system prompt | b blocks of N tokens, consecutive | T tokens of the prompt | the answer
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from streamkv.attention import KV, attend_with_weights, grouped_queries, grouped_query
from streamkv.compression import make_compressor
from streamkv.confidence import NOT_SHOWN, Signs, confidence
from streamkv.config import MethodConfig, RetrieveConfig
from streamkv.conversation import Turn
from streamkv.errors import ForeignStoreError, QuestionError, StoreError
from streamkv.excerpt import Span, between
from streamkv.memory import VideoMemory, find_segment
from streamkv.models.base import QuestionPrompt, VideoLLM
from streamkv.prefill import StreamWindow, prefill_segment, prefill_system
from streamkv.retrieval import BlockChoice, Candidates, Query, Retriever, TopK, make_retriever
from streamkv.retrieval.agreement import mean_scores, standing_out
from streamkv.segmentation import Segmenter
from streamkv.types import Answer, Evidence, LayerBlocks, Segment, SegmentKV

NUM_EVIDENCE = 5
MAX_GUIDANCE = 64
"""Guidance prompts whose tokens are kept, the latest used: streams may have their own."""

OnToken = Callable[[str], None]
"""Takes each new piece of the answer's text; the pieces together are `Answer.text`."""


def check_question(text: str, max_chars: int) -> str:
    """The question without surrounding space; QuestionError if nothing is left or it is too long."""
    question = text.strip()
    if not question:
        raise QuestionError("question: got no text; ask something about the stream")
    if len(question) > max_chars:
        raise QuestionError(f"question: got {len(question)} characters, allowed {max_chars}; shorten it")
    return question


class LayerCache:
    """Rotated keys and values (T, G, d) of one layer, with room to grow."""

    def __init__(self, capacity: int, like: KV) -> None:
        self._keys_CGd = like.keys_TGd.new_empty((capacity, *like.keys_TGd.shape[1:]))
        self._values_CGd = like.values_TGd.new_empty((capacity, *like.values_TGd.shape[1:]))
        self.num_tokens = 0

    @property
    def keys(self) -> Tensor:
        return self._keys_CGd[: self.num_tokens]

    @property
    def values(self) -> Tensor:
        return self._values_CGd[: self.num_tokens]

    def append(self, rotated_keys_TGd: Tensor, values_TGd: Tensor) -> None:
        """The next tokens; there must be room."""
        stop = self.num_tokens + values_TGd.shape[0]
        assert stop <= self._keys_CGd.shape[0], (stop, self._keys_CGd.shape)
        self._keys_CGd[self.num_tokens : stop] = rotated_keys_TGd
        self._values_CGd[self.num_tokens : stop] = values_TGd
        self.num_tokens = stop


@dataclass(frozen=True)
class LayerReading:
    """One layer after the question's prompt."""

    input_TD: Tensor  # what the layer was given
    cache: LayerCache
    choice: BlockChoice
    block_mass_b: Tensor  # (b,) the last prompt token's attention on each block, mean over heads


@dataclass(frozen=True)
class Reading:
    """A question read together with the video: ready to be answered, once."""

    layers: tuple[LayerReading, ...]
    logits: Tensor  # (vocabulary,) for the answer's first token
    candidates: tuple[Candidates, ...]  # of the first run, one a layer
    num_segments: int  # that were searched

    @property
    def signs(self) -> Signs:
        """What is known of the answer's chances."""
        first_token = float(self.logits.float().softmax(dim=-1).max())
        return Signs(standing_out(self.candidates), first_token, self.num_segments)

    @property
    def num_prompt_tokens(self) -> int:
        """Of what follows the video."""
        return self.layers[0].input_TD.shape[0]


class Engine:
    """Keeps nothing between calls but the system prompt: windows and memories belong to the caller."""

    def __init__(self, model: VideoLLM, method: MethodConfig) -> None:
        self.model = model
        self.method = method
        self.retriever = make_retriever(method, model.geometry)
        self.finder = TopK(_for_finding(method), model.geometry)
        make_compressor(method.compress)  # an unknown name fails here, not at the first segment
        Segmenter(method.segment)
        self.system = prefill_system(model)
        self._guidance_embeds = lru_cache(MAX_GUIDANCE)(model.guidance_embeds)

    def open_window(self, memory: VideoMemory | None = None) -> StreamWindow:
        """The window of a new stream or, after a restart, of the one that `memory` holds."""
        if memory is None:
            return StreamWindow(self.system, self.method.n_local)
        return StreamWindow.rebuild(self.system, memory, self.method)

    def prefill(
        self, window: StreamWindow, segment: Segment, guidance: str = "", keep_ratio: float = 0.0
    ) -> SegmentKV:
        """The segment's blocks; moves the window on.

        `guidance`, `keep_ratio`: the stream's own; empty, and 0: the method's.
        """
        method = self.method
        if keep_ratio:
            method = replace(method, compress=replace(method.compress, keep_ratio=keep_ratio))
        guidance_TD = self._guidance_embeds(guidance or method.compress.guidance)
        return prefill_segment(self.model, window, segment, method, guidance_TD=guidance_TD)

    @torch.inference_mode()
    def answer(
        self,
        memory: VideoMemory,
        question: str,
        *,
        span: Span | None = None,
        earlier: Sequence[Turn] = (),
        max_new_tokens: int = 128,
        min_confidence: float = 0.0,
        on_token: OnToken | None = None,
    ) -> Answer:
        """Answers greedily from what `memory` holds. An error of `on_token` ends the answer and is raised.

        An answer whose confidence is below `min_confidence` is `NOT_SHOWN`.

        `earlier` turns are read with the question; what is looked for in `memory` are the question's words, and only
        in segments that overlap `span`. QuestionError when none does.
        """
        watch = _Stopwatch()
        reading = self.read(
            memory, question, span=span, earlier=earlier, max_new_tokens=max_new_tokens, watch=watch
        )
        sure = confidence(self.method.confidence, reading.signs) if self.method.confidence else None
        text = _TextStream(self.model, on_token)
        if sure is not None and sure < min_confidence:
            text.say(NOT_SHOWN)
        else:
            self._generate(reading, max_new_tokens, text, watch)
        return Answer(
            text=text.finish(),
            confidence=sure,
            evidence=find_evidence(reading, memory),
            as_of_s=memory.as_of_s,
            num_tokens=len(text.token_ids),
            num_prompt_tokens=self.system[0].num_tokens + reading.num_prompt_tokens,
            timings_ms=watch.finish(),
            blocks_per_layer=tuple(layer.choice.num_blocks for layer in reading.layers),
        )

    @torch.inference_mode()
    def read(
        self,
        memory: VideoMemory,
        question: str,
        *,
        span: Span | None = None,
        earlier: Sequence[Turn] = (),
        max_new_tokens: int = 128,
        watch: _Stopwatch | None = None,
    ) -> Reading:
        """Runs the question's prompt over the blocks that it finds: twice if counts adapt, else once.

        The second run takes its blocks from the first run's scores. It starts at the first layer whose blocks
        changed: below it both runs are the same.
        """
        question = check_question(question, max_chars=len(question))
        self._check_memory(memory)
        if span is not None:
            memory = between(memory, span)
        prompt = self.model.question_prompt(question, earlier)
        run = _PromptRun(self, self.retriever, memory, prompt, max_new_tokens, watch or _Stopwatch())
        run.search()
        if self.retriever.is_adaptive:
            run.adapt()
        return run.finish()

    @torch.inference_mode()
    def find(self, memory: VideoMemory, question: str, finder: Retriever | None = None) -> dict[int, float]:
        """Segments that the question finds, with their scores: how far they stand out, mean over layers.

        Whatever the policy of answers, each layer looks by `topk` among all of `memory`; what it reads there shapes
        the queries of later layers, and that finds far more than the bare question does (`bench.search` measures both).
        `finder`: another retriever than that.
        """
        question = check_question(question, max_chars=len(question))
        self._check_memory(memory)
        prompt = self.model.question_prompt(question, ())
        run = _PromptRun(self, finder or self.finder, memory, prompt, 0, _Stopwatch())
        run.search()
        return mean_scores(run.candidates)

    def _check_memory(self, memory: VideoMemory) -> None:
        if not memory.segments:
            raise StoreError(
                "nothing of this stream is committed yet, so there is no video to answer from; "
                "wait until its first segment is closed, then ask again"
            )
        if memory.geometry != self.model.geometry:
            raise ForeignStoreError(
                f"the stream was stored with {memory.geometry}, the model has {self.model.geometry}; "
                "answer with the model that stored it"
            )

    def _generate(self, reading: Reading, max_new_tokens: int, text: _TextStream, watch: _Stopwatch) -> None:
        logits = reading.logits
        for step in range(max_new_tokens):
            token_id = int(logits.argmax())
            if step == 0:
                watch.mark("first_token")
            if token_id in self.model.eos_token_ids:
                return
            text.add(token_id)
            if step + 1 < max_new_tokens:
                logits = self._next_logits(reading, token_id)

    def _next_logits(self, reading: Reading, token_id: int) -> Tensor:
        """(vocabulary,) after one more token of the answer."""
        hidden_TD = self.model.embed_tokens([token_id])
        for layer, state in enumerate(reading.layers):
            q, k, v = self.model.qkv(layer, hidden_TD)
            attended, _ = self.attend_next(state.cache, q, k, v)
            hidden_TD = self.model.finish_layer(layer, hidden_TD, attended)
        return self.model.logits(hidden_TD)[-1]

    def attend_next(
        self, cache: LayerCache, q_THd: Tensor, k_TGd: Tensor, v_TGd: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The cache's next T tokens: (T, H, d), and the last one's weights (H, tokens)."""
        positions = torch.arange(cache.num_tokens, cache.num_tokens + q_THd.shape[0], device=q_THd.device)
        cache.append(self.model.rope(k_TGd, positions), v_TGd)
        return attend_with_weights(self.model.rope(q_THd, positions), cache.keys, cache.values)


def _for_finding(method: MethodConfig) -> MethodConfig:
    """Latest blocks are those of one stream among many; and scoring every block would open every file."""
    candidates = method.retrieve.candidate_segments or RetrieveConfig.candidate_segments
    return replace(method, retrieve=replace(method.retrieve, recent_blocks=0, candidate_segments=candidates))


class _PromptRun:
    """The question's prompt on its way through the layers; holds what the runs share."""

    def __init__(
        self,
        engine: Engine,
        retriever: Retriever,
        memory: VideoMemory,
        prompt: QuestionPrompt,
        room: int,
        watch: _Stopwatch,
    ) -> None:
        self._engine, self._retriever, self._memory, self._prompt = engine, retriever, memory, prompt
        self._room, self._watch = room, watch
        self._queries: list[Query] = []  # of each layer
        self.candidates: list[Candidates] = []
        self._layers: list[LayerReading] = []
        self._hidden_TD = prompt.embeds_TD
        watch.lap("query")

    def search(self) -> None:
        """All layers, each choosing by its own query; where counts adapt, the last layer only searches."""
        adapts, last = self._retriever.is_adaptive, self._engine.model.num_layers - 1
        for layer in range(last if adapts else last + 1):
            self._run_layer(layer, self._search_layer, "query" if adapts else "prefill")
        if adapts:
            q_THd, _, _ = self._engine.model.qkv(last, self._hidden_TD)
            self._watch.lap("query")
            self._search_layer(last, q_THd)
            self._watch.lap("search")

    def adapt(self) -> None:
        """Again from the first layer whose count, and so whose choice, the scores of all layers change."""
        retriever = self._retriever
        candidates = retriever.reconsider(self._memory, self._queries, self.candidates)
        counts = retriever.allocate(candidates)
        choices = [retriever.choose(c, n) for c, n in zip(candidates, counts, strict=True)]
        self._watch.lap("search")
        same = [new.same_as(old.choice) for new, old in zip(choices[:-1], self._layers, strict=True)]
        first = next((layer for layer, unchanged in enumerate(same) if not unchanged), len(same))
        if first < len(self._layers):
            self._hidden_TD = self._layers[first].input_TD
            del self._layers[first:]
        for layer in range(first, len(choices)):
            self._run_layer(layer, lambda layer, _: choices[layer], "prefill")

    def finish(self) -> Reading:
        logits = self._engine.model.logits(self._hidden_TD[-1:])[-1]
        self._watch.lap("prefill")
        return Reading(tuple(self._layers), logits, tuple(self.candidates), len(self._memory.segments))

    def _search_layer(self, layer: int, q_THd: Tensor) -> BlockChoice:
        retriever, num_kv_heads = self._retriever, self._engine.model.geometry.num_kv_heads
        similarity = retriever.method.retrieve.similarity
        asked_THd = q_THd[self._prompt.question]
        query = Query(
            grouped_query(asked_THd, num_kv_heads, similarity), grouped_queries(asked_THd, num_kv_heads)
        )
        self._queries.append(query)
        self.candidates.append(retriever.look(self._memory, layer, query))
        return retriever.choose(self.candidates[-1])

    def _run_layer(self, layer: int, choose: Callable[[int, Tensor], BlockChoice], phase: str) -> None:
        model, hidden_TD = self._engine.model, self._hidden_TD
        q, k, v = model.qkv(layer, hidden_TD)
        self._watch.lap(phase)
        choice = choose(layer, q)
        self._watch.lap("search")
        blocks = self._memory.gather(layer, choice.segment_nos, choice.slots)
        cache = self._open_cache(layer, blocks)
        self._watch.lap("fetch")
        num_before = cache.num_tokens
        attended, weights_HS = self._engine.attend_next(cache, q, k, v)
        start = self._engine.system[layer].num_tokens
        mass_b = (
            weights_HS.mean(dim=0)[start:num_before]
            .view(choice.num_blocks, model.geometry.frame_tokens)
            .sum(dim=1)
        )
        self._layers.append(LayerReading(hidden_TD, cache, choice, mass_b))
        self._hidden_TD = model.finish_layer(layer, hidden_TD, attended)
        self._watch.lap(phase)

    def _open_cache(self, layer: int, blocks: LayerBlocks) -> LayerCache:
        """System prompt and blocks, rotated to consecutive positions; room for the prompt and the answer."""
        system, model = self._engine.system[layer], self._engine.model
        stored = KV(
            blocks.keys_bNGd.flatten(0, 1).to(system.keys_TGd),
            blocks.values_bNGd.flatten(0, 1).to(system.values_TGd),
        )
        num_tokens = system.num_tokens + stored.num_tokens
        cache = LayerCache(num_tokens + self._prompt.embeds_TD.shape[0] + self._room, like=system)
        positions = torch.arange(num_tokens, device=system.keys_TGd.device)
        for part, at in ((system, positions[: system.num_tokens]), (stored, positions[system.num_tokens :])):
            cache.append(model.rope(part.keys_TGd, at), part.values_TGd)
        return cache


def find_evidence(reading: Reading, memory: VideoMemory, count: int = NUM_EVIDENCE) -> tuple[Evidence, ...]:
    """The segments with the largest shares of the last prompt token's attention on video, heaviest first.

    A layer's shares sum to 1; weights are their mean over layers.
    """
    weights: dict[int, float] = {}
    num_layers: dict[int, int] = {}
    for layer in reading.layers:
        mass = layer.block_mass_b.double().cpu().numpy()
        total = mass.sum()
        for segment_no in np.unique(layer.choice.segment_nos).tolist():
            share = mass[layer.choice.segment_nos == segment_no].sum() / total if total > 0 else 0.0
            weights[segment_no] = weights.get(segment_no, 0.0) + float(share) / len(reading.layers)
            num_layers[segment_no] = num_layers.get(segment_no, 0) + 1
    heaviest = sorted(weights, key=lambda no: (-weights[no], no))[:count]
    found = ((no, find_segment(memory, no)) for no in heaviest)
    return tuple(Evidence(no, s.start_s, s.end_s, weights[no], num_layers[no]) for no, s in found)


class _TextStream:
    """Tokens to pieces of text that are only handed on when later tokens cannot change them."""

    def __init__(self, model: VideoLLM, on_token: OnToken | None) -> None:
        self._model, self._on_token = model, on_token
        self.token_ids: list[int] = []
        self._said = ""
        self._sent = ""

    def say(self, words: str) -> None:
        """In place of tokens."""
        self._said = words

    def add(self, token_id: int) -> None:
        self.token_ids.append(token_id)
        if self._on_token is not None:
            text = self._text()
            if not text.endswith("\N{REPLACEMENT CHARACTER}"):  # half of a character
                self._send(text)

    def finish(self) -> str:
        """The whole text; sends what was held back."""
        text = self._text()
        self._send(text)
        return text

    def _text(self) -> str:
        return self._said or self._model.decode(self.token_ids).strip()

    def _send(self, text: str) -> None:
        if self._on_token is not None and len(text) > len(self._sent) and text.startswith(self._sent):
            self._on_token(text[len(self._sent) :])
            self._sent = text


class _Stopwatch:
    """Milliseconds by phase: laps add up, marks are taken from the start."""

    def __init__(self) -> None:
        self._start = self._last = time.perf_counter()
        self._ms = dict.fromkeys(("query", "search", "fetch", "prefill", "first_token", "total"), 0.0)

    def lap(self, phase: str) -> None:
        now = time.perf_counter()
        self._ms[phase] += (now - self._last) * 1000
        self._last = now

    def mark(self, name: str) -> None:
        self._ms[name] = (time.perf_counter() - self._start) * 1000

    def finish(self) -> dict[str, float]:
        self.mark("total")
        return self._ms
