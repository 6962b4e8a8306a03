"""Questions' prompts on their way through the layers: searching, and reading what was found.

Several go together. A layer's linear work is done once for the tokens of all of them, packed one question after the
other; those of one memory share its searches, tables and blocks; each attends by itself. What is multiplied together
differs from what is multiplied alone in the last bits.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from streamkv.attention import KV, grouped_queries, grouped_query
from streamkv.layer_cache import LayerCache, attend_next, consecutive
from streamkv.memory import VideoMemory
from streamkv.models.base import QuestionPrompt, VideoLLM
from streamkv.prefill import SystemKV, tokens_of
from streamkv.reading import LayerReading, Reading
from streamkv.retrieval import BlockChoice, Candidates, Looks, Query, Retriever
from streamkv.retrieval.agreement import Agreement
from streamkv.retrieval.topk import union_of
from streamkv.stopwatch import Stopwatch

T = TypeVar("T")
NOTHING = BlockChoice(np.empty(0, np.int64), np.empty(0, np.int64))


@dataclass(eq=False)
class Prompt:
    """One question's, and how far it has come. What fails has its error, and goes no further."""

    memory: VideoMemory  # the part that is searched
    words: QuestionPrompt
    room: int  # tokens of the answer
    hidden_TD: Tensor
    queries: list[Query] = field(default_factory=list)  # of each layer
    candidates: list[Candidates] = field(default_factory=list)  # of each layer that has looked by itself
    agreed: np.ndarray = field(default_factory=lambda: NOTHING.segment_nos)  # segments, from `agrees_at` on
    layers: list[LayerReading] = field(default_factory=list)
    error: Exception | None = None

    @classmethod
    def of(cls, memory: VideoMemory, words: QuestionPrompt, room: int) -> Prompt:
        return cls(memory, words, room, words.embeds_TD)

    @property
    def num_tokens(self) -> int:
        return self.words.embeds_TD.shape[0]

    def rewind(self, layer: int) -> None:
        """To before that layer, which has been run or is the next."""
        if layer < len(self.layers):
            self.hidden_TD = self.layers[layer].input_TD
            del self.layers[layer:]


Choose = Callable[[int, Sequence[Prompt], Tensor], dict[Prompt, BlockChoice]]
"""(layer; prompts; their packed queries) to what each reads; whatever it leaves out has its error."""


