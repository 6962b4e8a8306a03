"""What Serve's own proxy makes of an ingress that dies under a request: it asks the next one, or says so in our form.

The proxy's process outlives the ingress. Ray has a place for ASGI middleware in it, which an environment variable names
(pipeline/cluster.py), and calls `middlewares` there. Behind HAProxy there is no such place.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.middleware import Middleware
from starlette.responses import JSONResponse

from actors.failures import WorkerLostError
from pipeline import openai, watches
from pipeline.http_errors import RETRY_AFTER_S, OverloadedError, error_response, status_of

TRIES = 3
"""Ingresses that are asked before the asker hears that there is none."""
RETRY_PAUSE_S = 0.2
"""Before the second one; twice as long before the third."""
MAX_KEPT_BYTES = 2_000_000
"""Of a request's body, so that it can be sent again: more than the ingress takes."""

ASKING = re.compile(rf"{openai.CHAT}|/v1/search|/v1/streams/[^/]+/questions")
"""What changes nothing, though it is a POST."""

OF_SERVE = "/-/"
"""Paths that the proxy answers by itself."""

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


def middlewares() -> list[Middleware]:
    """What Ray asks for."""
    return [Middleware(WholeReplies)]


class WholeReplies:
    """Each reply is whole, or says that it is not.

    A request is made once more of the next ingress, as long as nothing of a reply has been sent and making it twice
    does no harm. Events that stop coming end with an error event of their own kind. Other bodies that were begun,
    which have a length, stay cut: any client sees that.
    """

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(OF_SERVE):
            await self._app(scope, receive, send)
            return
        request, path = _Request(receive), scope["path"]
        for attempt in range(1, TRIES + 1):
            reply = _Reply(send)
            await self._app(dict(scope), request.from_start(), reply.hear)
            trouble = reply.trouble
            if trouble is None or request.is_given_up:
                return
            if reply.is_begun:
                await send({"type": "http.response.body", "body": _last_events(path, trouble).encode()})
                return
            again = isinstance(trouble, WorkerLostError) and _may_be_repeated(scope) and request.is_kept
            if attempt == TRIES or not again:
                await _refusal(path, trouble)(scope, receive, send)
                return
            await asyncio.sleep(RETRY_PAUSE_S * attempt)


def _may_be_repeated(scope: Message) -> bool:
    if scope["method"] == "POST":
        return ASKING.fullmatch(scope["path"]) is not None
    return scope["method"] in ("GET", "HEAD", "PUT")


class _Request:
    """What has come of it, to be read again."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._kept: list[Message] = []
        self._bytes = 0
        self.is_given_up = False
        """Whether the asker has gone."""

    @property
    def is_kept(self) -> bool:
        return self._bytes <= MAX_KEPT_BYTES

    def from_start(self) -> Receive:
        seen = 0

        async def next_message() -> Message:
            nonlocal seen
            if seen == len(self._kept):
                message = await self._receive()
                self._bytes += len(message.get("body", b""))
                self.is_given_up = message["type"] == "http.disconnect"
                if not self.is_kept:
                    self._kept.clear()
                    seen = 0
                    return message
                self._kept.append(message)
            seen += 1
            return self._kept[seen - 1]

        return next_message


class _Reply:
    """Passes on what is the ingress's own. Its head waits for the first of its body."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._head: Message | None = None
        self._is_lost = self._is_refused = self._is_whole = False
        self.is_begun = False

    async def hear(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._head = message
            if _content_type(message).startswith("text/plain"):  # our own errors are JSON, all of them
                self._is_lost = message["status"] in (500, 503)
                self._is_refused = message["status"] == 429
        elif self._head is not None and not self._is_lost and not self._is_refused:
            if not self.is_begun:
                self.is_begun = True
                await self._send(self._head)
            self._is_whole = not message.get("more_body", False)
            await self._send(message)

    @property
    def trouble(self) -> Exception | None:
        """What the asker is to be told, now that no more will come; None: nothing, or there is no way to tell."""
        if self._is_refused:
            return OverloadedError("too many requests wait already; ask again a little later")
        is_cut = not self._is_whole and (not self.is_begun or self._has_events())
        return WorkerLostError("the process that had the request died; ask again") if is_cut else None

    def _has_events(self) -> bool:
        return self._head is not None and _content_type(self._head).startswith("text/event-stream")


def _content_type(head: Message) -> str:
    return next((value.decode("latin-1") for name, value in head["headers"] if name == b"content-type"), "")


def _last_events(path: str, trouble: Exception) -> str:
    """After a blank line, for the event before may not be whole."""
    events = watches.last_event if path.startswith(watches.PREFIX) else openai.last_events
    return f"\n\n{events(trouble)}"


def _refusal(path: str, trouble: Exception) -> JSONResponse:
    if path.startswith(openai.PATHS):
        status, body = openai.status_and_body(trouble)
        return JSONResponse(body, status, {"Retry-After": str(RETRY_AFTER_S)})
    return error_response(status_of(trouble), type(trouble).__name__, str(trouble))
