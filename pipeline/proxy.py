"""What Serve's own proxy makes of an ingress that dies under a request: it asks the next one, or says so in our form.

The proxy's process outlives the ingress. Ray has a place for ASGI middleware in it, which an environment variable names
(pipeline/cluster.py), and calls `middlewares` there. Behind HAProxy there is no such place.
"""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.middleware import Middleware
from starlette.responses import JSONResponse

from actors.failures import WorkerLostError
from pipeline import http_errors, openai, watches
from pipeline.api import MAX_BODY_BYTES
from pipeline.http_errors import OverloadedError

TRIES = 2
"""Ingresses that are asked. A request that kills its ingress has no more of them, and those that waited with it."""
RETRY_PAUSE_S = 0.2

ASKING = re.compile(rf"{openai.CHAT}|/v1/search|/v1/streams/[^/]+/questions")
"""What changes nothing, though it is a POST."""
OF_SERVE = "/-/"
"""Paths that the proxy answers by itself."""
FOR_SERVE = (b"x-request-timeout-seconds", b"x-request-disconnect-disabled")
"""Headers by which anybody could have Serve cut an answer off, or go on with one that nobody hears."""
REQUEST_ID = b"x-request-id"

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


def middlewares() -> list[Middleware]:
    """What Ray asks for."""
    return [Middleware(WholeReplies)]


class WholeReplies:
    """Each reply is whole, or says that it is not.

    A request is made once more of the next ingress, as long as no reply has begun and making it twice does no harm.
    Events that stop coming end with an error event of their own kind; the ingress sends whole events. Other bodies that
    were begun, which have a length, stay cut: any client sees that.
    """

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(OF_SERVE):
            await self._app(scope, receive, send)
            return
        scope = _named(scope)
        request = _Request(receive, keep=_may_be_repeated(scope))
        for attempt in range(1, TRIES + 1):
            reply = _Reply(send)
            await self._app(dict(scope), request.from_start(), reply.hear)
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise asyncio.CancelledError  # which Serve keeps to itself
            trouble = reply.trouble
            if trouble is None or request.is_given_up:
                return
            if reply.is_begun:
                await send({"type": "http.response.body", "body": reply.last_events(scope["path"], trouble)})
                return
            if attempt == TRIES or not (isinstance(trouble, WorkerLostError) and request.is_kept):
                await _refusal(scope, trouble)(scope, receive, send)
                return
            await asyncio.sleep(RETRY_PAUSE_S)


def _named(scope: Message) -> Message:
    """With one id for all tries, the asker's own if there is one, and without what is Serve's alone to say."""
    headers = [(name, value) for name, value in scope["headers"] if name not in FOR_SERVE]
    if REQUEST_ID not in dict(headers):
        headers.append((REQUEST_ID, str(uuid.uuid4()).encode()))
    return {**scope, "headers": headers}


def _may_be_repeated(scope: Message) -> bool:
    if scope["method"] == "POST":
        return ASKING.fullmatch(scope["path"]) is not None
    return scope["method"] in ("GET", "HEAD", "PUT")


class _Request:
    """What has come of it, to be read again."""

    def __init__(self, receive: Receive, *, keep: bool) -> None:
        self._receive = receive
        self._body = bytearray()
        self._is_read = self._has_more = False
        self.is_kept = keep
        self.is_given_up = False
        """Whether the asker has gone."""

    def from_start(self) -> Receive:
        is_told = not self._is_read

        async def next_message() -> Message:
            nonlocal is_told
            if not is_told:
                is_told = True
                return {"type": "http.request", "body": bytes(self._body), "more_body": self._has_more}
            message = await self._receive()
            self._note(message)
            return message

        return next_message

    def _note(self, message: Message) -> None:
        if message["type"] == "http.disconnect":
            self.is_given_up = True
        elif self.is_kept:
            self._is_read, self._has_more = True, message.get("more_body", False)
            self._body += message.get("body", b"")
            if len(self._body) > MAX_BODY_BYTES:  # which no ingress takes
                self.is_kept = False
                self._body.clear()


class _Reply:
    """Passes on what is the ingress's own."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._is_refused = self._is_lost = self._is_whole = self._has_events = False
        self._last_piece = b""
        self.is_begun = False

    async def hear(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            kind = dict(message.get("headers", ())).get(b"content-type", b"")
            self._has_events = kind.startswith(b"text/event-stream")
            if kind.startswith(b"text/plain"):  # our own errors are JSON, all of them
                self._is_lost = message["status"] in (500, 503)
                self._is_refused = message["status"] == 429
        if self._is_lost or self._is_refused:
            return
        self.is_begun = True
        if message["type"] == "http.response.body":
            self._is_whole = not message.get("more_body", False)
            self._last_piece = message.get("body", b"")
        await self._send(message)

    @property
    def trouble(self) -> Exception | None:
        """What the asker is to be told, now that no more will come; None: nothing, or there is no way to tell."""
        if self._is_refused:
            return OverloadedError("too many requests wait already; ask again a little later")
        is_cut = not self._is_whole and (not self.is_begun or self._has_events)
        return WorkerLostError("the process that had the request died; ask again") if is_cut else None

    def last_events(self, path: str, trouble: Exception) -> bytes:
        """What events that were begun lack; nothing, if they had come to their own end."""
        if self._last_piece.endswith(openai.DONE.encode()):
            return b""
        events = watches.last_event if path.startswith(watches.PREFIX) else openai.last_events
        return events(trouble).encode()


def _refusal(scope: Message, trouble: Exception) -> JSONResponse:
    of_openai = scope["path"].startswith(openai.PATHS)
    response = openai.response_to(trouble) if of_openai else http_errors.response_to(trouble)
    response.headers["X-Request-ID"] = dict(scope["headers"])[REQUEST_ID].decode("latin-1")
    return response
