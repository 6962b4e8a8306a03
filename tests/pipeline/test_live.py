"""Streams in, answers out, on a real Ray: also while actors are killed."""

from __future__ import annotations

import asyncio
import json
import math
import socket
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from clips import steady, write_clip
from live import SAMPLE_FPS, SEGMENT_FRAMES, LiveServer, spans, wait_for_end, wait_until
from live_servers import Town, camera, free_port, needs_rtsp_server, process, rtsp_server

from pipeline.client import Client, ServerError
from streamkv.config import IngestConfig

pytestmark = pytest.mark.ray

QUESTION = "what is the colour of the bus"


@pytest.fixture
def client(server: LiveServer) -> Iterator[Client]:
    """With no stream registered, before and after."""
    with server.client() as client:
        yield client
        for stream in client.streams():
            client.remove_stream(stream["id"])


def expected_spans(seconds: float) -> list[tuple[float, float]]:
    """Segments of a film of that length."""
    step = SEGMENT_FRAMES / SAMPLE_FPS
    return [(k * step, min((k + 1) * step, seconds)) for k in range(math.ceil(seconds / step))]


def check_whole(server: LiveServer, stream_id: str, seconds: float) -> None:
    """Every frame is in one committed segment, and every committed byte is sound."""
    with server.store() as store:
        assert spans(store, stream_id) == expected_spans(seconds)
        assert store.stream(stream_id).num_source_frames == seconds * SAMPLE_FPS
        assert [p for p in store.verify() if p.stream_id == stream_id and p.kind != "extra"] == []


def test_several_streams_in_and_answers_out(server: LiveServer, client: Client, films: Path) -> None:
    for name in ("a", "b", "c"):
        client.add_stream(name, str(films / "short.mp4"))
    streams = wait_for_end(client, "a", "b", "c")
    assert {s["state"] for s in streams.values()} == {"done"}
    for name in streams:
        check_whole(server, name, 10)
        answer = client.ask(name, QUESTION)
        assert answer["as_of_s"] == 10
        assert answer["answer"]
        assert 0 < sum(e["weight"] for e in answer["evidence"]) <= 1.001
        assert answer["evidence"] == sorted(answer["evidence"], key=lambda e: -e["weight"])
        assert {e["segment"] for e in answer["evidence"]} <= set(range(len(expected_spans(10))))
        assert answer["timings_ms"]["total"] > 0
    stats = client.stats()
    assert {"decode_s", "encode_s", "segment_s", "prefill_s", "write_s", "commit_s"} <= set(stats)


def said(answer: dict[str, Any]) -> dict[str, Any]:
    """Without times; with weights to four digits, since their last bits depend on what is asked beside it."""
    evidence = [e | {"weight": round(e["weight"], 4)} for e in answer["evidence"]]
    confidence = answer["confidence"] and round(answer["confidence"], 4)
    return answer | {"timings_ms": 0, "evidence": evidence, "confidence": confidence}


def test_one_question_goes_to_all_streams(server: LiveServer, client: Client, films: Path) -> None:
    for name, film in (("a", "short.mp4"), ("b", "short.mp4"), ("c", "long.mp4")):
        client.add_stream(name, str(films / film))
    wait_for_end(client, "a", "b", "c")
    found = client.search(QUESTION)
    assert (found["searched"], found["skipped"]) == (3, [])
    assert {s["stream_id"] for s in found["streams"]} <= {"a", "b", "c"}
    for stream in found["streams"]:
        alone = client.ask(stream["stream_id"], QUESTION)
        assert said(stream["answer"]) == said(alone)
    late = client.search(QUESTION, start=60, answer=False)
    assert [(s["stream_id"], s["answer"]) for s in late["streams"]] == [("c", None)]
    assert [s["stream_id"] for s in late["skipped"]] == ["a", "b"]
    told = server.run(
        "search", QUESTION, "--stream", "a", "--stream", "c", "--top", "1", "--from", "4", "--json"
    )
    (best,) = json.loads(told.stdout)["streams"]
    assert best["stream_id"] in ("a", "c")
    assert all(moment["end_s"] > 4 for moment in best["moments"])
    shown = server.run("search", QUESTION, "--from", "60")
    assert "1 streams searched" in shown.stdout
    assert "not searched: b" in shown.stdout
    with pytest.raises(ServerError, match="nobody") as refused:
        client.search(QUESTION, ["a", "nobody"])
    assert refused.value.status == 404


