"""The HTTP routes. Knows neither Ray nor the engine: a `Backend` does the work."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Annotated, Any, Protocol

from fastapi import FastAPI, HTTPException, Query, Response
from fastapi.responses import JSONResponse, StreamingResponse

from actors.views import PlaneState, PoolView, Reencoding, StreamView
from pipeline import dialogue, http_errors, openai, watches
from pipeline.dialogue import ClipHead, Picture
from pipeline.keys import KeyFile
from pipeline.schemas import (
    Answer,
    ErrorResponse,
    Health,
    NewSizes,
    NewStream,
    Pool,
    PoolList,
    Question,
    Reencode,
    Search,
    SearchResult,
    SegmentList,
    Stream,
    StreamList,
)
from pipeline.thumbnails import add_thumbnails

MAX_BODY_BYTES = 1_000_000
"""Longer bodies are refused: no question or URI is near it."""

MAX_SEGMENTS = 10_000
"""Of one page."""
FREE = ("/healthz", "/docs", "/openapi.json")
"""Paths that need no key: they say nothing of a stream, and probes have none."""

Message = dict[str, Any]


class Backend(openai.Asking, watches.Watching, Protocol):
    async def state(self) -> PlaneState: ...

    async def add_stream(
        self, stream_id: str, uri: str, guidance: str, tenant: str, priority: int
    ) -> StreamView: ...

    async def remove_stream(self, stream_id: str) -> None: ...

    async def reencode(self, stream_id: str, new: Reencoding) -> StreamView: ...

    async def cancel_reencode(self, stream_id: str) -> StreamView: ...

    async def segments(self, stream_id: str, after: int, limit: int) -> SegmentList: ...

    async def picture(self, stream_id: str, at_s: float, width: int | None) -> Picture: ...

    def clip(
        self, stream_id: str, start_s: float, end_s: float
    ) -> AsyncGenerator[ClipHead | bytes, None]: ...

    async def pools(self) -> list[PoolView]: ...

    async def scale(self, sizes: dict[str, int]) -> list[PoolView]: ...

    async def stats(self) -> dict[str, float]: ...


def make_api(backend: Backend, keys: KeyFile | None = None, *, is_open: bool = True) -> FastAPI:
    """The application. Errors of `streamkv.errors` that the backend raises become 4xx with one form.

    `keys` are asked for as soon as there is one; unless `is_open`, even before.
    """
    app = FastAPI(
        title="StreamKV",
        version="1",
        summary="Ask many video streams anything",
        responses={"4XX": {"model": ErrorResponse}, "5XX": {"model": ErrorResponse}},
    )
    http_errors.install(app)
    app.add_middleware(BodyLimit, max_bytes=MAX_BODY_BYTES)
    if keys is not None:
        app.add_middleware(KeyCheck, keys=keys, is_open=is_open)  # the last one added is the first to look

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
        view = await backend.add_stream(new.id, new.uri, new.guidance, new.tenant, new.priority)
        return Stream.of(view)

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

    @app.post("/v1/streams/{stream_id}/reencode", status_code=202)
    async def reencode(stream_id: str, new: Reencode) -> Stream:
        """Ingests a stream's source again, beside what is stored of it, which answers until the new is whole."""
        how = Reencoding(new.guidance, new.keep_ratio, new.model)
        return Stream.of(await backend.reencode(stream_id, how))

    @app.delete("/v1/streams/{stream_id}/reencode")
    async def cancel_reencode(stream_id: str) -> Stream:
        """Gives that up; the stream stays as it was."""
        return Stream.of(await backend.cancel_reencode(stream_id))

    @app.post("/v1/streams/{stream_id}/questions")
    async def ask(stream_id: str, question: Question) -> Answer:
        """Answers a question from what the stream has shown so far, or in the span that is named."""
        query = dialogue.Query(
            stream_id,
            question.question,
            max_new_tokens=question.max_new_tokens,
            start=question.start,
            end=question.end,
        )
        answer = (await backend.reply(query)).answer
        if question.thumbnails:
            await add_thumbnails(backend.thumbnails, stream_id, answer)
        return answer

    @app.post("/v1/search")
    async def search(search: Search) -> SearchResult:
        """Finds the streams that have shown what a question is about, and asks each of the best."""
        query = dialogue.SearchQuery(
            search.question,
            None if search.streams == "*" else tuple(dict.fromkeys(search.streams)),
            max_streams=search.max_streams,
            answer=search.answer,
            max_new_tokens=search.max_new_tokens,
            start=search.start,
            end=search.end,
        )
        found = (await backend.search(query)).result
        for stream in found.streams if search.thumbnails else ():
            if stream.answer is not None:
                await add_thumbnails(backend.thumbnails, stream.stream_id, stream.answer)
        return found

    @app.get("/v1/streams/{stream_id}/segments")
    async def list_segments(
        stream_id: str,
        after: Annotated[int, Query(ge=-1, le=2**31, description="`next_after` of the page before")] = -1,
        limit: Annotated[int, Query(ge=1, le=MAX_SEGMENTS)] = 1000,
    ) -> SegmentList:
        """The committed segments, a page at a time."""
        return await backend.segments(stream_id, after, limit)

    @app.get(
        "/v1/streams/{stream_id}/frames",
        response_class=Response,
        responses={
            200: {"content": {"image/jpeg": {}}, "headers": {"X-At-Seconds": {"schema": {"type": "number"}}}}
        },
    )
    async def get_frame(
        stream_id: str,
        at_s: Annotated[
            float,
            Query(ge=0, le=1e9, allow_inf_nan=False, description="stream time", examples=[143.0]),
        ],
        width: Annotated[
            int | None, Query(ge=16, le=4096, description="in pixels; a wider picture is made smaller")
        ] = None,
    ) -> Response:
        """The picture on show at a time, from the source; `X-At-Seconds` is later where footage is missing."""
        picture = await backend.picture(stream_id, at_s, width)
        return Response(picture.jpeg, media_type="image/jpeg", headers={"X-At-Seconds": f"{picture.at_s:g}"})

    @app.get("/v1/pools")
    async def list_pools() -> PoolList:
        """The actors of each stage of ingest, and how many streams each has."""
        return PoolList(pools=[Pool.of(view) for view in await backend.pools()])

    @app.put("/v1/pools")
    async def scale(sizes: NewSizes) -> PoolList:
        """Sets the size of pools, also for later; actors start and end, and streams move, while it is ingested."""
        named = sizes.model_dump(exclude_none=True)
        return PoolList(pools=[Pool.of(view) for view in await backend.scale(named)])

    @app.get(
        "/v1/streams/{stream_id}/clip.mp4",
        response_class=StreamingResponse,
        responses={
            200: {
                "content": {"video/mp4": {}},
                "headers": {
                    "X-Start-Seconds": {"schema": {"type": "number"}},
                    "X-End-Seconds": {"schema": {"type": "number"}},
                    "X-Clip": {"schema": {"enum": ["copied", "encoded"]}},
                },
            }
        },
    )
    async def get_clip(
        stream_id: str,
        start: Annotated[
            float, Query(alias="from", ge=0, le=1e9, allow_inf_nan=False, description="stream time")
        ],
        end: Annotated[
            float, Query(alias="to", ge=0, le=1e9, allow_inf_nan=False, description="stream time")
        ],
    ) -> StreamingResponse:
        """A span of the source's footage as MP4, without sound, from the keyframe before it (`X-Start-Seconds`)."""
        pieces = backend.clip(stream_id, start, end)
        head = await anext(pieces)  # until here an error has a status of its own
        assert isinstance(head, ClipHead)
        headers = {
            "Content-Length": str(head.num_bytes),
            "Content-Disposition": f'inline; filename="{stream_id}-{start:g}-{end:g}.mp4"',
            "X-Start-Seconds": f"{head.start_s:.3f}",
            "X-End-Seconds": f"{head.end_s:.3f}",
            "X-Clip": head.how,
        }
        return StreamingResponse(_bytes_of(pieces), media_type="video/mp4", headers=headers)

    @app.get("/v1/stats")
    async def stats() -> dict[str, float]:
        """Seconds and counts of each ingest stage since its workers started."""
        return await backend.stats()

    app.include_router(watches.make_router(backend))
    app.include_router(openai.make_router(backend))
    return app


