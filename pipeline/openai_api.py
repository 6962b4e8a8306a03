"""Questions the way that OpenAI's clients put them: `/v1/chat/completions` and `/v1/models`.

A stream is named by `stream_id`, or as the model `streamkv/STREAM`. Decoding is greedy, so settings of sampling have no
effect, and a reply names them as ignored; what would change an answer's form is refused. Knows neither Ray nor the
engine.
"""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence
from contextlib import aclosing
from typing import Annotated, Any, Literal, Protocol

from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from actors.views import StreamView
from pipeline.dialogue import Query, Reply
from pipeline.http_errors import RETRY_AFTER_S, OverloadedError, problems_of, status_of
from pipeline.schemas import Evidence, Gap
from streamkv.conversation import Turn
from streamkv.errors import UnknownStreamError

MODEL = "streamkv"
MAX_TOKENS = 4096

ONLY: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "stop": ([], ""),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "prediction": (),
    "web_search_options": (),
}
"""Values, besides null, of the parameters that would change an answer's form; any other is refused."""
SAME = {"temperature": 0, "top_p": 1, "presence_penalty": 0, "frequency_penalty": 0}
"""With these, greedy decoding is what was asked for."""

log = logging.getLogger("streamkv.openai")


class Asking(Protocol):
    """What the routes need of a backend."""

    async def streams(self) -> list[StreamView]: ...

    async def stream(self, stream_id: str) -> StreamView: ...

    async def reply(self, query: Query) -> Reply: ...

    def words(self, query: Query) -> AsyncGenerator[str | Reply, None]: ...


class RefusedError(Exception):
    """A request that cannot be served as it is."""

    def __init__(self, message: str, *, param: str | None = None, code: str = "invalid_value") -> None:
        super().__init__(message)
        self.param = param
        self.code = code


# ---- bodies

Tokens = Annotated[int | None, Field(strict=True, ge=1, le=MAX_TOKENS)]
Content = Annotated[
    Any,
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {"type": "array", "items": {"type": "object", "required": ["type", "text"]}},
                {"type": "null"},
            ],
            "description": "text, or parts of type `text`, which are joined line by line",
        }
    ),
]


class Message(BaseModel):
    """One turn. What is no text (tool calls, pictures) is refused: the pictures are the stream's."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Content = None
    tool_calls: Annotated[list[Any] | None, Field(max_length=0)] = None


class StreamOptions(BaseModel):
    include_usage: bool | None = None


class ChatRequest(BaseModel):
    """OpenAI's body with a `stream_id`. Parameters that are not named here are accepted, and have no effect."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "examples": [
                {
                    "model": "streamkv/lobby",
                    "messages": [{"role": "user", "content": "what colour is the bus at 14:07?"}],
                    "stream": True,
                    "stream_options": {"include_usage": True},
                }
            ]
        },
    )

    model: Annotated[str, Field(description="`streamkv/STREAM`, or `streamkv` with a `stream_id`")]
    messages: Annotated[list[Message], Field(min_length=1, description="the last one is the question")]
    stream_id: Annotated[str | None, Field(description="the video stream that is asked about")] = None
    stream: Annotated[bool | None, Field(description="the answer piece by piece, as events")] = None
    stream_options: StreamOptions | None = None
    max_completion_tokens: Tokens = None
    max_tokens: Annotated[Tokens, Field(description="the older name of max_completion_tokens")] = None


class Details(BaseModel):
    """What OpenAI's form has no place for."""

    stream_id: str
    evidence: Annotated[list[Evidence], Field(description="heaviest first")]
    as_of_s: Annotated[float, Field(description="stream time up to which the stream was read")]
    timings_ms: dict[str, float]
    gaps: Annotated[list[Gap], Field(description="footage that is missing from what was read")]
    ignored: Annotated[list[str], Field(description="parameters of the request that had no effect")]


class Usage(BaseModel):
    prompt_tokens: Annotated[int, Field(description="all turns and the system prompt; not the video")]
    completion_tokens: int
    total_tokens: int


class AnswerMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class Choice(BaseModel):
    index: int = 0
    message: AnswerMessage
    logprobs: None = None
    finish_reason: Literal["stop", "length"]


