"""The HTTP routes. Knows neither Ray nor the engine: a `Backend` does the work."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from fastapi import FastAPI, HTTPException, Response

from actors.views import PlaneState, StreamView
from pipeline import http_errors
from pipeline.schemas import Answer, ErrorResponse, Health, NewStream, Question, Stream, StreamList

MAX_BODY_BYTES = 1_000_000
"""Longer bodies are refused: no question or URI is near it."""

Message = dict[str, Any]


class Backend(Protocol):
    async def state(self) -> PlaneState: ...

    async def streams(self) -> list[StreamView]: ...

    async def stream(self, stream_id: str) -> StreamView: ...

    async def add_stream(self, stream_id: str, uri: str) -> StreamView: ...

    async def remove_stream(self, stream_id: str) -> None: ...

    async def ask(self, stream_id: str, question: str, max_new_tokens: int | None) -> Answer: ...

    async def stats(self) -> dict[str, float]: ...


def make_api(backend: Backend) -> FastAPI:
    """The application. Errors of `streamkv.errors` that the backend raises become 4xx with one form."""
    app = FastAPI(
        title="StreamKV",
        version="1",
        summary="Ask many video streams anything",
        responses={"4XX": {"model": ErrorResponse}, "5XX": {"model": ErrorResponse}},
    )
    http_errors.install(app)
    app.add_middleware(BodyLimit, max_bytes=MAX_BODY_BYTES)

    @app.get("/healthz")
    async def healthz(response: Response) -> Health:
        """Whether streams and questions are taken."""
        state = await backend.state()
        if state.phase != "ready":
            response.status_code = 503
        return Health(status="ok" if state.phase == "ready" else state.phase, detail=state.detail)

    @app.post("/v1/streams", status_code=201)
    async def add_stream(new: NewStream) -> Stream:
        """Registers a stream; its ingest begins at once."""
        return Stream.of(await backend.add_stream(new.id, new.uri))

    @app.get("/v1/streams")
    async def list_streams() -> StreamList:
        """All streams, by id."""
        return StreamList(streams=[Stream.of(view) for view in await backend.streams()])

    @app.get("/v1/streams/{stream_id}")
    async def get_stream(stream_id: str) -> Stream:
        """One stream and how far it has come."""
        return Stream.of(await backend.stream(stream_id))

    @app.delete("/v1/streams/{stream_id}", status_code=204)
    async def remove_stream(stream_id: str) -> Response:
        """Stops a stream's ingest and deletes what was stored of it."""
        await backend.remove_stream(stream_id)
        return Response(status_code=204)

    @app.post("/v1/streams/{stream_id}/questions")
    async def ask(stream_id: str, question: Question) -> Answer:
        """Answers a question from what the stream has shown so far."""
        return await backend.ask(stream_id, question.question, question.max_new_tokens)

    @app.get("/v1/stats")
    async def stats() -> dict[str, float]:
        """Seconds and counts of each ingest stage since its workers started."""
        return await backend.stats()

    return app


class BodyLimit:
    """Refuses a body that is too large as soon as that many bytes have come, whatever was announced."""

    def __init__(self, app: Callable[..., Awaitable[None]], *, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Message, receive: Callable[[], Awaitable[Message]], send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        too_large = HTTPException(413, f"body: allowed {self._max_bytes} bytes; send a shorter one")
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._max_bytes:
                raise too_large  # the application's own handler gives it the form of all errors
            return message

        await self._app(scope, counted, send)
