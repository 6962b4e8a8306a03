"""What the proxy makes of an ingress that dies: here it is a script of what each one does before it is gone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

import pytest
from starlette.responses import JSONResponse, PlainTextResponse

from pipeline import proxy
from pipeline.http_errors import RETRY_AFTER_S
from pipeline.proxy import Message, WholeReplies

CHAT = "/v1/chat/completions"
Ingress = Callable[[Message, Any, Any], Awaitable[None]]


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy, "RETRY_PAUSE_S", 0.0)


async def silent(scope: Message, receive: Any, send: Any) -> None:
    """Dies before a word: Serve's proxy then sends nothing at all."""
    await receive()


async def echo(scope: Message, receive: Any, send: Any) -> None:
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message["body"], message.get("more_body", False)
    await JSONResponse({"asked": body.decode()})(dict(scope), receive, send)


def of_serve(status: int) -> Ingress:
    return PlainTextResponse("Serve's own words", status)


def begun(media_type: str, *pieces: bytes) -> Ingress:
    """Dies in the middle of what it sends."""

    async def ingress(scope: Message, receive: Any, send: Any) -> None:
        headers = [(b"content-type", media_type.encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for piece in pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})

    return ingress


class Exchange:
    """One request to the proxy, before which each try finds the next ingress."""

    def __init__(
        self,
        *ingresses: Ingress,
        method: str = "POST",
        path: str = CHAT,
        body: tuple[bytes, ...] = (b"?",),
        headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        self.scopes: list[Message] = []
        """As each try has got it."""
        self.sent: list[Message] = []
        self._ingresses = ingresses
        self._incoming: list[Message] = [
            {"type": "http.request", "body": piece, "more_body": i < len(body)}
            for i, piece in enumerate(body, 1)
        ]
        scope = {"type": "http", "method": method, "path": path, "headers": list(headers)}
        asyncio.run(WholeReplies(self._next)(scope, self._receive, self._send))

    async def _next(self, scope: Message, receive: Any, send: Any) -> None:
        self.scopes.append(scope)
        await self._ingresses[self.tries - 1](scope, receive, send)

    async def _receive(self) -> Message:
        return self._incoming.pop(0) if self._incoming else {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        self.sent.append(message)

    @property
    def tries(self) -> int:
        return len(self.scopes)

    @property
    def status(self) -> int:
        (start,) = [m["status"] for m in self.sent if m["type"] == "http.response.start"]
        return int(start)

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.sent[0]["headers"])

    @property
    def body(self) -> bytes:
        return b"".join(m["body"] for m in self.sent[1:])

    @property
    def is_whole(self) -> bool:
        return not self.sent[-1].get("more_body", False)


@pytest.mark.parametrize("death", [silent, of_serve(500), of_serve(503)])
def test_a_question_is_asked_of_the_next_ingress(death: Ingress) -> None:
    found = Exchange(death, echo, body=(b"how many ", b"buses?"))
    assert (found.tries, found.status) == (2, 200)
    assert json.loads(found.body) == {"asked": "how many buses?"}


@pytest.mark.parametrize("path", [CHAT, "/v1/search", "/v1/streams/lobby/questions"])
def test_asking_is_repeated_only_so_often_and_then_told(path: str) -> None:
    found = Exchange(silent, silent, path=path)
    assert (found.tries, found.status) == (proxy.TRIES, 503)
    error = json.loads(found.body)["error"]
    assert "died; ask again" in error["message"]
    assert ("param" in error) == (path == CHAT), "each in the form of its own errors"
    assert found.headers[b"retry-after"] == str(RETRY_AFTER_S).encode()


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/v1/streams"), ("DELETE", "/v1/streams/lobby"), ("POST", "/v1/streams/lobby/reencode")],
)
def test_what_changes_something_is_not_done_twice(method: str, path: str) -> None:
    found = Exchange(silent, method=method, path=path)
    assert (found.tries, found.status) == (1, 503)


@pytest.mark.parametrize(("method", "path"), [("GET", "/v1/streams"), ("PUT", "/v1/pools")])
def test_what_may_be_done_twice_is(method: str, path: str) -> None:
    assert Exchange(silent, echo, method=method, path=path).status == 200


