"""Replicas are killed, added and taken away under questions, behind each proxy: nobody sees more than a pause."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import httpx
import pytest
from live import SETTINGS, LiveServer, wait_for_end, wait_until
from openai_backend import ASK

pytestmark = pytest.mark.ray

EVERY_S = 3.0
ANSWER, INGRESS = "ray::ServeReplica:streamkv:Answer", "ray::ServeReplica:streamkv:Api"
VICTIMS = {"serve": (ANSWER, ANSWER, INGRESS), "haproxy": (ANSWER, ANSWER)}
"""Behind HAProxy nobody outlives the ingress."""
SHORT, LONG = 8, 200  # tokens: the long ones are still being told when their replica dies


@dataclass
class Outcomes:
    """What askers got; every list is of those that have no place in it when all is well, but for the first."""

    answers: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)  # whole answers that are none
    cut: list[str] = field(default_factory=list)  # streams that end without a word
    told: list[str] = field(default_factory=list)  # streams that end with an error, and say so


@pytest.fixture(params=["serve", "haproxy"])
def proxy(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def two_replicas(proxy: str, tmp_path: Path, tiny_checkpoint: Path, films: Path) -> Iterator[LiveServer]:
    scaling = ("serve.replicas=2", "serve.max_replicas=3", "serve.scale_up_s=2", "serve.scale_down_s=3")
    small = ("serve.batch_questions=1", f"serve.max_new_tokens={LONG}")
    live = LiveServer(tmp_path / "home", tiny_checkpoint, *SETTINGS, f"serve.proxy={proxy}", *scaling, *small)
    try:
        live.up()
        with live.client() as client:
            client.add_stream("lobby", str(films / "short.mp4"))
            wait_for_end(client, "lobby")
        yield live
    finally:
        live.discard()


def ask_whole(url: str, stop: threading.Event, found: Outcomes) -> None:
    with httpx.Client(timeout=120) as client:
        while not stop.is_set():
            response = client.post(f"{url}/v1/chat/completions", json={**ASK, "max_tokens": SHORT})
            if response.status_code == 200:
                found.answers.append(response.json()["choices"][0]["message"]["content"])
            else:
                found.failures.append(f"{response.status_code} {response.text}")


def ask_in_pieces(url: str, stop: threading.Event, found: Outcomes) -> None:
    body = {**ASK, "stream": True, "max_tokens": LONG}
    with httpx.Client(timeout=120) as client:
        while not stop.is_set():
            try:
                with client.stream("POST", f"{url}/v1/chat/completions", json=body) as response:
                    lines = [line for line in response.iter_lines() if line]
            except httpx.TransportError as exc:
                found.cut.append(repr(exc))
                continue
            if response.status_code != 200 or lines[-1] != "data: [DONE]":
                found.cut.append("\n".join(lines))
            elif "error" in json.loads(lines[-2].removeprefix("data: ")):
                found.told.append(lines[-2])


def kill_one(server: LiveServer, kind: str) -> int:
    """The replica that has lived longest, so that each gets its turn; how many that was."""
    replicas = sorted(server.processes(kind), key=lambda process: process.create_time())
    for replica in replicas[:1]:
        os.kill(replica.pid, signal.SIGKILL)
    return len(replicas[:1])


def test_replicas_that_die_come_and_go_cost_no_answer(two_replicas: LiveServer, proxy: str) -> None:
    url, few, stop, found = two_replicas.record.url, threading.Event(), threading.Event(), Outcomes()
    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask, url, few, found) for ask in (ask_whole, ask_in_pieces, ask_in_pieces)]
        asking.append(pool.submit(ask_whole, url, stop, found))
        try:
            for kind in VICTIMS[proxy]:
                time.sleep(EVERY_S)
                # A slow machine may have none at the moment.
                wait_until(partial(kill_one, two_replicas, kind))
            wait_until(lambda: len(two_replicas.processes(ANSWER)) == 3)
            few.set()
            wait_until(lambda: len(two_replicas.processes(ANSWER)) == 2)
        finally:
            few.set()
            stop.set()
        for each in asking:
            each.result()
    assert found.answers
    assert len(set(found.answers)) == 1, "whichever replica answers"
    assert (found.failures, found.cut) == ([], [])
