"""The unmodified `openai` client against a scripted backend: forms, refusals, errors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from openai_backend import ASK, DETAILS, JSON, Backend, Served, events_of
from test_api import FOUND, VIEW

from pipeline.dialogue import Query, SearchQuery
from pipeline.http_errors import DeadlineError, OverloadedError
from streamkv import errors
from streamkv.conversation import Turn


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


def test_extra_body_names_the_time_that_is_asked_about(client: openai.OpenAI, backend: Backend) -> None:
    done = client.chat.completions.create(**ASK, extra_body={"from": "2026-01-31T14:07:03", "to": 90})
    assert [(q.start, q.end) for q in backend.queries] == [("2026-01-31T14:07:03", 90)]
    assert done.streamkv["span"] == {"start_s": 0.0, "end_s": None, "words": None}
    assert done.streamkv["ignored"] == []


ASK_MANY: Any = {"model": "streamkv", "messages": [{"role": "user", "content": "which bus is red?"}]}
FOUND_DETAILS = {**FOUND.model_dump(), "ignored": []}


@pytest.mark.parametrize(
    ("beside", "query"),
    [
        ({"streams": ["lobby", "yard", "lobby"]}, SearchQuery("which bus is red?", ("lobby", "yard"))),
        ({"streams": "*", "max_streams": 2}, SearchQuery("which bus is red?", max_streams=2)),
        ({"streams": "*", "from": 3, "to": "90"}, SearchQuery("which bus is red?", start=3, end="90")),
    ],
)
def test_extra_body_names_several_streams(
    client: openai.OpenAI, backend: Backend, beside: dict[str, Any], query: SearchQuery
) -> None:
    done = client.chat.completions.create(**ASK_MANY, extra_body=beside)
    assert (done.model, done.choices[0].message.content) == ("streamkv", "lobby: red")
    assert done.choices[0].finish_reason == "length"
    assert done.usage is not None
    assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (22, 6)
    assert done.model_extra == {"streamkv": FOUND_DETAILS}
    assert (backend.searches, backend.queries) == ([query], [])


def test_several_streams_answer_in_one_piece(client: openai.OpenAI) -> None:
    options: Any = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(client.chat.completions.create(**ASK_MANY, **options, extra_body={"streams": "*"}))
    told = [c.choices[0] for c in chunks if c.choices]
    assert [c.delta.content for c in told] == ["", "lobby: red", None]
    assert chunks[2].model_extra == {"streamkv": FOUND_DETAILS}
    assert [c.usage.total_tokens for c in chunks if c.usage] == [28]


def test_several_streams_are_told_the_turns_before(client: openai.OpenAI, backend: Backend) -> None:
    messages = [{"role": "system", "content": "be brief"}, *ASK_MANY["messages"]]
    client.chat.completions.create(model="streamkv", messages=messages, extra_body={"streams": "*"})
    (search,) = backend.searches
    assert search.of("yard") == Query("yard", "which bus is red?", (Turn("user", "be brief"),))


@pytest.mark.parametrize(
    ("model", "beside", "param"),
    [
        ("streamkv/lobby", {"streams": ["yard"]}, "streams"),
        ("streamkv", {"streams": ["yard"], "stream_id": "lobby"}, "streams"),
        ("streamkv", {"streams": []}, "streams"),
        ("streamkv", {"streams": "lobby"}, "streams"),
        ("streamkv", {"streams": [5]}, "streams"),
        ("streamkv", {"streams": "*", "max_streams": 0}, "max_streams"),
        ("streamkv", {"streams": "*", "n": 2}, "n"),
    ],
)
def test_several_streams_that_make_no_sense_are_refused(
    client: openai.OpenAI, backend: Backend, model: str, beside: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**{**ASK_MANY, "model": model}, extra_body=beside)
    assert caught.value.param == param
    assert backend.searches == []


def test_a_number_of_streams_has_no_effect_on_one(client: openai.OpenAI) -> None:
    done = client.chat.completions.create(**ASK, extra_body={"max_streams": 3})
    assert done.streamkv["ignored"] == ["max_streams"]


@pytest.mark.parametrize("stream", [True, False])
def test_extra_body_asks_for_thumbnails(client: openai.OpenAI, backend: Backend, stream: bool) -> None:
    for asked, many in (
        ({}, False),
        ({"thumbnails": True}, False),
        ({"thumbnails": True, "streams": "*"}, True),
    ):
        body: Any = ASK_MANY if many else ASK
        done: Any = client.chat.completions.create(**body, stream=stream, extra_body=asked)
        details = (list(done)[-1] if stream else done).streamkv
        answer = details["streams"][0]["answer"] if many else details
        assert (answer["evidence"][0]["thumbnail"] is not None) == bool(asked)
        assert answer["evidence"][0]["clip"] == "/v1/c"
    assert backend.looked == [("lobby", 1.5, 160)] * 2


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
        ({"extra_body": {"from": True}}, "from"),
        ({"extra_body": {"to": ["now"]}}, "to"),
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
    cases = [(b"x" * 1_000_001, 413), (b"no json", 400), (b"[]", 400), (b"", 400)]
    cases += [
        (b'{"model": "\xff"}', 400),
        (b'{"max_tokens": ' + b"9" * 5000 + b"}", 400),
        (b"[" * 100_000, 400),
    ]
    for content, status in cases:
        response = httpx.post(f"{url}/v1/chat/completions", content=content, headers=JSON)
        assert response.status_code == status
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("stream_id", ["\\ud800", "../x", "x" * 65, "a b"])
def test_a_stream_that_none_can_be_called_is_unknown(url: str, stream_id: str) -> None:
    words = '"messages": [{"role": "user", "content": "what"}]'
    for named in (f'"model": "streamkv/{stream_id}"', f'"model": "streamkv", "stream_id": "{stream_id}"'):
        response = httpx.post(
            f"{url}/v1/chat/completions", content=f"{{{named}, {words}}}".encode(), headers=JSON
        )
        assert response.status_code == 404
        assert response.json()["error"]["code"] == "stream_not_found"


def test_models_are_the_streams(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert (model.id, model.owned_by) == ("streamkv/lobby", "streamkv")
    assert model.model_extra == {"streamkv": {"stream_id": "lobby", "state": VIEW.state, "as_of_s": 28.0}}
    assert client.models.retrieve("streamkv/lobby") == model
    for name in ("streamkv/yard", "gpt-5"):
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve(name)


def test_segments_and_frames(url: str, backend: Backend) -> None:
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
    narrow = httpx.get(f"{url}/v1/streams/lobby/frames", params={"at_s": 3.25, "width": 320})
    assert narrow.content == b"jpeg"
    assert backend.looked == [("lobby", 3.25, None), ("lobby", 3.25, 320)]
    for path in (
        "segments?limit=0",
        "segments?after=-2",
        "frames",
        "frames?at_s=-1",
        "frames?at_s=nan",
        "frames?at_s=1&width=0",
    ):
        assert httpx.get(f"{url}/v1/streams/lobby/{path}").status_code == 422, path


def test_the_schema_shows_examples(url: str) -> None:
    document = httpx.get(f"{url}/openapi.json").json()
    assert set(document["paths"]) >= {"/v1/chat/completions", "/v1/models", "/v1/streams/{stream_id}/frames"}
    for name in ("ChatRequest", "ChatCompletion", "Segment"):
        assert document["components"]["schemas"][name]["examples"], name