def test_events_that_were_begun_end_with_an_error_and_done() -> None:
    found = Exchange(begun("text/event-stream; charset=utf-8", b'data: {"a": 1}\n\n'), echo)
    assert found.tries == 1, "what was sent cannot be taken back"
    events = found.body.decode().split("\n\n")
    assert events[0] == 'data: {"a": 1}'
    assert "died; ask again" in json.loads(events[1].removeprefix("data: "))["error"]["message"]
    assert events[2:] == ["data: [DONE]", ""]
    assert found.is_whole


def test_events_that_had_come_to_their_end_are_only_closed() -> None:
    found = Exchange(begun("text/event-stream", b"data: [DONE]\n\n"))
    assert (found.body, found.is_whole) == (b"data: [DONE]\n\n", True)


def test_who_follows_a_watch_hears_an_error_event() -> None:
    path = "/v1/watches/w/events"
    found = Exchange(begun("text/event-stream", b"retry: 2000\n\n"), method="GET", path=path)
    assert b"event: error\ndata: " in found.body
    assert b"[DONE]" not in found.body
    assert found.is_whole


@pytest.mark.parametrize("given", [[], [(b"x-request-id", b"mine")]])
def test_all_tries_and_the_refusal_have_one_id(given: list[tuple[bytes, bytes]]) -> None:
    found = Exchange(silent, silent, headers=given)
    ids = {dict(scope["headers"])[b"x-request-id"] for scope in found.scopes}
    assert ids == {found.headers[b"x-request-id"]}
    assert not given or ids == {b"mine"}


def test_nobody_tells_serve_when_to_give_up() -> None:
    given = [
        (b"x-request-timeout-seconds", b"0.1"),
        (b"x-request-disconnect-disabled", b"1"),
        (b"accept", b"*/*"),
    ]
    (scope,) = Exchange(echo, headers=given).scopes
    assert set(dict(scope["headers"])) == {b"accept", b"x-request-id"}


def test_who_is_cancelled_asks_nobody_else() -> None:
    async def swallows(scope: Message, receive: Any, send: Any) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(1)

    with pytest.raises(asyncio.CancelledError):
        Exchange(swallows, echo)


@pytest.mark.parametrize("media_type", ["application/json", "video/mp4"])
def test_a_head_without_its_body_is_not_taken_for_a_death(media_type: str) -> None:
    found = Exchange(begun(media_type), echo)
    assert (found.tries, found.status) == (1, 200)


def test_another_body_that_was_begun_stays_cut() -> None:
    found = Exchange(begun("video/mp4", b"half"), echo, method="GET", path="/v1/streams/lobby/clip.mp4")
    assert (found.tries, found.body, found.is_whole) == (1, b"half", False)


def test_serves_own_refusal_gets_our_form() -> None:
    found = Exchange(of_serve(429), echo)
    assert (found.tries, found.status) == (1, 429)
    assert json.loads(found.body)["error"]["code"] == "rate_limit_exceeded"
    assert found.headers[b"retry-after"] == str(RETRY_AFTER_S).encode()


def test_our_own_errors_pass() -> None:
    found = Exchange(JSONResponse({"error": {}}, 503), echo)
    assert (found.tries, found.status, found.body) == (1, 503, b'{"error":{}}')


def test_who_has_hung_up_is_not_asked_for_again() -> None:
    async def hears_it(scope: Message, receive: Any, send: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    found = Exchange(hears_it, echo)
    assert (found.tries, found.sent) == (1, [])


def test_a_body_too_long_to_keep_is_not_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def read_and_die(scope: Message, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass

    monkeypatch.setattr(proxy, "MAX_BODY_BYTES", 5)
    found = Exchange(read_and_die, echo, body=(b"123", b"456", b"7"))
    assert (found.tries, found.status) == (1, 503)


@pytest.mark.parametrize("path", ["/-/healthz", "/-/routes"])
def test_what_the_proxy_answers_by_itself_is_let_be(path: str) -> None:
    found = Exchange(of_serve(503), method="GET", path=path)
    assert (found.tries, found.status, found.body) == (1, 503, b"Serve's own words")
