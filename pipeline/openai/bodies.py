"""Bodies of requests and replies, in OpenAI's form with what it has no place for."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from pipeline.schemas import Evidence, FoundStream, From, Gap, SkippedStream, Span, Thumbnails, To

MODEL = "streamkv"
MAX_TOKENS = 4096

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
    streams: Annotated[
        Literal["*"] | Annotated[list[str], Field(min_length=1, max_length=10_000)] | None,
        Field(description="ids of several streams, or `*` for all: the best are found and asked"),
    ] = None
    max_streams: Annotated[
        int | None, Field(strict=True, ge=1, le=100, description="of `streams`, as many are asked at most")
    ] = None
    start: From = None
    end: To = None
    thumbnails: Thumbnails | None = None
    stream: Annotated[bool | None, Field(description="the answer piece by piece, as events")] = None
    stream_options: StreamOptions | None = None
    max_completion_tokens: Tokens = None
    max_tokens: Annotated[Tokens, Field(description="the older name of max_completion_tokens")] = None


class Details(BaseModel):
    """What OpenAI's form has no place for."""

    stream_id: str
    evidence: Annotated[list[Evidence], Field(description="heaviest first")]
    confidence: Annotated[
        float | None, Field(description="how likely it is right; null: not known for this model")
    ] = None
    as_of_s: Annotated[float, Field(description="stream time up to which the stream was read")]
    timings_ms: dict[str, float]
    gaps: Annotated[list[Gap], Field(description="footage that is missing from what was read")]
    span: Annotated[Span | None, Field(description="what the answer was restricted to; null: nothing")]
    ignored: Annotated[list[str], Field(description="parameters of the request that had no effect")]


class SearchDetails(BaseModel):
    """The same of a question to several streams."""

    streams: Annotated[list[FoundStream], Field(description="best first, each with its own answer")]
    searched: Annotated[int, Field(description="streams that were looked at")]
    skipped: list[SkippedStream]
    timings_ms: Annotated[dict[str, float], Field(description="search, total")]
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
                        "confidence": 0.93,
                        "as_of_s": 600.0,
                        "timings_ms": {"search": 1.2, "first_token": 31.0, "total": 40.5},
                        "gaps": [],
                        "span": None,
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
    streamkv: Details | SearchDetails


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
