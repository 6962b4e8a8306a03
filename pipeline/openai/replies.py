"""An answer in OpenAI's form, whole or as events."""

from __future__ import annotations

import json
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any, Generic, TypeVar

from pipeline.dialogue import Reply, SearchReply
from pipeline.openai.bodies import (
    MODEL,
    AnswerMessage,
    ChatCompletion,
    Choice,
    Details,
    SearchDetails,
    Usage,
)
from pipeline.openai.errors import status_and_body

DONE = "data: [DONE]\n\n"

R = TypeVar("R", Reply, SearchReply)


class Writer(ABC, Generic[R]):
    """Puts one answer in OpenAI's form."""

    def __init__(self, model: str, ignored: list[str]) -> None:
        self._ignored = ignored
        self._head: dict[str, Any] = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model,
        }

    @abstractmethod
    def text(self, reply: R) -> str:
        """The whole answer's."""

    @abstractmethod
    def _details(self, reply: R) -> Details | SearchDetails: ...

    def completion(self, reply: R) -> ChatCompletion:
        message = AnswerMessage(content=self.text(reply))
        return ChatCompletion(
            **self._head,
            choices=[Choice(message=message, finish_reason=reply.finish)],
            usage=_usage(reply),
            streamkv=self._details(reply),
        )

    async def events(
        self, first: str | R, rest: AsyncGenerator[str | R, None], *, with_usage: bool
    ) -> AsyncIterator[str]:
        """The answer as events. Whatever happens, the last one is [DONE]; an error is an event before it."""
        usage: dict[str, Any] = {"usage": None} if with_usage else {}
        async with aclosing(rest):
            yield self._chunk({"role": "assistant", "content": ""}, **usage)
            piece = first
            try:
                while isinstance(piece, str):
                    yield self._chunk({"content": piece}, **usage)
                    piece = await anext(rest)
                details = self._details(piece).model_dump()
                yield self._chunk({}, finish=piece.finish, streamkv=details, **usage)
                if with_usage:
                    yield self._event(choices=[], usage=_usage(piece).model_dump())
            except Exception as exc:
                yield last_events(exc)
            else:
                yield DONE

    def _chunk(self, delta: dict[str, Any], *, finish: str | None = None, **more: Any) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return self._event(choices=[choice], **more)

    def _event(self, **values: Any) -> str:
        return _event({**self._head, "object": "chat.completion.chunk", **values})


class AnswerWriter(Writer[Reply]):
    """Of one stream."""

    def __init__(self, stream_id: str, ignored: list[str]) -> None:
        super().__init__(f"{MODEL}/{stream_id}", ignored)
        self._stream_id = stream_id

    def text(self, reply: Reply) -> str:
        return reply.answer.answer

    def _details(self, reply: Reply) -> Details:
        answer = reply.answer
        return Details(
            stream_id=self._stream_id,
            evidence=answer.evidence,
            confidence=answer.confidence,
            as_of_s=answer.as_of_s,
            timings_ms=answer.timings_ms,
            gaps=answer.gaps,
            span=answer.span,
            ignored=self._ignored,
        )


class SearchWriter(Writer[SearchReply]):
    """Of several streams: a line each, and what each rests on beside it."""

    def __init__(self, ignored: list[str]) -> None:
        super().__init__(MODEL, ignored)

    def text(self, reply: SearchReply) -> str:
        return "\n".join(f"{s.stream_id}: {s.answer.answer}" for s in reply.result.streams if s.answer)

    def _details(self, reply: SearchReply) -> SearchDetails:
        return SearchDetails(**dict(reply.result), ignored=self._ignored)


def _usage(reply: Reply | SearchReply) -> Usage:
    prompt, completion = reply.prompt_tokens, reply.completion_tokens
    return Usage(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)


def last_events(exc: Exception) -> str:
    """Of an answer that is not whole."""
    return _event(status_and_body(exc)[1]) + DONE


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}\n\n"
