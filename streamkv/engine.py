"""`Engine`: a model and a method; takes in segments, answers questions. Knows no Ray and no file."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import torch

from streamkv.attention import KV
from streamkv.compression import make_compressor
from streamkv.confidence import why_not
from streamkv.config import ConfidenceConfig, MethodConfig, RetrieveConfig
from streamkv.conversation import Turn
from streamkv.errors import ForeignStoreError, QuestionError, StoreError
from streamkv.excerpt import Span, between
from streamkv.memory import SegmentInfo, VideoMemory
from streamkv.models.base import VideoLLM
from streamkv.prefill import StreamWindow, SystemKV, prefill_segment, prefill_system, replay
from streamkv.prompt_run import Prompt, PromptRun
from streamkv.question import OnToken, Question, check_question
from streamkv.reading import Reading
from streamkv.retrieval import Retriever, TopK, make_retriever
from streamkv.retrieval.agreement import mean_scores
from streamkv.segmentation import Segmenter
from streamkv.stopwatch import Stopwatch
from streamkv.together import Outcome, Together
from streamkv.types import Answer, Segment, SegmentKV

log = logging.getLogger(__name__)

MAX_PROMPT_TOKENS = 4096
"""Of a question with what was said before it: each of them attends to each, which takes memory by the square."""
MAX_GUIDANCE = 64
"""Guidance prompts whose tokens are kept, the latest used: streams may have their own."""


class Engine:
    """Keeps nothing between calls but the system prompt: windows and memories belong to the caller."""

    def __init__(self, model: VideoLLM, method: MethodConfig) -> None:
        self.model = model
        self.method = method
        self.retriever = make_retriever(method, model.geometry)
        self.confidence = self._fitting_confidence()
        self.finder = TopK(_for_finding(method), model.geometry)
        make_compressor(method.compress)  # an unknown name fails here, not at the first segment
        Segmenter(method.segment)
        self.system = prefill_system(model)
        self._rotated_system = _rotated(self.system, model)
        self._guidance_embeds = lru_cache(MAX_GUIDANCE)(model.guidance_embeds)

    def open_window(self, memory: VideoMemory | None = None) -> StreamWindow:
        """The window of a new stream or, after a restart, of the one that `memory` holds."""
        if memory is None:
            return StreamWindow(self.system, self.method.n_local)
        return StreamWindow.rebuild(self.system, memory, self.method)

    def replay(self, memory: VideoMemory) -> tuple[StreamWindow, tuple[SegmentInfo, ...]]:
        """A window, and which of `memory`'s segments, prefilled into it, make it exact."""
        return replay(self.system, memory, self.method)

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

    def peek(
        self, window: StreamWindow, segment: Segment, guidance: str = "", keep_ratio: float = 0.0
    ) -> SegmentKV:
        """As `prefill`, of a segment that may go on: the window stays where it is."""
        return self.prefill(window.fork(), segment, guidance, keep_ratio)

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
        asked = Question(memory, question, span, earlier, max_new_tokens, min_confidence, on_token)
        (outcome,) = self.answer_many([asked])
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def answer_many(self, questions: Sequence[Question], at_once: int = 32) -> list[Outcome]:
        """What `answer` returns or raises for each, in order; `at_once` of them are under way together.

        Each of these holds the keys and values that it reads. What they cost together is less by far than one by one;
        what each says is the same, but for what `streamkv/together.py` names.
        """
        if at_once < 1:
            raise ValueError(f"at_once: got {at_once}, need at least 1")
        together = Together(self)
        waiting, joined = deque(questions), []
        while waiting or together.num_going:
            if waiting and (room := at_once - together.num_going):
                joined += together.join([waiting.popleft() for _ in range(min(room, len(waiting)))])
            else:
                together.step()
        return [one.outcome for one in joined if one.outcome is not None]

    def read(
        self,
        memory: VideoMemory,
        question: str,
        *,
        span: Span | None = None,
        earlier: Sequence[Turn] = (),
        max_new_tokens: int = 128,
    ) -> Reading:
        """What `answer` makes of the question before its first word."""
        (reading,) = self.read_each([Question(memory, question, span, earlier, max_new_tokens)])
        if isinstance(reading, Exception):
            raise reading
        return reading

    @torch.inference_mode()
    def read_each(
        self, questions: Sequence[Question], watch: Stopwatch | None = None
    ) -> list[Reading | Exception]:
        """Runs the questions' prompts over the blocks that they find: twice if counts adapt, else once.

        The second run takes its blocks from the first run's scores. It starts at the first layer whose blocks
        changed: below it both runs are the same.
        """
        watch = watch or Stopwatch()
        prompts = [self._prompt(question) for question in questions]
        run = self._run(self.retriever, [prompt for prompt in prompts if isinstance(prompt, Prompt)], watch)
        run.search()
        if self.retriever.is_adaptive:
            run.adapt()
        found = iter(run.finish())
        return [next(found) if isinstance(prompt, Prompt) else prompt for prompt in prompts]

    @torch.inference_mode()
    def find(self, memory: VideoMemory, question: str, finder: Retriever | None = None) -> dict[int, float]:
        """Segments that the question finds, with their scores: how far they stand out, mean over layers.

        Whatever the policy of answers, each layer looks by `topk` among all of `memory`; what it reads there shapes
        the queries of later layers, and that finds far more than the bare question does (`bench.search` measures both).
        `finder`: another retriever than that.
        """
        prompt = self._prompt(Question(memory, question, max_new_tokens=0))
        if isinstance(prompt, Exception):
            raise prompt
        self._run(finder or self.finder, [prompt], Stopwatch()).search()
        if prompt.error:
            raise prompt.error
        return mean_scores(prompt.candidates)

    def _prompt(self, question: Question) -> Prompt | Exception:
        """On its way, or why it cannot be asked."""
        try:
            text = check_question(question.text, max_chars=len(question.text))
            self._check_memory(question.memory)
            span, memory = question.span, question.memory
            searched = memory if span is None else between(memory, span)
            words = self.model.question_prompt(text, question.earlier)
            if (found := len(words.embeds_TD)) > MAX_PROMPT_TOKENS:
                raise QuestionError(
                    f"question: got {found} tokens with earlier turns, allowed {MAX_PROMPT_TOKENS}; shorten it"
                )
            return Prompt.of(searched, words, question.max_new_tokens)
        except Exception as exc:  # of this question alone
            return exc

    def _run(self, retriever: Retriever, prompts: Sequence[Prompt], watch: Stopwatch) -> PromptRun:
        return PromptRun(self.model, self._rotated_system, retriever, prompts, watch)

    def _fitting_confidence(self) -> ConfidenceConfig | None:
        """The method's, where it is of this model and method: an ablation's answers do not say how sure they are."""
        weights, geometry = self.method.confidence, self.model.geometry
        voters = self.retriever.voters(geometry.num_layers)
        if weights is not None and (reason := why_not(weights, len(voters), geometry)):
            log.warning("answers do not say how sure they are: %s", reason)
            return None
        return weights

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


def _for_finding(method: MethodConfig) -> MethodConfig:
    """Latest blocks are those of one stream among many; and scoring every block would open every file."""
    candidates = method.retrieve.candidate_segments or RetrieveConfig.candidate_segments
    return replace(method, retrieve=replace(method.retrieve, recent_blocks=0, candidate_segments=candidates))


@torch.inference_mode()
def _rotated(system: SystemKV, model: VideoLLM) -> SystemKV:
    """With its keys at their positions, which are the first of every answer."""
    positions = torch.arange(system[0].num_tokens, device=model.device)
    return tuple(KV(model.rope(kv.keys_TGd, positions), kv.values_TGd) for kv in system)
