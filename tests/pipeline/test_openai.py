"""The unmodified `openai` client against a scripted backend, scripted replicas that die, and the real thing."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import uvicorn
from live import LiveServer, wait_for_end, wait_until
from PIL import Image
from test_api import VIEW, FakeBackend

from pipeline.api import make_api
from pipeline.dialogue import Picture, Query, Reply
from pipeline.http_errors import DeadlineError, OverloadedError
from pipeline.schemas import Answer, Evidence, Gap, Segment, SegmentList
from pipeline.server import usable_port
from streamkv import errors
from streamkv.conversation import Turn

ANSWER = Answer(
    answer="a red bus",
    evidence=[Evidence(segment=2, start_s=1.0, end_s=2.0, weight=0.5)],
    as_of_s=28.0,
    timings_ms={"total": 12.5},
    gaps=[Gap(start_s=4.0, end_s=6.0, reason="2 pictures did not decode")],
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
        self.queries: list[Query] = []
        self.late_error: Exception | None = None
        self.is_endless = False
        self.was_closed = threading.Event()

    async def reply(self, query: Query) -> Reply:
        self._raise()
        self.queries.append(query)
        return REPLY

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
            yield REPLY
        finally:
            self.was_closed.set()

    async def segments(self, stream_id: str, after: int, limit: int) -> SegmentList:
        sizes = {"frames": 1, "source_frames": 1, "kv_bytes": limit, "file_bytes": 1}
        return SegmentList(
            segments=[Segment(segment=after + 1, start_s=0, end_s=1, **sizes)], next_after=None
        )

    async def picture(self, stream_id: str, at_s: float) -> Picture:
        return Picture(b"jpeg", at_s + 0.5)


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


@pytest.fixture(scope="module")
def _served() -> Iterator[tuple[Backend, str]]:
    backend = Backend()
    with Served(backend) as served:
        yield backend, served.url


@pytest.fixture
def backend(_served: tuple[Backend, str]) -> Backend:
    _served[0].__init__()
    return _served[0]


@pytest.fixture
def url(backend: Backend, _served: tuple[Backend, str]) -> str:
    return _served[1]


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


def events_of(response: httpx.Response) -> list[Any]:
    """The data of each event, parsed but for [DONE]."""
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in response.read().decode().split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    return [line[6:] if line == "data: [DONE]" else json.loads(line[6:]) for line in lines]


# ---- the form


def test_a_whole_answer(client: openai.OpenAI, backend: Backend) -> None:
    done = client.chat.completions.create(**ASK, max_tokens=7)
    assert done.choices[0].message.content == "a red bus"
    assert (done.choices[0].finish_reason, done.object, done.model) == (
        "stop",
        "chat.completion",
        "streamkv/lobby",
    )
    assert done.usage is not None
    assert (done.usage.prompt_tokens, done.usage.completion_tokens, done.usage.total_tokens) == (11, 3, 14)
    assert done.model_extra == {"streamkv": DETAILS}
    assert backend.queries == [Query("lobby", "what is the colour of the bus", max_new_tokens=7)]


@pytest.mark.parametrize("with_usage", [True, False])
def test_an_answer_piece_by_piece(client: openai.OpenAI, with_usage: bool) -> None:
    options: Any = {"stream_options": {"include_usage": True}} if with_usage else {}
    chunks = list(client.chat.completions.create(**ASK, stream=True, **options))
    assert {c.id for c in chunks} == {chunks[0].id}
    told = [c.choices[0] for c in chunks if c.choices]
    assert [c.delta.role for c in told] == ["assistant", None, None, None]
    assert [c.delta.content for c in told] == ["", "a", " réd", None]
    assert [c.finish_reason for c in told] == [None, None, None, "stop"]
    last = chunks[len(told) - 1]
    assert last.model_extra == {"streamkv": DETAILS}
    assert [c.usage.total_tokens for c in chunks if c.usage] == ([14] if with_usage else [])
    assert len(chunks) == (5 if with_usage else 4)


@pytest.mark.parametrize(
    ("named", "stream_id"),
    [
        ({"model": "streamkv/lobby"}, "lobby"),
        ({"model": "streamkv", "extra_body": {"stream_id": "lobby"}}, "lobby"),
        ({"model": "streamkv/lobby", "extra_body": {"stream_id": "lobby"}}, "lobby"),
        ({"model": "streamkv"}, None),
        ({"model": "streamkv/"}, None),
        ({"model": "streamkv/lobby", "extra_body": {"stream_id": "yard"}}, None),
        ({"model": "gpt-5"}, None),
    ],
)
def test_the_stream_is_named_by_a_field_or_as_the_model(
    client: openai.OpenAI, backend: Backend, named: dict[str, Any], stream_id: str | None
) -> None:
    if stream_id is None:
        with pytest.raises((openai.BadRequestError, openai.NotFoundError)) as caught:
            client.chat.completions.create(**{**ASK, **named})
        assert caught.value.param == "stream_id"
        assert backend.queries == []
    else:
        client.chat.completions.create(**{**ASK, **named})
        assert backend.queries[0].stream_id == stream_id


def test_earlier_turns_come_before_the_question(client: openai.OpenAI, backend: Backend) -> None:
    messages: Any = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "which"}, {"type": "text", "text": "bus?"}]},
        {"role": "assistant", "content": "the red one"},
        {"role": "user", "content": ""},
        {"role": "user", "content": "where is it?"},
    ]
    client.chat.completions.create(model="streamkv/lobby", messages=messages)
    assert backend.queries == [
        Query(
            "lobby",
            "where is it?",
            (Turn("user", "be brief"), Turn("user", "which\nbus?"), Turn("assistant", "the red one")),
        )
    ]


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"max_completion_tokens": -5}, "max_completion_tokens"),
        ({"max_completion_tokens": 10**12}, "max_completion_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": "many"}, "max_tokens"),
        ({"n": 2}, "n"),
        ({"tools": [{"type": "function", "function": {"name": "look"}}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"logprobs": True}, "logprobs"),
        ({"stop": "\n"}, "stop"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "assistant", "content": "red"}]}, "messages"),
        ({"messages": [{"role": "oracle", "content": "red"}]}, "messages"),
        ({"messages": [{"role": "tool", "content": "red", "tool_call_id": "1"}]}, "messages"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages"),
        ({"messages": [{"role": "user", "content": ["what"]}]}, "messages"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages",
        ),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(
    client: openai.OpenAI, backend: Backend, wrong: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**{**ASK, **wrong})
    assert caught.value.type == "invalid_request_error"
    assert caught.value.param == param
    assert caught.value.code
    assert param in caught.value.message
    assert backend.queries == []


def test_half_of_a_character_is_refused(url: str, backend: Backend) -> None:
    """JSON can carry it; no tokenizer takes it."""
    body = json.dumps({**ASK, "messages": [{"role": "user", "content": "\ud83d"}]})
    response = httpx.post(f"{url}/v1/chat/completions", content=body, headers=JSON)
    assert response.status_code == 400
    assert "half of a character" in response.json()["error"]["message"]
    assert backend.queries == []


def test_sampling_has_no_effect_and_the_reply_says_so(client: openai.OpenAI) -> None:
    done = client.chat.completions.create(**ASK, temperature=0.7, top_p=1, seed=3, user="me", n=1)
    assert done.streamkv["ignored"] == ["seed", "temperature", "user"]
    done = client.chat.completions.create(**ASK, temperature=0, tools=[], response_format={"type": "text"})
    assert done.streamkv["ignored"] == []


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("error", "kind", "status", "code"),
    [
        (errors.UnknownStreamError("no"), openai.NotFoundError, 404, "stream_not_found"),
        (errors.QuestionError("no"), openai.BadRequestError, 400, "QuestionError"),
        (errors.StoreError("nothing is committed yet"), openai.ConflictError, 409, "StoreError"),
        (OverloadedError("no"), openai.RateLimitError, 429, "rate_limit_exceeded"),
        (DeadlineError("no"), openai.InternalServerError, 504, "DeadlineError"),
        (RuntimeError("secret /srv/x"), openai.InternalServerError, 500, None),
    ],
)
def test_errors_before_the_answer_have_a_status(
    client: openai.OpenAI,
    backend: Backend,
    stream: bool,
    error: Exception,
    kind: type[openai.APIStatusError],
    status: int,
    code: str | None,
) -> None:
    backend.error = error
    with pytest.raises(kind) as caught:
        client.chat.completions.create(**ASK, stream=stream)
    assert (caught.value.status_code, caught.value.code) == (status, code)
    assert isinstance(caught.value.body, dict)
    assert set(caught.value.body) == {"message", "type", "param", "code"}
    assert ("retry-after" in caught.value.response.headers) == (status == 429)
    assert "secret" not in caught.value.message


@pytest.mark.parametrize("error", [DeadlineError("too late"), RuntimeError("secret /srv/x")])
def test_an_error_after_the_first_piece_is_an_event_and_then_done(
    client: openai.OpenAI, url: str, backend: Backend, error: Exception
) -> None:
    backend.late_error = error
    with httpx.stream("POST", f"{url}/v1/chat/completions", json={**ASK, "stream": True}) as response:
        *_, piece, failure, done = events_of(response)
    assert piece["choices"][0]["delta"] == {"content": "a"}
    assert set(failure) == {"error"}
    assert done == "[DONE]"
    assert "secret" not in failure["error"]["message"]
    with pytest.raises(openai.APIError) as caught:
        list(client.chat.completions.create(**ASK, stream=True))
    assert caught.value.message == failure["error"]["message"]


def test_who_hangs_up_ends_the_answer(client: openai.OpenAI, backend: Backend) -> None:
    backend.is_endless = True
    chunks = client.chat.completions.create(**ASK, stream=True)
    next(chunks)
    assert not backend.was_closed.is_set()
    chunks.close()
    assert backend.was_closed.wait(30)


def test_a_body_that_is_too_long_or_no_json_has_the_form_too(url: str) -> None:
    for content, status in ((b"x" * 1_000_001, 413), (b"no json", 400), (b"[]", 400), (b"", 400)):
        response = httpx.post(f"{url}/v1/chat/completions", content=content, headers=JSON)
        assert response.status_code == status
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}


def test_models_are_the_streams(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert (model.id, model.owned_by) == ("streamkv/lobby", "streamkv")
    assert model.model_extra == {"streamkv": {"stream_id": "lobby", "state": VIEW.state, "as_of_s": 28.0}}
    assert client.models.retrieve("streamkv/lobby") == model
    for name in ("streamkv/yard", "gpt-5"):
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve(name)


def test_segments_and_frames(url: str) -> None:
    page = httpx.get(f"{url}/v1/streams/lobby/segments", params={"after": 4, "limit": 2}).json()
    assert (page["segments"][0]["segment"], page["segments"][0]["kv_bytes"], page["next_after"]) == (
        5,
        2,
        None,
    )
    frame = httpx.get(f"{url}/v1/streams/lobby/frames", params={"at_s": 3.25})
    assert (frame.content, frame.headers["content-type"], frame.headers["x-at-seconds"]) == (
        b"jpeg",
        "image/jpeg",
        "3.75",
    )
    for path in ("segments?limit=0", "segments?after=-2", "frames", "frames?at_s=-1", "frames?at_s=nan"):
        assert httpx.get(f"{url}/v1/streams/lobby/{path}").status_code == 422, path


def test_the_schema_shows_examples(url: str) -> None:
    document = httpx.get(f"{url}/openapi.json").json()
    assert set(document["paths"]) >= {"/v1/chat/completions", "/v1/models", "/v1/streams/{stream_id}/frames"}
    for name in ("ChatRequest", "ChatCompletion", "Segment"):
        assert document["components"]["schemas"][name]["examples"], name


# ---- an answering replica by itself


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


def replica_of(answerer: SlowAnswerer) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray Serve uses what pydantic deprecates
        from pipeline import app

    replica = object.__new__(app.Answer.func_or_class)
    replica._answerer, replica._thread = answerer, ThreadPoolExecutor(1)
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
def test_the_deadline_holds_before_and_within_the_answer(scripted: Scripted) -> None:
    with ThreadPoolExecutor(2) as pool:
        whole = pool.submit(scripted.ask, "hang", stream=False)
        begun = pool.submit(scripted.ask, "stall")
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


# ---- the real thing


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
    for path in ("segments", "frames?at_s=1"):
        assert httpx.get(f"{lobby}/v1/streams/nobody/{path}").status_code == 404


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
