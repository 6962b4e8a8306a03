"""A small client of the HTTP API."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
from httpx_sse import EventSource

from pipeline.keys import key_from_environment

Json = dict[str, Any]
TIMEOUT_S = 120.0
SILENCE_S = 45.0
"""Of a connection that waits for events: the server says every 15 s that it is there."""
RECONNECT_S = 2.0
RECONNECTS = 5
"""In a row that do not last."""
STEADY_S = 20.0
"""A connection that lasts so long is one that works, though nothing may happen on it."""


class ServerError(Exception):
    """The server answered with an error."""

    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind


class NotRunningError(Exception):
    """Nothing answers at the server's address."""


class Client:
    """One server; as a context manager, so that its connections close.

    `api_key`: None is that of STREAMKV_API_KEY, if there is one.
    """

    def __init__(
        self, url: str, *, api_key: str | None = None, transport: httpx.BaseTransport | None = None
    ) -> None:
        self.url = url
        key = key_from_environment() if api_key is None else api_key
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=TIMEOUT_S, transport=transport)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self._http.close()

    def add_stream(
        self, stream_id: str, uri: str, guidance: str = "", tenant: str = "", priority: int = 1
    ) -> Json:
        new = {"id": stream_id, "uri": uri, "guidance": guidance, "tenant": tenant, "priority": priority}
        return self._call("POST", "/v1/streams", new)

    def streams(self) -> list[Json]:
        streams: list[Json] = self._call("GET", "/v1/streams")["streams"]
        return streams

    def stream(self, stream_id: str) -> Json:
        return self._call("GET", f"/v1/streams/{quote(stream_id, safe='')}")

    def remove_stream(self, stream_id: str) -> None:
        self._call("DELETE", f"/v1/streams/{quote(stream_id, safe='')}")

    def reencode(
        self,
        stream_id: str,
        guidance: str | None = None,
        *,
        keep_ratio: float | None = None,
        model: str = "",
    ) -> Json:
        """Begins to encode a stream again; what is None stays as it is."""
        new = {"guidance": guidance, "keep_ratio": keep_ratio, "model": model}
        return self._call("POST", f"/v1/streams/{quote(stream_id, safe='')}/reencode", new)

    def cancel_reencode(self, stream_id: str) -> Json:
        return self._call("DELETE", f"/v1/streams/{quote(stream_id, safe='')}/reencode")

    def ask(
        self,
        stream_id: str,
        question: str,
        max_new_tokens: int | None = None,
        *,
        start: float | str | None = None,
        end: float | str | None = None,
    ) -> Json:
        """`start`, `end`: the part of the past to look at, in seconds of the stream or ISO times."""
        body = {"question": question, "max_new_tokens": max_new_tokens, "from": start, "to": end}
        return self._call("POST", f"/v1/streams/{quote(stream_id, safe='')}/questions", body)

    def search(
        self,
        question: str,
        streams: Sequence[str] = (),
        *,
        max_streams: int = 5,
        answer: bool = True,
        max_new_tokens: int | None = None,
        start: float | str | None = None,
        end: float | str | None = None,
    ) -> Json:
        """Which of these streams, or of all, have shown it; `answer`: and what each of them answers."""
        body = {
            "question": question,
            "streams": list(streams) or "*",
            "max_streams": max_streams,
            "answer": answer,
            "max_new_tokens": max_new_tokens,
            "from": start,
            "to": end,
        }
        return self._call("POST", "/v1/search", body)

    def add_watch(
        self,
        stream_id: str,
        question: str,
        *,
        min_confidence: float | None = None,
        when_gone: bool = False,
        webhook: str = "",
        secret: str = "",
    ) -> Json:
        """`webhook`: a URL that each event is posted to; `secret`: what signs it, empty: the server makes one."""
        body: Json = {
            "stream": stream_id,
            "question": question,
            "min_confidence": min_confidence,
            "when_gone": when_gone,
        }
        if webhook:
            body["webhook"] = {"url": webhook, "secret": secret or None}
        return self._call("POST", "/v1/watches", body)

    def watches(self, stream_id: str = "") -> list[Json]:
        """All, or those of one stream."""
        query = f"?stream={quote(stream_id, safe='')}" if stream_id else ""
        watches: list[Json] = self._call("GET", f"/v1/watches{query}")["watches"]
        return watches

    def watch(self, watch_id: str) -> Json:
        return self._call("GET", f"/v1/watches/{quote(watch_id, safe='')}")

    def remove_watch(self, watch_id: str) -> None:
        self._call("DELETE", f"/v1/watches/{quote(watch_id, safe='')}")

    def follow_watch(self, watch_id: str, after: int = -1) -> Iterator[Json]:
        """Events of segments after that number, as they are fired: each once, whatever cuts the connection.

        Ends with an error alone: ServerError, such as when the watch is removed, or NotRunningError.
        """
        failures, why = 0, ""
        while failures <= RECONNECTS:
            begun = time.monotonic()
            try:
                for kind, data in self._events(watch_id, after):
                    if kind == "error":
                        is_over = data["error"]["type"] == "UnknownWatchError"
                        raise ServerError(404 if is_over else 503, **_words(data["error"]))
                    if kind == "change":
                        failures = 0
                        after = data["segment"]
                        yield data
                why = "the connection was cut"
            except ServerError as exc:
                if exc.status not in (429, 503):
                    raise
                why = str(exc)
            except httpx.TransportError as exc:
                why = type(exc).__name__
            was_steady = time.monotonic() - begun >= STEADY_S
            failures = 1 if was_steady else failures + 1
            time.sleep(RECONNECT_S)
        raise NotRunningError(f"server {self.url}: it gives no more events ({why}); see: streamkv watch ls")

    def _events(self, watch_id: str, after: int) -> Iterator[tuple[str, Json]]:
        """What one connection brings."""
        path = f"/v1/watches/{quote(watch_id, safe='')}/events"
        headers = {"Last-Event-ID": str(after)}
        timeout = httpx.Timeout(TIMEOUT_S, read=SILENCE_S)
        with self._http.stream("GET", path, headers=headers, timeout=timeout) as response:
            if not response.is_success:
                response.read()
                raise _error_of(response)
            for event in EventSource(response).iter_sse():
                if event.data:
                    yield event.event, json.loads(event.data)

    def pools(self) -> list[Json]:
        pools: list[Json] = self._call("GET", "/v1/pools")["pools"]
        return pools

    def scale(self, encode: int | None = None, prefill: int | None = None) -> list[Json]:
        """Sets the size of pools; 0: as the configuration and the load have it; None: as it is."""
        pools: list[Json] = self._call("PUT", "/v1/pools", {"encode": encode, "prefill": prefill})["pools"]
        return pools

    def save(self, link: str, path: Path) -> None:
        """Writes what is behind an answer's link, such as its clip, whole or not at all."""
        partial = path.with_name(f".{path.name}.tmp")
        try:
            with self._http.stream("GET", link) as response, partial.open("wb") as file:
                if not response.is_success:
                    response.read()
                    raise _error_of(response)
                for chunk in response.iter_bytes():
                    file.write(chunk)
            partial.replace(path)
        except httpx.TransportError as exc:
            raise self._silent(exc) from exc
        finally:
            partial.unlink(missing_ok=True)

    def stats(self) -> dict[str, float]:
        return self._call("GET", "/v1/stats")

    def _call(self, method: str, path: str, body: Json | None = None) -> Json:
        try:
            response = self._http.request(method, path, json=body)
        except httpx.TransportError as exc:
            raise self._silent(exc) from exc
        if response.is_success:
            return dict(response.json()) if response.content else {}
        raise _error_of(response)

    def _silent(self, exc: httpx.TransportError) -> NotRunningError:
        return NotRunningError(
            f"server {self.url}: no answer ({type(exc).__name__}); start it with: streamkv up"
        )


def _words(error: Json) -> Json:
    return {"kind": error["type"], "message": error["message"]}


def _error_of(response: httpx.Response) -> ServerError:
    try:
        error = response.json()["error"]
        return ServerError(response.status_code, **_words(error))
    except (ValueError, KeyError, TypeError):
        return ServerError(response.status_code, "HTTPError", response.text[:500])