async def _bytes_of(pieces: AsyncGenerator[ClipHead | bytes, None]) -> AsyncGenerator[bytes, None]:
    async with aclosing(pieces):
        async for piece in pieces:
            assert isinstance(piece, bytes)
            yield piece


class KeyCheck:
    """Lets through who has a key: everybody, while there is none and the server `is_open`."""

    def __init__(self, app: Callable[..., Awaitable[None]], *, keys: KeyFile, is_open: bool) -> None:
        self._app = app
        self._keys = keys
        self._is_open = is_open

    async def __call__(self, scope: Message, receive: Callable[[], Awaitable[Message]], send: Any) -> None:
        if scope["type"] == "lifespan" or scope["path"] in FREE or self._admits(scope):
            await self._app(scope, receive, send)
        else:
            await _refusal(scope["path"])(scope, receive, send)

    def _admits(self, scope: Message) -> bool:
        if self._is_open and not self._keys.all():
            return True
        given = [value.decode("latin-1") for name, value in scope["headers"] if name == b"authorization"]
        if len(given) != 1:
            return False
        scheme, _, key = given[0].partition(" ")
        return scheme.lower() == "bearer" and self._keys.admits(key.strip())


def _refusal(path: str) -> JSONResponse:
    message = "no valid key; send the header `Authorization: Bearer KEY`. `streamkv keys add NAME` makes one"
    if path.startswith("/v1/"):
        body = openai.error_body(message, "invalid_request_error", code="invalid_api_key")
    else:
        body = {"error": {"type": "AuthenticationError", "message": message}}
    return JSONResponse(body, 401, {"WWW-Authenticate": "Bearer"})


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
