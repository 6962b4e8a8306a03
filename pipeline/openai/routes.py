"""The routes, over a backend that knows the streams."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, Protocol

from fastapi import APIRouter
from fastapi.responses import StreamingResponse

from actors.views import StreamView
from pipeline.dialogue import Query, Reply, SearchQuery, SearchReply
from pipeline.openai.bodies import MODEL, ChatCompletion, ChatRequest, Model, ModelList, OpenAIErrorResponse
from pipeline.openai.errors import OpenAIRoute
from pipeline.openai.replies import AnswerWriter, R, SearchWriter, Writer
from pipeline.openai.requests import read_ignored, read_query, read_search, stream_of_model
from pipeline.thumbnails import add_thumbnails

CHAT, MODELS = PATHS = ("/v1/chat/completions", "/v1/models")


class Asking(Protocol):
    """What the routes need of a backend."""

    async def streams(self) -> list[StreamView]: ...

    async def stream(self, stream_id: str) -> StreamView: ...

    async def reply(self, query: Query) -> Reply: ...

    def words(self, query: Query) -> AsyncGenerator[str | Reply, None]: ...

    async def search(self, query: SearchQuery) -> SearchReply: ...

    async def thumbnails(
        self, stream_id: str, times_s: Sequence[float], width: int
    ) -> list[bytes | None]: ...


def make_router(backend: Asking) -> APIRouter:
    """Routes whose errors have OpenAI's form."""
    router = APIRouter(
        route_class=OpenAIRoute,
        tags=["OpenAI"],
        responses={"4XX": {"model": OpenAIErrorResponse}, "5XX": {"model": OpenAIErrorResponse}},
    )

    @router.post(
        CHAT,
        response_model=ChatCompletion,
        responses={200: {"content": {"text/event-stream": {}}}},
    )
    async def complete(request: ChatRequest) -> Any:
        """Answers the last message from what the stream has shown so far; whole, or with `stream` as events."""
        ignored = read_ignored(request)
        if request.streams is not None:
            search, many = read_search(request), SearchWriter(ignored)
            if request.stream:
                return await _in_pieces(request, many, _found_pieces(backend, search, request, many))
            return many.completion(await _found(backend, search, request))
        query = read_query(request)
        one = AnswerWriter(query.stream_id, ignored)
        if request.stream:
            return await _in_pieces(request, one, _answer_pieces(backend, query, request))
        return one.completion(await _pictured(backend, query, request, await backend.reply(query)))

    @router.get(MODELS)
    async def list_models() -> ModelList:
        """The streams, as models to ask."""
        return ModelList(data=[_model(view) for view in await backend.streams()])

    @router.get(f"{MODELS}/{{model:path}}")
    async def get_model(model: str) -> Model:
        """One stream, as a model to ask."""
        return _model(await backend.stream(stream_of_model(model)))

    return router


async def _in_pieces(
    request: ChatRequest, writer: Writer[R], pieces: AsyncGenerator[str | R, None]
) -> StreamingResponse:
    usage = bool(request.stream_options and request.stream_options.include_usage)
    first = await anext(pieces)  # until here an error has a status of its own
    return StreamingResponse(
        writer.events(first, pieces, with_usage=usage),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
    )


async def _answer_pieces(
    backend: Asking, query: Query, request: ChatRequest
) -> AsyncGenerator[str | Reply, None]:
    async with aclosing(backend.words(query)) as pieces:
        async for piece in pieces:
            yield piece if isinstance(piece, str) else await _pictured(backend, query, request, piece)


async def _found_pieces(
    backend: Asking, search: SearchQuery, request: ChatRequest, writer: SearchWriter
) -> AsyncGenerator[str | SearchReply, None]:
    """All at once: which streams are found is known only when all have been searched."""
    reply = await _found(backend, search, request)
    yield writer.text(reply)
    yield reply


async def _found(backend: Asking, search: SearchQuery, request: ChatRequest) -> SearchReply:
    reply = await backend.search(search)
    for stream in reply.result.streams if request.thumbnails else ():
        if stream.answer is not None:
            await add_thumbnails(backend.thumbnails, stream.stream_id, stream.answer)
    return reply


async def _pictured(backend: Asking, query: Query, request: ChatRequest, reply: Reply) -> Reply:
    if request.thumbnails:
        await add_thumbnails(backend.thumbnails, query.stream_id, reply.answer)
    return reply


def _model(view: StreamView) -> Model:
    return Model(
        id=f"{MODEL}/{view.stream_id}",
        created=int(view.created_at),
        streamkv={"stream_id": view.stream_id, "state": view.state, "as_of_s": view.as_of_s},
    )