def kept_frames(server: LiveServer, stream_id: str) -> list[tuple[int, ...]]:
    """Of each layer, for the first segment."""
    with server.store() as store:
        memory = store.reader(stream_id).refresh()
        tables = [memory.table(layer, np.array([0])) for layer in range(memory.geometry.num_layers)]
        found = [memory.gather(layer, t.segment_nos, t.slots) for layer, t in enumerate(tables)]
    return [blocks.frame_ids for blocks in found]


def test_each_stream_keeps_what_its_own_words_say(server: LiveServer, client: Client, films: Path) -> None:
    film = str(films / "short.mp4")
    words = {"plain": "", "again": "", "dogs": "red bus dog", "where": "where"}
    for name, guidance in words.items():
        own = ["--guidance", guidance] if guidance else []
        added = server.run("add", name, film, *own, "--wait", "--json")
        assert json.loads(added.stdout)["guidance"] == guidance, added.stdout
    listed = json.loads(server.run("ls", "--json").stdout)
    assert {s["id"]: s["guidance"] for s in listed} == words
    kept = {name: kept_frames(server, name) for name in words}
    assert kept["plain"] == kept["again"]
    assert len({str(kept[name]) for name in ("plain", "dogs", "where")}) == 3


def test_streams_come_and_go_while_others_run(server: LiveServer, client: Client, films: Path) -> None:
    client.add_stream("long", str(films / "long.mp4"))
    client.add_stream("doomed", str(films / "long.mp4"))
    wait_until(lambda: client.stream("long")["segments"] > 1 and client.stream("doomed")["segments"] > 1)
    client.add_stream("late", str(films / "short.mp4"))
    client.remove_stream("doomed")
    assert [s["id"] for s in client.streams()] == ["late", "long"]
    assert not (server.home.store / "streams" / "doomed").exists()
    assert client.ask("long", QUESTION)["as_of_s"] > 0, "a stream is asked while it is ingested"
    wait_for_end(client, "long", "late")
    check_whole(server, "long", 100)
    check_whole(server, "late", 10)
    client.add_stream("doomed", str(films / "short.mp4"))
    wait_for_end(client, "doomed")
    check_whole(server, "doomed", 10)


@needs_rtsp_server
def test_a_camera_that_moves_to_another_decoder_misses_nothing(
    server: LiveServer, client: Client, tmp_path: Path
) -> None:
    town, port = Town(tmp_path, scenes=20), free_port()
    with process(rtsp_server(port, town.quick)):
        for name in ("p", "q"):
            client.add_stream(name, f"rtsp://127.0.0.1:{port}/live")
        wait_until(lambda: min(stream["segments"] for stream in client.streams()) > 0)
        before = client.stats().get("handovers", 0)
        server.run("scale", "--encode", "2", "--wait")
        wait_until(lambda: client.stats().get("handovers", 0) > before)
        moved = client.stats()["handovers"] - before
        committed = {stream["id"]: stream["segments"] for stream in client.streams()}
        wait_until(lambda: all(s["segments"] > committed[s["id"]] for s in client.streams()))
        streams = client.streams()
        server.run("scale", "--encode", "1", "--wait")
    assert {stream["restarts"] for stream in streams} == {0}
    with server.store() as store:
        sessions = [[(p.epoch, p.start_s, p.end_s) for p in store.segments(s["id"], 0, 999)] for s in streams]
    moves = [(a, b) for places in sessions for a, b in pairwise(places) if a[0] != b[0]]
    assert len(moves) == moved == 1
    for (_, _, end_s), (_, start_s, _) in moves:
        assert end_s == start_s
    assert [stream["gaps"] for stream in streams] == [[], []]


