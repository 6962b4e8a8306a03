"""A scripted backend for the routes in OpenAI's form, and a server of it without Ray."""

from __future__ import annotations

import asyncio
import copy
import json
import threading
from collections.abc import AsyncGenerator
from typing import Any

import httpx
import uvicorn
from live import wait_until
from test_api import FakeBackend

from pipeline.api import make_api
from pipeline.dialogue import Query, Reply
from pipeline.schemas import Answer, Evidence, Gap, Span
from pipeline.server import usable_port

ANSWER = Answer(
    answer="a red bus",
    evidence=[Evidence(segment=2, start_s=1.0, end_s=2.0, weight=0.5, frame="/v1/f", clip="/v1/c")],
    as_of_s=28.0,
    timings_ms={"total": 12.5},
    gaps=[Gap(start_s=4.0, end_s=6.0, reason="2 pictures did not decode")],
    span=Span(start_s=0.0, end_s=None, words=None),
)
REPLY = Reply(ANSWER, prompt_tokens=11, completion_tokens=3, finish="stop")
DETAILS = {**ANSWER.model_dump(exclude={"answer"}), "stream_id": "lobby", "ignored": []}
JSON = {"content-type": "application/json"}
ASK: dict[str, Any] = {
    "model": "streamkv/lobby",
    "messages": [{"role": "user", "content": "what is the colour of the bus"}],
}


class Backend(FakeBackend):
    """Answers "a red bus"; raises `error` before the first piece, `late_error` after it."""

    def __init__(self) -> None:
        super().__init__()
        self.late_error: Exception | None = None
        self.is_endless = False
        self.was_closed = threading.Event()

    async def reply(self, query: Query) -> Reply:
        self._raise()
        self.queries.append(query)
        return copy.deepcopy(REPLY)

    async def words(self, query: Query) -> AsyncGenerator[str | Reply, None]:
        self._raise()
        self.queries.append(query)
        try:
            yield "a"
            if self.late_error is not None:
                raise self.late_error
            while self.is_endless:
                await asyncio.sleep(0.01)
                yield "."
            yield " réd"
            yield copy.deepcopy(REPLY)
        finally:
            self.was_closed.set()


class Served:
    """The routes on a port of this machine, without Ray."""

    def __init__(self, backend: Backend) -> None:
        port = usable_port("127.0.0.1", 0)
        config = uvicorn.Config(make_api(backend), port=port, log_level="error", ws="none", lifespan="off")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run)
        self.url = f"http://127.0.0.1:{port}"

    def __enter__(self) -> Served:
        self._thread.start()
        wait_until(lambda: self._server.started)
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.should_exit = True
        self._thread.join()


def events_of(response: httpx.Response) -> list[Any]:
    """The data of each event, parsed but for [DONE]."""
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in response.read().decode().split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    return [line[6:] if line == "data: [DONE]" else json.loads(line[6:]) for line in lines]
