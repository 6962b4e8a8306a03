"""Questions that are answered together: they join between two tokens, and each leaves when it has its answer.

An answer is what the question by itself would get, but for the last bits of its logits: matrices that are multiplied
together may be summed in another order. Where two tokens are that near, another one may be said.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from streamkv.confidence import NOT_SHOWN, confidence
from streamkv.layer_cache import attend_next
from streamkv.question import Question
from streamkv.reading import Reading, find_evidence
from streamkv.stopwatch import Stopwatch
from streamkv.text_stream import TextStream
from streamkv.types import Answer

if TYPE_CHECKING:
    from streamkv.engine import Engine

Outcome = Answer | Exception


class UnderWay:
    """A question that has been read, or could not be. It has its outcome when it leaves."""

    def __init__(self, question: Question, engine: Engine, watch: Stopwatch) -> None:
        self.question = question
        self.outcome: Outcome | None = None
        self._engine, self._watch = engine, watch
        self._text = TextStream(engine.model, question.on_token)
        self._reading: Reading | None = None
        self._sure: float | None = None

    @property
    def reading(self) -> Reading:
        """While there is no outcome."""
        assert self._reading is not None, self.question.text
        return self._reading

    @property
    def last_token(self) -> int:
        """While there is no outcome."""
        return self._text.token_ids[-1]

    def begin(self, reading: Reading | Exception) -> None:
        """With the first token, or without any where the answer is too unlikely."""
        if isinstance(reading, Exception):
            return self.leave(reading)
        self._reading = reading
        try:
            weights = self._engine.confidence
            self._sure = confidence(weights, reading.signs) if weights else None
            if self._sure is not None and self._sure < self.question.min_confidence:
                self._text.say(NOT_SHOWN)
                self.leave(self._answer())
            elif not self.question.max_new_tokens:
                self.leave(self._answer())
        except Exception as exc:  # `on_token`'s, as a rule
            self.leave(exc)

    def go_on(self, token_id: int) -> None:
        """With the next token, which may end it."""
        try:
            if not self._text.token_ids:
                self._watch.mark("first_token")
            is_end = token_id in self._engine.model.eos_token_ids
            if not is_end:
                self._text.add(token_id)
            if is_end or len(self._text.token_ids) == self.question.max_new_tokens:
                self.leave(self._answer())
        except Exception as exc:  # as above: whoever asked has gone, the others have not
            self.leave(exc)

    def leave(self, outcome: Outcome) -> None:
        """Without another token; what was read is let go."""
        self.outcome, self._reading = outcome, None

    def _answer(self) -> Answer:
        reading, memory = self.reading, self.question.memory
        return Answer(
            text=self._text.finish(),
            confidence=self._sure,
            evidence=find_evidence(reading, memory),
            as_of_s=memory.as_of_s,
            num_tokens=len(self._text.token_ids),
            num_prompt_tokens=self._engine.system[0].num_tokens + reading.num_prompt_tokens,
            timings_ms=self._watch.finish(),
            blocks_per_layer=tuple(layer.choice.num_blocks for layer in reading.layers),
        )


class Together:
    """The questions under way on one engine. One thread's."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._going: list[UnderWay] = []

    @property
    def num_going(self) -> int:
        """Questions that have no outcome yet."""
        return len(self._going)

    @torch.inference_mode()
    def join(self, questions: Sequence[Question]) -> list[UnderWay]:
        """Reads them, all at once, up to their first tokens; some may have their outcome by then.

        Their times by phase are those of all of them.
        """
        watch = Stopwatch()
        try:
            readings = self._engine.read_each(questions, watch)
        except Exception as exc:  # of what they share, such as memory that ran out
            readings = [exc] * len(questions)
        joined = [UnderWay(question, self._engine, watch.copy()) for question in questions]
        for one, reading in zip(joined, readings, strict=True):
            one.begin(reading)
        new = [one for one in joined if one.outcome is None]
        if new:
            _tell(new, torch.stack([one.reading.logits for one in new]))
            self._going += [one for one in new if one.outcome is None]
        return joined

    @torch.inference_mode()
    def step(self) -> list[UnderWay]:
        """The next token of each. Those that have their outcome by then, or were told to leave, have left."""
        self._going = [one for one in self._going if one.outcome is None]
        before = self._going
        if before:
            try:
                _tell(before, self._next_logits(before))
            except Exception as exc:  # of what they share
                for one in before:
                    one.leave(exc)
        self._going = [one for one in before if one.outcome is None]
        return [one for one in before if one.outcome is not None]

    def _next_logits(self, going: Sequence[UnderWay]) -> Tensor:
        """(Q, vocabulary), after each one's last token."""
        model, ones = self._engine.model, [1] * len(going)
        hidden_TD = model.embed_tokens([one.last_token for one in going])
        for layer in range(model.num_layers):
            caches = [one.reading.layers[layer].cache for one in going]
            attended_THd, _ = attend_next(model.rope, caches, ones, *model.qkv(layer, hidden_TD))
            hidden_TD = model.finish_layer(layer, hidden_TD, attended_THd)
        return model.logits(hidden_TD)


def _tell(going: Sequence[UnderWay], logits_QV: Tensor) -> None:
    for one, token_id in zip(going, logits_QV.argmax(dim=-1).tolist(), strict=True):
        one.go_on(token_id)
