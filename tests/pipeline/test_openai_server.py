"""The unmodified `openai` client against the real thing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import httpx
import openai
import pytest
from live import LiveServer, wait_for_end
from openai_backend import ASK
from PIL import Image


@pytest.fixture(scope="module")
def lobby(server: LiveServer, films: Path) -> Iterator[str]:
    """A stream of 10 s, and the server's address."""
    with server.client() as client:
        client.add_stream("lobby", str(films / "short.mp4"))
        wait_for_end(client, "lobby")
        yield server.record.url
        client.remove_stream("lobby")


@pytest.fixture
def real(lobby: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{lobby}/v1", api_key="none", max_retries=0, timeout=120) as client:
        yield client


@pytest.mark.ray
def test_the_pieces_are_the_whole_and_the_native_route_agrees(
    real: openai.OpenAI, server: LiveServer
) -> None:
    whole = real.chat.completions.create(**ASK)
    chunks = list(real.chat.completions.create(**ASK, stream=True, stream_options={"include_usage": True}))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content != ""
    assert chunks[-1].usage == whole.usage
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 8
    assert whole.choices[0].finish_reason == "length"
    details = chunks[-2].streamkv
    assert details | {"timings_ms": 0} == whole.streamkv | {"timings_ms": 0}
    with server.client() as client:
        native = client.ask("lobby", ASK["messages"][0]["content"])
    assert native["answer"] == text
    assert native["evidence"] == details["evidence"]
    assert (details["as_of_s"], native["as_of_s"]) == (10, 10)


@pytest.mark.ray
def test_an_answer_is_from_the_span_that_is_named(real: openai.OpenAI, server: LiveServer) -> None:
    """Segments are two seconds long."""

    def read(question: str = "what is the bus", **beside: Any) -> tuple[set[float], Any]:
        messages: Any = [{"role": "user", "content": question}]
        done = real.chat.completions.create(
            model="streamkv/lobby", messages=messages, max_tokens=2, extra_body=beside
        )
        return {e["start_s"] for e in done.streamkv["evidence"]}, done.streamkv["span"]

    assert read() == ({0.0, 2.0, 4.0, 6.0, 8.0}, None)
    span = {"start_s": 4.0, "end_s": 7.0, "words": None}
    assert read(**{"from": 4, "to": "7"}) == ({4.0, 6.0}, span)
    words = "in the last five seconds"
    assert read(f"what is the bus {words}") == (
        {4.0, 6.0, 8.0},
        {"start_s": 5.0, "end_s": None, "words": words},
    )
    with server.client() as client:
        spoken, named = (
            client.ask("lobby", "what is the bus " + words),
            client.ask("lobby", "what is the bus", start=5),
        )
    assert spoken["evidence"] == named["evidence"], "the words are not asked"
    assert read(f"what is the bus {words}", **{"from": 4, "to": 7}) == ({4.0, 6.0}, span)
    asked = server.run("ask", "lobby", "what is the bus", "--from", "4", "--to", "7", "--json")
    assert json.loads(asked.stdout)["span"] == span
    shown = server.run("ask", "lobby", f"what is the bus {words}")
    assert f"looked at 0:05 to the end only ({words})" in shown.stdout
    for wrong, message in (
        ({"from": 11}, "nothing of this stream is from 0:00:11 on; its footage spans 0:00:00 to 0:00:10"),
        ({"from": 7, "to": 4}, "`from` must come before `to`"),
        ({"from": "2026-01-31T14:07"}, "when this stream was recorded is not known"),
        ({"to": "noon"}, "allowed seconds of the stream or an ISO time"),
    ):
        with pytest.raises(openai.BadRequestError, match=message):
            read(**wrong)


@pytest.mark.ray
def test_a_follow_up_is_answered_in_its_context(real: openai.OpenAI) -> None:
    """The same last words cost the tokens of the turns before them, and are answered otherwise."""
    said = [{"role": "user", "content": "how many dog"}, {"role": "assistant", "content": "blue green two"}]
    alone = real.chat.completions.create(**ASK)
    after = real.chat.completions.create(**{**ASK, "messages": [*said, *ASK["messages"]]})
    assert alone.usage is not None
    assert after.usage is not None
    assert after.usage.prompt_tokens >= alone.usage.prompt_tokens + 6
    weights = [[e["weight"] for e in done.streamkv["evidence"]] for done in (alone, after)]
    assert weights[0] != weights[1]


@pytest.mark.ray
def test_what_cannot_be_answered_has_openais_errors(
    real: openai.OpenAI, server: LiveServer, films: Path
) -> None:
    long = "w " * 100_000
    for messages in (
        [{"role": "user", "content": long}],
        [{"role": "user", "content": "  "}],
        [{"role": "user", "content": long}, {"role": "assistant", "content": "red"}, *ASK["messages"]],
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            real.chat.completions.create(**{**ASK, "messages": messages})
        assert caught.value.code == "QuestionError"
    with server.client() as client:
        client.add_stream("gone", str(films / "short.mp4"))
        client.remove_stream("gone")
    for name in ("gone", "nobody"):
        with pytest.raises(openai.NotFoundError, match="unknown"):
            real.chat.completions.create(**{**ASK, "model": f"streamkv/{name}"}, stream=True)
    assert [m.id for m in real.models.list()] == ["streamkv/lobby"]


@pytest.mark.ray
def test_segments_and_pictures_of_a_stream(lobby: str) -> None:
    def page(after: int) -> Any:
        return httpx.get(f"{lobby}/v1/streams/lobby/segments", params={"after": after, "limit": 3}).json()

    first, second = page(-1), page(2)
    assert (first["next_after"], second["next_after"]) == (2, None)
    spans = [(s["segment"], s["start_s"], s["end_s"]) for s in first["segments"] + second["segments"]]
    assert spans == [(k, 2.0 * k, 2.0 * k + 2) for k in range(5)]
    for at_s in (0.0, 3.0, 9.5):
        frame = httpx.get(f"{lobby}/v1/streams/lobby/frames", params={"at_s": at_s})
        with Image.open(BytesIO(frame.content)) as image:
            grey = image.convert("L").getpixel((32, 60))
        assert abs(grey - round(at_s * 10) % 200) <= 12, "the clip's grey tells its time"
    late = httpx.get(f"{lobby}/v1/streams/lobby/frames", params={"at_s": 11})
    assert (late.status_code, late.json()["error"]["type"]) == (422, "SourceError")
    for path in ("segments", "frames?at_s=1", "clip.mp4?from=1&to=2"):
        assert httpx.get(f"{lobby}/v1/streams/nobody/{path}").status_code == 404


@pytest.mark.ray
def test_an_answer_links_to_its_footage(real: openai.OpenAI, server: LiveServer, tmp_path: Path) -> None:
    done = real.chat.completions.create(**ASK, extra_body={"thumbnails": True})
    evidence = done.streamkv["evidence"][0]
    assert evidence["thumbnail"].startswith("data:image/jpeg;base64,")
    clip = httpx.get(server.record.url + evidence["clip"])
    assert clip.status_code == 200, clip.text
    start_s, end_s = (float(clip.headers[f"x-{side}-seconds"]) for side in ("start", "end"))
    assert start_s <= evidence["start_s"] < evidence["end_s"] <= end_s
    with av.open(BytesIO(clip.content)) as container:
        shades = [
            (float(i.pts * i.time_base), i.to_ndarray(format="rgb24")[60, 32, 0])
            for i in container.decode(video=0)
        ]
    assert len(shades) == round(8 * (end_s - start_s))
    for time_s, shade in shades:
        assert abs(int(shade) - round((start_s + time_s) * 10)) <= 12, "the clip's grey tells its time"
    with httpx.Client(base_url=server.record.url) as http:
        assert http.get(evidence["frame"]).headers["content-type"] == "image/jpeg"
        for wrong in ("from=11&to=12", "from=2&to=2", "from=0&to=9000"):
            refused = http.get(f"/v1/streams/lobby/clip.mp4?{wrong}")
            assert (refused.status_code, refused.json()["error"]["type"]) == (422, "SourceError")
    asked = server.run("ask", "lobby", "what is the bus", "--clips", str(tmp_path / "clips"))
    assert "see it: http://" in asked.stdout
    saved = sorted((tmp_path / "clips").iterdir())
    assert [path.name for path in saved] == [f"lobby-{no}.mp4" for no in range(5)]
    assert all(path.stat().st_size > 1000 for path in saved)


@pytest.mark.ray
def test_one_question_goes_to_several_streams(real: openai.OpenAI, server: LiveServer, films: Path) -> None:
    with server.client() as client:
        client.add_stream("yard", str(films / "short.mp4"))
        wait_for_end(client, "yard")
        native = client.search(ASK["messages"][0]["content"], ["yard", "lobby"])
        done = real.chat.completions.create(
            **{**ASK, "model": "streamkv"}, extra_body={"streams": ["yard", "lobby"]}
        )
        client.remove_stream("yard")
    told = {s["stream_id"]: s["answer"]["answer"] for s in native["streams"]}
    assert set(told) == {"yard", "lobby"}
    content = done.choices[0].message.content
    assert content == "\n".join(f"{name}: {told[name]}" for name in told)
    assert [s["stream_id"] for s in done.streamkv["streams"]] == list(told)
    assert done.usage is not None
    assert done.usage.completion_tokens == 16


@pytest.mark.ray
def test_a_stream_is_encoded_again_while_it_answers(server: LiveServer, films: Path) -> None:
    """With all frames in place of two in five."""
    with server.client() as client:
        client.add_stream("hall", str(films / "short.mp4"), "buses")
        wait_for_end(client, "hall")
        before, small = client.ask("hall", "what is the bus"), client.stream("hall")
        done = server.run("reencode", "hall", "--guidance", "", "--keep", "1", "--wait", "--json")
        assert done.returncode == 0, done.stdout + done.stderr
        stream = json.loads(done.stdout)
        assert (stream["id"], stream["guidance"], stream["keep_ratio"], stream["reencode"]) == (
            "hall",
            "",
            1,
            None,
        )
        assert (stream["segments"], stream["state"]) == (small["segments"], "done")
        assert stream["kv_bytes"] > small["kv_bytes"]
        after = client.ask("hall", "what is the bus")
        assert [e["weight"] for e in after["evidence"]] != [e["weight"] for e in before["evidence"]]
        assert {e["start_s"] for e in after["evidence"]} == {e["start_s"] for e in before["evidence"]}
        assert after["evidence"][0]["clip"].startswith("/v1/streams/hall/clip.mp4?")
        assert len(client.search("what is the bus", ["hall"], answer=False)["streams"]) == 1
        for refused in (["--cancel"], ["--model", "/models/other"]):
            assert server.run("reencode", "hall", *refused).returncode == 1
        client.remove_stream("hall")
    assert not list(server.home.store.glob("streams/hall*/*"))


@pytest.mark.ray
def test_a_real_replica_killed_within_an_answer_is_told_of_and_replaced(
    real: openai.OpenAI, server: LiveServer
) -> None:
    before = real.chat.completions.create(**ASK)
    body = {**ASK, "stream": True, "max_tokens": 4096}
    with httpx.stream("POST", f"{server.record.url}/v1/chat/completions", json=body, timeout=120) as response:
        lines = response.iter_lines()
        for _ in range(8):
            next(lines)
        server.kill("ServeReplica:streamkv:Answer")
        rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]"
    assert json.loads(rest[-2].removeprefix("data: "))["error"]["code"] == "WorkerLostError"
    after = real.chat.completions.create(**ASK)
    assert after.choices == before.choices
