"""The unmodified `openai` client against scripted replicas that are slow, full or dying."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from live import wait_until
from openai_backend import ASK, REPLY, events_of
from scripted import FLOOD, PIECE

from pipeline.dialogue import Query, Reply
from streamkv import errors


class SlowAnswerer:
    """Tells pieces until it is cancelled."""

    def __init__(self) -> None:
        self.ended = threading.Event()

    def answer(self, query: Query, cancelled: threading.Event, on_text: Callable[[str], None]) -> Reply:
        on_text("a")
        try:
            while query.question == "go on":
                time.sleep(0.01)
                if cancelled.is_set():
                    raise RuntimeError("cancelled")
                on_text(".")
            if query.question == "fail":
                raise errors.StoreError("no")
            return REPLY
        finally:
            self.ended.set()


class SlowDesk:
    """In place of the one that has a model."""

    def __init__(self, answerer: SlowAnswerer) -> None:
        self._answerer, self._thread = answerer, ThreadPoolExecutor(1)

    def ask(self, *asked: Any) -> Future[Reply]:
        return self._thread.submit(self._answerer.answer, *asked)


def replica_of(answerer: SlowAnswerer) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray Serve uses what pydantic deprecates
        from pipeline import app

    replica = object.__new__(app.Answer.func_or_class)
    replica._desk = SlowDesk(answerer)
    return replica


def test_a_replica_tells_all_pieces_then_the_reply_or_the_error() -> None:
    async def words(question: str) -> list[str | Reply]:
        return [piece async for piece in replica_of(SlowAnswerer()).words(Query("lobby", question))]

    assert asyncio.run(words("what")) == ["a", REPLY]
    with pytest.raises(errors.StoreError):
        asyncio.run(words("fail"))


def test_a_replica_whose_asker_left_stops() -> None:
    answerer = SlowAnswerer()

    async def leave() -> None:
        words = replica_of(answerer).words(Query("lobby", "go on"))
        assert await anext(words) == "a"
        assert not answerer.ended.is_set()
        await words.aclose()

    asyncio.run(leave())
    assert answerer.ended.wait(30)


# ---- scripted replicas on a real Serve

SCRIPTED_TIMEOUT_S = 25


class Scripted:
    def __init__(self, folder: Path, url: str) -> None:
        self.folder, self.url = folder, url

    def ask(self, question: str, *, stream: bool = True) -> httpx.Response:
        body = {**ASK, "messages": [{"role": "user", "content": question}], "stream": stream}
        return httpx.post(f"{self.url}/v1/chat/completions", json=body, timeout=4 * SCRIPTED_TIMEOUT_S)


@pytest.fixture(scope="module")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scripted]:
    folder = tmp_path_factory.mktemp("scripted")
    script = Path(__file__).with_name("scripted.py")
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, str(script), str(folder), str(SCRIPTED_TIMEOUT_S)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
        )
        try:
            wait_until(lambda: (folder / "url").exists() or process.poll() is not None, 240)
            assert process.poll() is None, (folder / "log").read_text()
            yield Scripted(folder, (folder / "url").read_text())
        finally:
            process.communicate()  # closes its stdin, and waits


@pytest.mark.ray
def test_questions_beyond_the_queue_are_told_when_to_come_back(scripted: Scripted) -> None:
    """Two replicas take two each, and one waits. Of many at once Serve refuses more: being sent counts as waiting."""
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(scripted.ask, "wait", stream=i % 2 == 0) for i in range(8)]
        try:
            wait_until(lambda: sum(a.done() for a in asked) >= 3)
        finally:
            (scripted.folder / "go").touch()
        responses = [a.result() for a in asked]
    refused = [r for r in responses if r.status_code == 429]
    assert len(refused) >= 3
    for response in refused:
        assert int(response.headers["retry-after"]) > 0
        assert response.json()["error"]["code"] == "rate_limit_exceeded"
    answered = [r for r in responses if r not in refused]
    assert {r.status_code for r in answered} == {200}, "at least the first one was taken"


@pytest.mark.ray
def test_hanging_up_reaches_the_replica(scripted: Scripted) -> None:
    body = {**ASK, "messages": [{"role": "user", "content": "go on"}], "stream": True}
    with httpx.stream("POST", f"{scripted.url}/v1/chat/completions", json=body, timeout=60) as response:
        lines = response.iter_lines()
        for _ in range(8):
            next(lines)
        assert not (scripted.folder / "cancelled").exists()
    wait_until((scripted.folder / "cancelled").exists)


@pytest.mark.ray
def test_a_slow_reader_holds_nobody_up_and_misses_nothing(scripted: Scripted) -> None:
    body = {**ASK, "messages": [{"role": "user", "content": "flood"}], "stream": True}
    with httpx.stream("POST", f"{scripted.url}/v1/chat/completions", json=body, timeout=60) as response:
        lines = (line for line in response.iter_lines() if line)
        next(lines)
        for _ in range(5):
            assert scripted.ask("what", stream=False).status_code == 200
        *pieces, last = lines
    assert last == "data: [DONE]"
    assert sum(len(piece) for piece in pieces) > FLOOD * len(PIECE)


@pytest.mark.ray
def test_the_deadline_holds_before_and_within_the_answer(scripted: Scripted) -> None:
    with ThreadPoolExecutor(2) as pool:
        begun = pool.submit(scripted.ask, "stall")
        wait_until(
            lambda: any(scripted.folder.glob("waits never *"))
        )  # two sent at once can fill a queue of one
        whole = pool.submit(scripted.ask, "hang", stream=False)
        assert whole.result().status_code == 504
        assert whole.result().json()["error"]["code"] == "DeadlineError"
        *_, failure, done = events_of(begun.result())
        assert (failure["error"]["code"], done) == ("DeadlineError", "[DONE]")


@pytest.mark.ray
def test_a_replica_that_dies_before_the_first_piece_is_made_up_for(scripted: Scripted) -> None:
    events = events_of(scripted.ask("die at first"))
    assert (scripted.folder / "died").exists()
    assert [e["choices"][0]["delta"].get("content") for e in events[:-2]] == ["", "a", " b"]
    assert events[-2]["choices"][0]["finish_reason"] == "stop"
    assert events[-1] == "[DONE]"


@pytest.mark.ray
def test_a_replica_that_dies_within_the_answer_is_told_of(scripted: Scripted) -> None:
    *pieces, failure, done = events_of(scripted.ask("die later"))
    assert [p["choices"][0]["delta"]["content"] for p in pieces] == ["", "a"], "and not begun anew"
    assert failure["error"]["code"] == "WorkerLostError"
    assert done == "[DONE]"