class PromptRun:
    """Runs prompts over what they find: twice if counts adapt, else once."""

    def __init__(
        self,
        model: VideoLLM,
        rotated_system: SystemKV,
        retriever: Retriever,
        prompts: Sequence[Prompt],
        watch: Stopwatch,
    ) -> None:
        """`rotated_system`: the system prompt's keys and values, keys at their positions."""
        self._model, self._system, self._retriever = model, rotated_system, retriever
        self._agreement = retriever if isinstance(retriever, Agreement) else None
        self._prompts, self._watch = prompts, watch
        watch.lap("query")

    def search(self) -> None:
        """All layers, each choosing by its own query, from `agrees_at` on among what was agreed on; where counts adapt,
        the last layer only searches."""
        adapts, last = self._retriever.is_adaptive, self._model.num_layers - 1
        looks_first = adapts and self._retriever.method.retrieve.looks == "first"
        choose = self._only_ask if looks_first else self._search_layer
        for layer in range(last if adapts else last + 1):
            self._run_layer(layer, self._prompts, choose, "query" if adapts else "prefill")
        if adapts and (going := _going(self._prompts)):
            q_THd, _, _ = self._model.qkv(last, torch.cat([prompt.hidden_TD for prompt in going]))
            self._watch.lap("query")
            choose(last, going, q_THd)
            self._watch.lap("search")
        if looks_first:
            for layer in range(last + 1):
                self._look(layer, _going(self._prompts))
            self._watch.lap("search")

    def adapt(self) -> None:
        """Each again from its first layer whose count, and so whose choice, the scores of all layers change.

        Below that layer both runs are the same.
        """
        choices = self._each_memory(_going(self._prompts), self._choose_anew)
        first = {prompt: _first_change(prompt, chosen) for prompt, chosen in choices.items()}
        for prompt, layer in first.items():
            prompt.rewind(layer)
        self._watch.lap("search")
        for layer in range(min(first.values(), default=0), self._model.num_layers):
            due = [prompt for prompt, start in first.items() if start <= layer]
            self._run_layer(
                layer, due, lambda layer, going, _: {p: choices[p][layer] for p in going}, "prefill"
            )

    def finish(self) -> list[Reading | Exception]:
        """What became of each, in order."""
        going = _going(self._prompts)
        readings: dict[Prompt, Reading] = {}
        if going:
            logits_QV = self._model.logits(torch.cat([prompt.hidden_TD[-1:] for prompt in going]))
            for prompt, logits in zip(going, logits_QV, strict=True):
                voters = self._retriever.voters(len(prompt.candidates))
                candidates = tuple(prompt.candidates[layer] for layer in voters)
                readings[prompt] = Reading(
                    tuple(prompt.layers), logits, candidates, len(prompt.memory.segments)
                )
        self._watch.lap("prefill")
        return [prompt.error or readings[prompt] for prompt in self._prompts]

    def _search_layer(
        self, layer: int, prompts: Sequence[Prompt], q_THd: Tensor
    ) -> dict[Prompt, BlockChoice]:
        self._ask(prompts, q_THd)
        agreement = self._agreement
        if agreement is None or agreement.agrees_at is None or layer < agreement.agrees_at:
            return self._look(layer, prompts)
        if layer == agreement.agrees_at:
            self._look(layer, prompts)
            self._agree(agreement, _going(prompts))
        return self._each_memory(_going(prompts), partial(self._look_in_agreed, agreement, layer))

    def _only_ask(self, layer: int, prompts: Sequence[Prompt], q_THd: Tensor) -> dict[Prompt, BlockChoice]:
        self._ask(prompts, q_THd)
        return dict.fromkeys(prompts, NOTHING)

    def _ask(self, prompts: Sequence[Prompt], q_THd: Tensor) -> None:
        """Notes what a layer looks for."""
        num_kv_heads, similarity = (
            self._model.geometry.num_kv_heads,
            self._retriever.method.retrieve.similarity,
        )
        for prompt, q in zip(prompts, torch.split(q_THd, [p.num_tokens for p in prompts]), strict=True):
            asked_THd = q[prompt.words.question]
            prompt.queries.append(
                Query(
                    grouped_query(asked_THd, num_kv_heads, similarity),
                    grouped_queries(asked_THd, num_kv_heads),
                )
            )

    def _look(self, layer: int, prompts: Sequence[Prompt]) -> dict[Prompt, BlockChoice]:
        retriever = self._retriever

        def look(memory: VideoMemory, some: Sequence[Prompt]) -> list[tuple[Candidates, BlockChoice]]:
            found = retriever.look_each(memory, layer, [prompt.queries[layer] for prompt in some])
            return [(candidates, retriever.choose(candidates)) for candidates in found]

        looks = self._each_memory(prompts, look)
        for prompt, (candidates, _) in looks.items():
            prompt.candidates.append(candidates)
        return {prompt: choice for prompt, (_, choice) in looks.items()}

    def _agree(self, agreement: Agreement, prompts: Sequence[Prompt]) -> None:
        def agree(memory: VideoMemory, some: Sequence[Prompt]) -> list[np.ndarray]:
            agreed = agreement.agree_each(memory, [Looks(p.queries, p.candidates) for p in some])
            memory.prefetch(union_of([np.sort(nos) for nos in agreed]))
            return agreed

        for prompt, agreed in self._each_memory(prompts, agree).items():
            prompt.agreed = agreed

    def _look_in_agreed(
        self, agreement: Agreement, layer: int, memory: VideoMemory, prompts: Sequence[Prompt]
    ) -> list[BlockChoice]:
        queries, agreed = [p.queries[layer] for p in prompts], [p.agreed for p in prompts]
        return [agreement.choose(c) for c in agreement.look_in_each(memory, layer, queries, agreed)]

    def _choose_anew(self, memory: VideoMemory, prompts: Sequence[Prompt]) -> list[list[BlockChoice]]:
        """What each layer of each prompt reads, once all layers have looked."""
        retriever = self._retriever
        looks = [Looks(prompt.queries, prompt.candidates) for prompt in prompts]
        choices = [
            [retriever.choose(c, n) for c, n in zip(candidates, retriever.allocate(candidates), strict=True)]
            for candidates in retriever.reconsider_each(memory, looks)
        ]
        memory.prefetch(
            np.unique(np.concatenate([choice.segment_nos for each in choices for choice in each]))
        )
        return choices

    def _run_layer(self, layer: int, prompts: Sequence[Prompt], choose: Choose, phase: str) -> None:
        model, prompts = self._model, _going(prompts)
        if not prompts:
            return
        hidden_TD = torch.cat([prompt.hidden_TD for prompt in prompts])
        q_THd, k_TGd, v_TGd = model.qkv(layer, hidden_TD)
        self._watch.lap(phase)
        choices = choose(layer, prompts, q_THd)
        self._watch.lap("search")
        caches = self._open_caches(layer, choices)
        self._watch.lap("fetch")
        if not caches:
            return
        if len(caches) < len(prompts):  # some failed
            rows = _rows_of(prompts, caches).to(hidden_TD.device)
            hidden_TD, q_THd, k_TGd, v_TGd = (t[rows] for t in (hidden_TD, q_THd, k_TGd, v_TGd))
            prompts = list(caches)
        lengths = [prompt.num_tokens for prompt in prompts]
        attended_THd, weights = attend_next(
            model.rope, [caches[prompt] for prompt in prompts], lengths, q_THd, k_TGd, v_TGd
        )
        done_TD = model.finish_layer(layer, hidden_TD, attended_THd)
        each = zip(
            prompts, weights, torch.split(hidden_TD, lengths), torch.split(done_TD, lengths), strict=True
        )
        start = self._system[layer].num_tokens
        for prompt, weights_HS, input_TD, output_TD in each:
            cache = caches[prompt]
            video_weights_S = weights_HS[:, start : cache.num_tokens - prompt.num_tokens].mean(dim=0)
            prompt.layers.append(LayerReading(input_TD, cache, choices[prompt], video_weights_S))
            prompt.hidden_TD = output_TD
        self._watch.lap(phase)

    def _open_caches(self, layer: int, choices: dict[Prompt, BlockChoice]) -> dict[Prompt, LayerCache]:
        """System prompt and blocks, rotated to consecutive positions; room for the prompt and the answer."""
        system = self._system[layer]

        def gather(memory: VideoMemory, some: Sequence[Prompt]) -> list[KV]:
            return _gather_each(memory, layer, [choices[prompt] for prompt in some], like=system)

        stored = self._each_memory(list(choices), gather)
        if not stored:
            return {}
        lengths = [kv.num_tokens for kv in stored.values()]
        positions = consecutive([system.num_tokens] * len(lengths), lengths).to(system.keys_TGd.device)
        rotated_TGd = self._model.rope(torch.cat([kv.keys_TGd for kv in stored.values()]), positions)
        caches = {}
        for (prompt, kv), keys_TGd in zip(stored.items(), torch.split(rotated_TGd, lengths), strict=True):
            num_tokens = system.num_tokens + kv.num_tokens + prompt.num_tokens + prompt.room
            cache = caches[prompt] = LayerCache(num_tokens, like=system)
            cache.append(system.keys_TGd, system.values_TGd)
            cache.append(keys_TGd, kv.values_TGd)
        return caches

    def _each_memory(
        self, prompts: Sequence[Prompt], call: Callable[[VideoMemory, Sequence[Prompt]], Sequence[T]]
    ) -> dict[Prompt, T]:
        """Calls for all prompts of a memory together, and for each alone where that fails: errors are one's own.

        In the order of `prompts`, without those that fail.
        """
        together: dict[int, list[Prompt]] = {}
        for prompt in prompts:
            together.setdefault(id(prompt.memory), []).append(prompt)
        found: dict[Prompt, T] = {}
        for some in together.values():
            try:
                found.update(zip(some, call(some[0].memory, some), strict=True))
            except Exception as exc:  # whatever is wrong with one, the others are to be answered
                if len(some) == 1:
                    some[0].error = exc
                else:
                    for one in some:
                        found.update(self._each_memory([one], call))
        return {prompt: found[prompt] for prompt in prompts if prompt in found}


