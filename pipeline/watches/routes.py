"""The routes, over a backend that knows the watches."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Annotated, Any, Protocol

from fastapi import APIRouter, Header, Query, Response
from fastapi.responses import StreamingResponse

from actors import views
from actors.views import WatchEventView, WatchView
from pipeline.http_errors import UNEXPECTED, status_of
from pipeline.watches.bodies import AddedWatch, NewWatch, Watch, WatchEvent, WatchList

PREFIX = "/v1/watches"
KEEP_ALIVE_S = 15.0
"""A connection on which nothing happens gets a comment this often, so that nobody in between takes it for dead."""
RETRY_MS = 2000
"""After which a client should connect again."""

AFTER = "only events of later segments than this one; default: all that there are, then new ones"


class Watching(Protocol):
    """What the routes need of a backend."""

    async def add_watch(self, new: views.NewWatch) -> tuple[WatchView, str]: ...

    async def watches(self, stream_id: str | None) -> list[WatchView]: ...

    async def watch(self, watch_id: str) -> WatchView: ...

    async def remove_watch(self, watch_id: str) -> None: ...

    def follow(
        self, watch_id: str, after: int, wait_s: float
    ) -> AsyncGenerator[WatchEventView | None, None]: ...


def make_router(backend: Watching) -> APIRouter:
    router = APIRouter(prefix=PREFIX, tags=["watches"])

    @router.post("", status_code=201)
    async def add_watch(new: NewWatch) -> AddedWatch:
        """Registers a question that is asked of each segment of the stream from now on."""
        view, secret = await backend.add_watch(
            views.NewWatch(
                new.stream,
                new.question,
                new.min_confidence,
                new.when_gone,
                new.webhook.url if new.webhook else "",
                (new.webhook.secret or "") if new.webhook else "",
            )
        )
        return AddedWatch(**Watch.of(view).model_dump(), secret=secret or None)

    @router.get("")
    async def list_watches(
        stream: Annotated[str | None, Query(max_length=64, description="only those of this one")] = None,
    ) -> WatchList:
        """All watches, the oldest first."""
        return WatchList(watches=[Watch.of(view) for view in await backend.watches(stream)])

    @router.get("/{watch_id}")
    async def get_watch(watch_id: str) -> Watch:
        """One watch, its last answer, and how its events fare."""
        return Watch.of(await backend.watch(watch_id))

    @router.delete("/{watch_id}", status_code=204)
    async def remove_watch(watch_id: str) -> Response:
        """Ends a watch; its events go with it."""
        await backend.remove_watch(watch_id)
        return Response(status_code=204)

    @router.get(
        "/{watch_id}/events",
        response_class=StreamingResponse,
        responses={200: {"model": WatchEvent, "content": {"text/event-stream": {}}}},
    )
    async def follow_watch(
        watch_id: str,
        after: Annotated[int, Query(ge=-1, le=2**31, description=AFTER)] = -1,
        last_event_id: Annotated[int | None, Header(ge=-1, le=2**31, description="as `after`")] = None,
    ) -> Any:
        """The watch's events, as they are fired: `change`, each with its segment as the id."""
        await backend.watch(watch_id)
        events = backend.follow(watch_id, after if last_event_id is None else last_event_id, KEEP_ALIVE_S)
        return StreamingResponse(
            _sent(events),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
        )

    return router


async def _sent(events: AsyncGenerator[WatchEventView | None, None]) -> AsyncIterator[str]:
    """Whatever ends them is an event `error`; a connection that ends without it was cut outside of this program."""
    async with aclosing(events):
        yield f"retry: {RETRY_MS}\n\n"  # so that the status is sent at once
        try:
            async for event in events:
                yield ": still here\n\n" if event is None else _event(event)
        except Exception as exc:
            yield last_event(exc)


def _event(view: WatchEventView) -> str:
    event = WatchEvent.of(view)
    return f"id: {event.segment}\nevent: change\ndata: {event.model_dump_json()}\n\n"


def last_event(exc: Exception) -> str:
    """Of those who follow; they may connect again."""
    is_ours = status_of(exc) != 500
    kind, message = (type(exc).__name__, str(exc)) if is_ours else ("InternalError", UNEXPECTED)
    data = {"error": {"type": kind, "message": message}}
    return f"event: error\ndata: {json.dumps(data)}\n\n"
