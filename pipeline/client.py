"""A small client of the HTTP API."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from pipeline.keys import key_from_environment

Json = dict[str, Any]
TIMEOUT_S = 120.0


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

    def add_stream(self, stream_id: str, uri: str, guidance: str = "", tenant: str = "") -> Json:
        new = {"id": stream_id, "uri": uri, "guidance": guidance, "tenant": tenant}
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


def _error_of(response: httpx.Response) -> ServerError:
    try:
        error = response.json()["error"]
        return ServerError(response.status_code, error["type"], error["message"])
    except (ValueError, KeyError, TypeError):
        return ServerError(response.status_code, "HTTPError", response.text[:500])