def _going(prompts: Sequence[Prompt]) -> list[Prompt]:
    return [prompt for prompt in prompts if prompt.error is None]


def _first_change(prompt: Prompt, choices: Sequence[BlockChoice]) -> int:
    """The first layer that reads something else than it did; the last, which has not read, if none does."""
    for layer, (new, old) in enumerate(zip(choices[:-1], prompt.layers, strict=True)):
        if not new.same_as(old.choice):
            return layer
    return len(choices) - 1


def _rows_of(prompts: Sequence[Prompt], some: Container[Prompt]) -> Tensor:
    """Where the tokens of some of them are, of the packed tokens of all."""
    wanted = np.repeat([prompt in some for prompt in prompts], [prompt.num_tokens for prompt in prompts])
    return torch.from_numpy(np.flatnonzero(wanted))


def _gather_each(memory: VideoMemory, layer: int, choices: Sequence[BlockChoice], *, like: KV) -> list[KV]:
    """Each choice's tokens, where and of the type that `like` is. A block that several read is read once."""
    if not any(choice.num_blocks for choice in choices):
        return [KV(like.keys_TGd[:0], like.values_TGd[:0])] * len(choices)
    if len(choices) == 1:
        return [tokens_of(memory, layer, choices[0].segment_nos, choices[0].slots, like=like)]
    segment_nos, slots = (
        np.concatenate([getattr(c, name) for c in choices]) for name in ("segment_nos", "slots")
    )
    base = int(slots.max()) + 1
    blocks, places = np.unique(segment_nos * base + slots, return_inverse=True)
    read = tokens_of(memory, layer, blocks // base, blocks % base, like=like)
    keys_bNGd, values_bNGd = (
        tensor.view(len(blocks), -1, *tensor.shape[1:]) for tensor in (read.keys_TGd, read.values_TGd)
    )
    rows_b = torch.from_numpy(places).to(keys_bNGd.device)
    each = torch.split(rows_b, [choice.num_blocks for choice in choices])
    return [KV(keys_bNGd[rows].flatten(0, 1), values_bNGd[rows].flatten(0, 1)) for rows in each]