class ChatCompletion(BaseModel):
    """The whole answer."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "chatcmpl-5f0c",
                    "object": "chat.completion",
                    "created": 1767225600,
                    "model": "streamkv/lobby",
                    "choices": [
                        {
                            "index": 0,
                            "message": {"role": "assistant", "content": "red", "refusal": None},
                            "logprobs": None,
                            "finish_reason": "stop",
                        }
                    ],
                    "usage": {"prompt_tokens": 31, "completion_tokens": 1, "total_tokens": 32},
                    "streamkv": {
                        "stream_id": "lobby",
                        "evidence": [{"segment": 12, "start_s": 143.0, "end_s": 152.0, "weight": 0.61}],
                        "as_of_s": 600.0,
                        "timings_ms": {"search": 1.2, "first_token": 31.0, "total": 40.5},
                        "gaps": [],
                        "ignored": ["temperature"],
                    },
                }
            ]
        }
    )

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    streamkv: Details


class Model(BaseModel):
    """A stream, as something to ask."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = MODEL
    streamkv: Annotated[dict[str, Any], Field(description="the stream's id, state and as_of_s")]


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


class OpenAIError(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIErrorResponse(BaseModel):
    """Every answer of these routes that is not a success has this form."""

    error: OpenAIError


# ---- routes


def make_router(backend: Asking) -> APIRouter:
    """Routes whose errors have OpenAI's form."""
    router = APIRouter(
        route_class=_Route,
        tags=["OpenAI"],
        responses={"4XX": {"model": OpenAIErrorResponse}, "5XX": {"model": OpenAIErrorResponse}},
    )

    @router.post(
        "/v1/chat/completions",
        response_model=ChatCompletion,
        responses={200: {"content": {"text/event-stream": {}}}},
    )
    async def complete(request: ChatRequest) -> Any:
        """Answers the last message from what the stream has shown so far; whole, or with `stream` as events."""
        query, ignored = read_query(request), read_ignored(request)
        writer = Writer(query.stream_id, ignored)
        if not request.stream:
            return writer.completion(await backend.reply(query))
        usage = bool(request.stream_options and request.stream_options.include_usage)
        pieces = backend.words(query)
        first = await anext(pieces)  # until here an error has a status of its own
        return StreamingResponse(
            writer.events(first, pieces, with_usage=usage),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
        )

    @router.get("/v1/models")
    async def list_models() -> ModelList:
        """The streams, as models to ask."""
        return ModelList(data=[_model(view) for view in await backend.streams()])

    @router.get("/v1/models/{model:path}")
    async def get_model(model: str) -> Model:
        """One stream, as a model to ask."""
        return _model(await backend.stream(_stream_of(model)))

    return router


def _model(view: StreamView) -> Model:
    return Model(
        id=f"{MODEL}/{view.stream_id}",
        created=int(view.created_at),
        streamkv={"stream_id": view.stream_id, "state": view.state, "as_of_s": view.as_of_s},
    )


# ---- requests


def read_query(request: ChatRequest) -> Query:
    """The question with its earlier turns; RefusedError when it cannot be answered in the form asked for."""
    given = request.model_extra or {}
    for name, allowed in ONLY.items():
        value = given.get(name)
        if value is not None and value not in allowed:
            raise RefusedError(
                f"{name}: got {str(value)[:80]!r}, {_only(allowed)}", param=name, code="unsupported_value"
            )
    *earlier, question = request.messages
    last = len(earlier)
    if question.role != "user":
        raise RefusedError(
            f"messages.{last}.role: got {question.role!r}, allowed 'user': the last message is the question",
            param="messages",
        )
    said = [
        (message.role, text_of(message.content, f"messages.{i}.content")) for i, message in enumerate(earlier)
    ]
    return Query(
        stream_id=stream_of(request),
        question=text_of(question.content, f"messages.{last}.content"),
        # A system message is put among the user's words: the model's own system prompt is part of the stored video.
        earlier=tuple(
            Turn("assistant" if who == "assistant" else "user", text) for who, text in said if text.strip()
        ),
        max_new_tokens=request.max_completion_tokens or request.max_tokens,
    )


def _only(allowed: Sequence[Any]) -> str:
    return f"allowed {' or '.join(repr(a) for a in allowed)}" if allowed else "not supported; leave it out"


def read_ignored(request: ChatRequest) -> list[str]:
    """Names of parameters without effect, but for those that ask for nothing else than what is done."""
    given = request.model_extra or {}
    return sorted(n for n, v in given.items() if v is not None and n not in ONLY and v != SAME.get(n))


def stream_of(request: ChatRequest) -> str:
    """The stream that is asked about; RefusedError when none is named, or two are."""
    named = "" if request.model == MODEL else _stream_of(request.model)
    chosen = request.stream_id or named
    if not chosen:
        raise RefusedError(
            f"stream_id: which stream? Name it here, or ask the model {MODEL}/STREAM; /v1/models lists them",
            param="stream_id",
            code="missing_stream_id",
        )
    if named and named != chosen:
        raise RefusedError(
            f"stream_id: got {chosen!r}, but the model is {request.model!r}", param="stream_id"
        )
    return chosen


def _stream_of(model: str) -> str:
    head, _, stream_id = model.partition("/")
    if head != MODEL or not stream_id:
        raise UnknownStreamError(f"model {model[:80]!r}: unknown; ask {MODEL}/STREAM, /v1/models lists them")
    return stream_id


def text_of(content: object, where: str) -> str:
    """The text, or the text parts line by line; RefusedError for anything else."""
    if isinstance(content, list):
        return "\n".join(_part_text(part, f"{where}.{i}") for i, part in enumerate(content))
    return _unicode("" if content is None else content, where)


def _part_text(part: object, where: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    if not isinstance(part, dict) or kind != "text":
        raise RefusedError(
            f"{where}: got a part of type {kind!r}, allowed 'text': the pictures are those of the stream",
            param="messages",
            code="unsupported_content",
        )
    return _unicode(part.get("text"), f"{where}.text")


def _unicode(text: object, where: str) -> str:
    if not isinstance(text, str):
        raise RefusedError(
            f"{where}: got {type(text).__name__}, allowed text or text parts", param="messages"
        )
    try:
        text.encode()
    except UnicodeEncodeError as exc:
        raise RefusedError(f"{where}: half of a character at {exc.start}", param="messages") from None
    return text


# ---- replies


class Writer:
    """Puts one answer in OpenAI's form."""

    def __init__(self, stream_id: str, ignored: list[str]) -> None:
        self._stream_id = stream_id
        self._ignored = ignored
        self._head: dict[str, Any] = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": f"{MODEL}/{stream_id}",
        }

    def completion(self, reply: Reply) -> ChatCompletion:
        message = AnswerMessage(content=reply.answer.answer)
        return ChatCompletion(
            **self._head,
            choices=[Choice(message=message, finish_reason=reply.finish)],
            usage=_usage(reply),
            streamkv=self._details(reply),
        )

    async def events(
        self, first: str | Reply, rest: AsyncGenerator[str | Reply, None], *, with_usage: bool
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
                yield _event(_error(exc)[1])
        yield "data: [DONE]\n\n"

    def _chunk(self, delta: dict[str, Any], *, finish: str | None = None, **more: Any) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return self._event(choices=[choice], **more)

    def _event(self, **values: Any) -> str:
        return _event({**self._head, "object": "chat.completion.chunk", **values})

    def _details(self, reply: Reply) -> Details:
        answer = reply.answer
        return Details(
            stream_id=self._stream_id,
            evidence=answer.evidence,
            as_of_s=answer.as_of_s,
            timings_ms=answer.timings_ms,
            gaps=answer.gaps,
            ignored=self._ignored,
        )


def _usage(reply: Reply) -> Usage:
    prompt, completion = reply.prompt_tokens, reply.completion_tokens
    return Usage(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}\n\n"


# ---- errors


class _Route(APIRoute):
    """Gives every error OpenAI's form."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            try:
                return await handler(request)
            except Exception as exc:
                status, body = _error(exc)
                headers = {"Retry-After": str(RETRY_AFTER_S)} if status in (429, 503) else None
                return JSONResponse(body, status, headers)

        return handle


def error_body(
    message: str, kind: str, *, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """`{"error": ...}` as OpenAI's clients read it."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def _error(exc: Exception) -> tuple[int, dict[str, Any]]:
    """The status and the body that tell of it."""
    if isinstance(exc, RefusedError):
        return 400, error_body(str(exc), "invalid_request_error", param=exc.param, code=exc.code)
    if isinstance(exc, RequestValidationError):
        param = next((str(e["loc"][1]) for e in exc.errors() if len(e["loc"]) > 1), None)
        message = "; ".join(problems_of(exc)).replace("body.", "")
        return 400, error_body(message, "invalid_request_error", param=param, code="invalid_value")
    if isinstance(exc, HTTPException):
        return exc.status_code, error_body(str(exc.detail), "invalid_request_error")
    if isinstance(exc, OverloadedError):
        return 429, error_body(str(exc), "rate_limit_error", code="rate_limit_exceeded")
    status, name = status_of(exc), type(exc).__name__
    if status == 500:
        log.error("a question failed", exc_info=exc)
        return 500, error_body("something went wrong here; the server's log says what", "server_error")
    if status == 404:
        return 404, error_body(str(exc), "invalid_request_error", param="stream_id", code="stream_not_found")
    if status < 500:
        return 409 if status == 409 else 400, error_body(str(exc), "invalid_request_error", code=name)
    return status, error_body(str(exc), "server_error", code=name)