def test_what_a_camera_shows_is_askable_before_its_segment_closes(client: Client, tmp_path: Path) -> None:
    """It shows eleven seconds at their pace, five segments and a half, then holds the line."""
    footage = write_clip(tmp_path / "door.ts", steady(11)).read_bytes()
    hung_up = threading.Event()

    def show_and_hold(connection: socket.socket, number: int) -> None:
        for chunk in np.array_split(np.frombuffer(footage, np.uint8), 44):
            connection.sendall(chunk.tobytes())
            time.sleep(0.25)
        hung_up.wait(60)

    def is_ahead_of_the_store() -> bool:
        answer, stream = client.ask("door", QUESTION), client.stream("door")
        newest = max(e["segment"] for e in answer["evidence"])
        return bool(answer["as_of_s"] > stream["as_of_s"] and newest >= stream["segments"] > 0)

    with camera(show_and_hold) as port:
        try:
            client.add_stream("door", f"tcp://127.0.0.1:{port}")
            wait_until(lambda: client.stream("door")["segments"] > 0)
            wait_until(is_ahead_of_the_store)
        finally:
            hung_up.set()


def test_the_command_line_adds_lists_asks_and_removes(
    server: LiveServer, client: Client, films: Path
) -> None:
    added = server.run("add", "cam", str(films / "short.mp4"), "--wait", "--json")
    assert (added.returncode, json.loads(added.stdout)["state"]) == (0, "done")
    assert [s["id"] for s in json.loads(server.run("ls", "--json").stdout)] == ["cam"]
    assert "cam" in server.run("ls").stdout
    asked = server.run("ask", "cam", QUESTION, "--json")
    assert json.loads(asked.stdout) | {"timings_ms": 0} == client.ask("cam", QUESTION) | {"timings_ms": 0}
    shown = server.run("ask", "cam", QUESTION).stdout
    assert "rests on" in shown
    assert "as of 0:10" in shown
    assert json.loads(server.run("rm", "cam", "--json").stdout) == {"removed": "cam"}
    again = server.run("rm", "cam")
    assert again.returncode == 1
    assert "unknown" in again.stderr
    up = json.loads(server.run("up", "--json").stdout)
    assert (up["was_up"], up["pid"]) == (True, server.record.pid)


@pytest.mark.parametrize(
    ("film", "words"),
    [
        ("nothing-here.mp4", "no such file"),
        ("text.mp4", "cannot be opened"),
        ("empty.mp4", "0 bytes"),
    ],
)
def test_what_is_no_video_is_refused_and_not_registered(
    client: Client, films: Path, film: str, words: str
) -> None:
    with pytest.raises(ServerError, match=words) as caught:
        client.add_stream("bad", str(films / film))
    assert (caught.value.status, caught.value.kind) == (422, "SourceError")
    assert client.streams() == []


def test_one_picture_is_a_stream_too(client: Client, films: Path) -> None:
    client.add_stream("one", str(films / "one.mp4"))
    stream = wait_for_end(client, "one")["one"]
    assert (stream["state"], stream["segments"], stream["source_frames"]) == ("done", 1, 1)
    assert client.ask("one", QUESTION)["answer"]


def test_a_cut_film_keeps_what_decodes_and_answers_tell_the_gap(client: Client, films: Path) -> None:
    client.add_stream("cut", str(films / "cut.mp4"))
    stream = wait_for_end(client, "cut")["cut"]
    assert stream["state"] == "done"
    assert 4 < stream["as_of_s"] < 18
    (gap,) = stream["gaps"]
    assert (gap["start_s"], gap["end_s"]) == (stream["as_of_s"], 20.0)
    assert client.ask("cut", QUESTION)["gaps"] == [gap]


def test_a_name_that_is_taken_or_unsafe_is_refused(client: Client, films: Path) -> None:
    client.add_stream("a", str(films / "short.mp4"))
    with pytest.raises(ServerError, match="exists already") as caught:
        client.add_stream("a", str(films / "short.mp4"))
    assert caught.value.status == 409
    for name in ("", "../a", "a/b", "x" * 65, "é", ".hidden"):
        with pytest.raises(ServerError, match="stream id") as caught:
            client.add_stream(name, str(films / "short.mp4"))
        assert caught.value.status == 422
    assert [s["id"] for s in client.streams()] == ["a"]


