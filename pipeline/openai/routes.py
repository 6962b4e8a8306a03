"""The routes, over a backend that knows the streams."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any, Protocol

from fastapi import APIRouter
from fastapi.responses import StreamingResponse

from actors.views import StreamView
from pipeline.dialogue import Query, Reply
from pipeline.openai.bodies import MODEL, ChatCompletion, ChatRequest, Model, ModelList, OpenAIErrorResponse
from pipeline.openai.errors import OpenAIRoute
from pipeline.openai.replies import Writer
from pipeline.openai.requests import read_ignored, read_query, stream_of_model


class Asking(Protocol):
    """What the routes need of a backend."""

    async def streams(self) -> list[StreamView]: ...

    async def stream(self, stream_id: str) -> StreamView: ...

    async def reply(self, query: Query) -> Reply: ...

    def words(self, query: Query) -> AsyncGenerator[str | Reply, None]: ...


def make_router(backend: Asking) -> APIRouter:
    """Routes whose errors have OpenAI's form."""
    router = APIRouter(
        route_class=OpenAIRoute,
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
        return _model(await backend.stream(stream_of_model(model)))

    return router


def _model(view: StreamView) -> Model:
    return Model(
        id=f"{MODEL}/{view.stream_id}",
        created=int(view.created_at),
        streamkv={"stream_id": view.stream_id, "state": view.state, "as_of_s": view.as_of_s},
    )