def test_questions_that_cannot_be_answered_are_4xx(client: Client, films: Path) -> None:
    with pytest.raises(ServerError, match="unknown") as caught:
        client.ask("nobody", QUESTION)
    assert (caught.value.status, caught.value.kind) == (404, "UnknownStreamError")
    client.add_stream("a", str(films / "short.mp4"))
    wait_for_end(client, "a")
    for question in ("", "   \n", "w" * 100_000):
        with pytest.raises(ServerError, match="question") as caught:
            client.ask("a", question)
        assert (caught.value.status, caught.value.kind) == (422, "QuestionError")
    raw = httpx.post(
        f"{client.url}/v1/streams/a/questions",
        content=b'{"question": "\xff"}',
        headers={"content-type": "application/json"},
    )
    assert raw.status_code in (400, 422)
    client.remove_stream("a")
    with pytest.raises(ServerError) as caught:
        client.ask("a", QUESTION)
    assert caught.value.status == 404


def test_credentials_are_shown_nowhere(server: LiveServer, client: Client) -> None:
    with pytest.raises(ServerError) as caught:
        client.add_stream("cam", "rtsp://bob:hunter2@127.0.0.1:1/live?token=hunter2")
    assert "127.0.0.1:1" in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert "hunter2" not in server.home.log.read_text()


@pytest.mark.filterwarnings("ignore:.*unclosed <socket")  # of askers who hang up while they connect
@pytest.mark.filterwarnings("ignore:Exception ignored in.*socket:pytest.PytestUnraisableExceptionWarning")
def test_of_a_thousand_askers_those_who_stay_are_answered_or_told_to_come_back(
    client: Client, films: Path
) -> None:
    """Every other one hangs up while it waits."""
    client.add_stream("a", str(films / "short.mp4"))
    wait_for_end(client, "a")
    truth = client.ask("a", QUESTION)["answer"]

    async def ask(http: httpx.AsyncClient, *, leaves: bool) -> int | None:
        asked = asyncio.create_task(http.post("/v1/streams/a/questions", json={"question": QUESTION}))
        if leaves:
            await asyncio.wait([asked], timeout=0.2)
            asked.cancel()
            return None
        response = await asked
        if response.status_code == 429:
            assert int(response.headers["retry-after"]) > 0
        else:
            assert response.json()["answer"] == truth
        return response.status_code

    async def ask_all() -> list[int | None]:
        nothing = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=client.url, timeout=240, limits=nothing) as http:
            return await asyncio.gather(*(ask(http, leaves=i % 2 == 1) for i in range(1000)))

    statuses = [status for status in asyncio.run(ask_all()) if status is not None]
    assert len(statuses) == 500
    assert set(statuses) <= {200, 429}
    assert statuses.count(200) >= 16
    assert client.ask("a", QUESTION)["answer"] == truth, "and nothing is stuck"


def test_ingest_is_less_urgent_than_answers(server: LiveServer) -> None:
    def niceness(name: str) -> set[int]:
        return {process.nice() for process in server.processes(f"ray::{name}")}

    (answers,) = niceness("ServeReplica:streamkv:Answer")
    room = min(19, answers + IngestConfig().nice)
    assert (niceness("Prefill"), niceness("DecodeEncode")) == ({room}, {room})


@pytest.mark.parametrize("name", ["Prefill", "DecodeEncode", "StoreActor", "SupervisorFront"])
def test_an_actor_that_is_killed_costs_no_segment(
    server: LiveServer, client: Client, films: Path, name: str
) -> None:
    client.add_stream("a", str(films / "long.mp4"))
    client.add_stream("b", str(films / "long.mp4"))
    wait_until(lambda: min(s["segments"] for s in client.streams()) > 2)
    before = {s["id"]: s["segments"] for s in client.streams()}
    old = server.kill(name)

    def both_went_on() -> bool:
        try:
            return all(s["segments"] > before[s["id"]] + 4 for s in client.streams())
        except ServerError as exc:  # while the supervisor is being restarted
            if exc.status != 503:
                raise
            return False

    wait_until(both_went_on)
    streams = wait_for_end(client, "a", "b")
    assert {s["state"] for s in streams.values()} == {"done"}
    assert old not in [p.pid for p in server.processes()]
    for stream_id in ("a", "b"):
        check_whole(server, stream_id, 100)
