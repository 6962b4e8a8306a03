"""The routes: every error that a user can cause is a clear 4xx of one form, and none is a 5xx."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import replace
from typing import Any

import httpx
import pytest

from actors.failures import NotReadyError, WorkerLostError
from actors.views import GapView, NextView, PlaneState, PoolView, Reencoding, StreamView, WorkerView
from pipeline import schemas
from pipeline.api import MAX_BODY_BYTES, make_api
from pipeline.dialogue import ClipHead, Picture, Query, Reply, SearchQuery, SearchReply
from pipeline.http_errors import STATUS, DeadlineError, OverloadedError, status_of
from streamkv import errors

VIEW = StreamView(
    stream_id="lobby",
    uri="rtsp://***@cam/1",
    state="ingesting",
    detail="",
    duration_s=60.0,
    position_s=30.0,
    as_of_s=28.0,
    num_segments=3,
    num_frames=12,
    num_source_frames=14,
    kv_bytes=100,
    file_bytes=120,
    restarts=0,
    gaps=(GapView(4.0, 6.0, "2 pictures did not decode"),),
)
ANSWER = schemas.Answer(
    answer="red",
    evidence=[schemas.Evidence(segment=2, start_s=1.0, end_s=2.0, weight=0.5, frame="/v1/f", clip="/v1/c")],
    as_of_s=28.0,
    timings_ms={"total": 12.5},
    gaps=[],
    span=schemas.Span(start_s=0.5, end_s=None, words="since 9:05"),
)

POOL = PoolView("encode", 2, 1, 4, False, 0.7, (WorkerView("encode-0", "up", 40),))

EVIDENCE = {
    "segment": 2,
    "start_s": 1.0,
    "end_s": 2.0,
    "weight": 0.5,
    "frame": "/v1/f",
    "clip": "/v1/c",
    "thumbnail": None,
}
MOMENT = schemas.FoundMoment(segment=2, start_s=1.0, end_s=2.0, score=7.5)
FOUND = schemas.SearchResult(
    streams=[schemas.FoundStream(stream_id="lobby", score=7.5, moments=[MOMENT], answer=ANSWER)],
    searched=2,
    skipped=[schemas.SkippedStream(stream_id="yard", reason="nothing is committed yet")],
    timings_ms={"search": 1.5},
)


class FakeBackend:
    """Knows one stream; raises `error` if there is one."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.phase = PlaneState("ready")
        self.queries: list[Query] = []
        self.searches: list[SearchQuery] = []
        self.removed: list[str] = []
        self.sizes: list[dict[str, int]] = []
        self.reencodings: list[Reencoding] = []
        self.looked: list[tuple[Any, ...]] = []

    async def state(self) -> PlaneState:
        return self.phase

    async def streams(self) -> list[StreamView]:
        self._raise()
        return [VIEW]

    async def stream(self, stream_id: str) -> StreamView:
        self._raise()
        if stream_id != "lobby":
            raise errors.UnknownStreamError(f"stream {stream_id!r}: unknown; known: lobby")
        return VIEW

    async def add_stream(
        self, stream_id: str, uri: str, guidance: str, tenant: str, priority: int
    ) -> StreamView:
        self._raise()
        return replace(
            VIEW, stream_id=stream_id, uri=uri, guidance=guidance, tenant=tenant, priority=priority
        )

    async def remove_stream(self, stream_id: str) -> None:
        self._raise()
        self.removed.append(stream_id)

    async def reencode(self, stream_id: str, new: Reencoding) -> StreamView:
        view = await self.stream(stream_id)
        self.reencodings.append(new)
        return replace(view, next=NextView("registered", "", 60.0, 0.0, 0, 0, new.guidance or "", 0.0))

    async def cancel_reencode(self, stream_id: str) -> StreamView:
        return await self.stream(stream_id)

    async def reply(self, query: Query) -> Reply:
        self._raise()
        self.queries.append(query)
        return Reply(ANSWER.model_copy(deep=True), prompt_tokens=11, completion_tokens=3, finish="stop")

    async def search(self, query: SearchQuery) -> SearchReply:
        self._raise()
        self.searches.append(query)
        return SearchReply(FOUND.model_copy(deep=True), 22, 6, "length")

    async def segments(self, stream_id: str, after: int, limit: int) -> schemas.SegmentList:
        sizes = {"frames": 1, "source_frames": 1, "kv_bytes": limit, "file_bytes": 1}
        segment = schemas.Segment(segment=after + 1, start_s=0, end_s=1, **sizes)
        return schemas.SegmentList(segments=[segment], next_after=None)

    async def picture(self, stream_id: str, at_s: float, width: int | None) -> Picture:
        self.looked.append((stream_id, at_s, width))
        return Picture(b"jpeg", at_s + 0.5)

    async def thumbnails(self, stream_id: str, times_s: Sequence[float], width: int) -> list[bytes | None]:
        self._raise()
        self.looked.append((stream_id, *times_s, width))
        return [b"jpeg"] * len(times_s)

    async def clip(
        self, stream_id: str, start_s: float, end_s: float
    ) -> AsyncGenerator[ClipHead | bytes, None]:
        self._raise()
        self.looked.append((stream_id, start_s, end_s))
        yield ClipHead(start_s - 0.5, end_s + 0.25, 6, "copied")
        yield b"abc"
        yield b"def"

    async def pools(self) -> list[PoolView]:
        self._raise()
        return [POOL]

    async def scale(self, sizes: dict[str, int]) -> list[PoolView]:
        self._raise()
        self.sizes.append(sizes)
        return [POOL]

    async def stats(self) -> dict[str, float]:
        return {"frames": 14}

    def _raise(self) -> None:
        if self.error is not None:
            raise self.error


class Caller:
    """Calls the application in this process."""

    def __init__(self, backend: FakeBackend) -> None:
        self._app = make_api(backend)

    def __call__(self, method: str, path: str, **kwargs: Any) -> httpx.Response:
        async def call() -> httpx.Response:
            transport = httpx.ASGITransport(self._app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
                return await http.request(method, path, **kwargs)

        return asyncio.run(call())


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend()


@pytest.fixture
def call(backend: FakeBackend) -> Iterator[Caller]:
    return Caller(backend)


def error_of(response: httpx.Response) -> dict[str, str]:
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"type", "message"}
    assert body["error"]["message"]
    return dict(body["error"])


def test_streams_are_added_listed_shown_and_removed(call: Caller, backend: FakeBackend) -> None:
    added = call("POST", "/v1/streams", json={"id": "lobby", "uri": "/a.mp4"})
    assert (added.status_code, added.json()["id"], added.json()["uri"]) == (201, "lobby", "/a.mp4")
    listed = call("GET", "/v1/streams").json()["streams"]
    assert listed == [call("GET", "/v1/streams/lobby").json()]
    assert listed[0]["gaps"] == [{"start_s": 4.0, "end_s": 6.0, "reason": "2 pictures did not decode"}]
    assert call("DELETE", "/v1/streams/lobby").status_code == 204
    assert backend.removed == ["lobby"]


def test_a_stream_may_say_what_to_keep_of_it(call: Caller) -> None:
    new = {"id": "lobby", "uri": "/a.mp4", "guidance": "what signs say"}
    assert call("POST", "/v1/streams", json=new).json()["guidance"] == "what signs say"
    assert call("GET", "/v1/streams/lobby").json()["guidance"] == ""
    assert call("POST", "/v1/streams", json=new | {"priority": 4}).json()["priority"] == 4
    too_high = call("POST", "/v1/streams", json=new | {"priority": 9})
    assert (too_high.status_code, "priority" in error_of(too_high)["message"]) == (422, True)
    too_long = call("POST", "/v1/streams", json=new | {"guidance": "x" * 2001})
    assert too_long.status_code == 422
    assert "guidance" in error_of(too_long)["message"]


def test_a_stream_may_say_whose_it_is(call: Caller) -> None:
    new = {"id": "lobby", "uri": "/a.mp4", "tenant": "acme"}
    added = call("POST", "/v1/streams", json=new).json()
    assert (added["tenant"], added["legal_hold"]) == ("acme", "")
    assert call("POST", "/v1/streams", json=new | {"tenant": "x" * 201}).status_code == 422


def test_pools_are_shown_and_get_the_sizes_that_are_named(call: Caller, backend: FakeBackend) -> None:
    (pool,) = call("GET", "/v1/pools").json()["pools"]
    assert (pool["name"], pool["size"], pool["busy"]) == ("encode", 2, 0.7)
    assert pool["workers"] == [{"name": "encode-0", "state": "up", "streams": 40, "detail": ""}]
    for body in ({"encode": 3}, {"encode": 0, "prefill": 2}, {}):
        assert call("PUT", "/v1/pools", json=body).json()["pools"] == [pool]
        assert backend.sizes[-1] == body
    for wrong in ({"encode": -1}, {"encode": 1.5}, {"decode": 2}, {"prefill": 10_001}):
        assert call("PUT", "/v1/pools", json=wrong).status_code == 422


def test_a_full_plane_says_when_to_come_back(call: Caller, backend: FakeBackend) -> None:
    backend.error = errors.CapacityError("no place for another stream: 20 are ingested")
    response = call("POST", "/v1/streams", json={"id": "a", "uri": "a.mp4"})
    assert (response.status_code, response.json()["error"]["type"]) == (503, "CapacityError")
    assert int(response.headers["retry-after"]) > 0


def test_a_stream_may_be_encoded_again(call: Caller, backend: FakeBackend) -> None:
    assert call("GET", "/v1/streams/lobby").json()["reencode"] is None
    begun = call("POST", "/v1/streams/lobby/reencode", json={"guidance": "signs", "keep_ratio": 0.2})
    assert (begun.status_code, begun.json()["id"]) == (202, "lobby")
    assert begun.json()["reencode"] == {
        "state": "registered",
        "detail": "",
        "guidance": "signs",
        "keep_ratio": 0.0,
        "duration_s": 60.0,
        "position_s": 0.0,
        "segments": 0,
        "file_bytes": 0,
    }
    call("POST", "/v1/streams/lobby/reencode", json={})
    call("POST", "/v1/streams/lobby/reencode", json={"guidance": "", "model": "other"})
    assert backend.reencodings == [
        Reencoding("signs", 0.2),
        Reencoding(),
        Reencoding("", model="other"),
    ]
    assert call("DELETE", "/v1/streams/lobby/reencode").json()["reencode"] is None
    for wrong in ({"keep_ratio": 1.5}, {"keep_ratio": -1}, {"guidance": "x" * 2001}, {"preset": "rekv"}):
        assert call("POST", "/v1/streams/lobby/reencode", json=wrong).status_code == 422
    assert call("POST", "/v1/streams/yard/reencode", json={}).status_code == 404


def test_an_answer_says_what_it_rests_on(call: Caller, backend: FakeBackend) -> None:
    response = call("POST", "/v1/streams/lobby/questions", json={"question": "what?", "max_new_tokens": 5})
    assert response.status_code == 200
    assert response.json() == {
        "answer": "red",
        "evidence": [EVIDENCE],
        "confidence": None,
        "as_of_s": 28.0,
        "timings_ms": {"total": 12.5},
        "gaps": [],
        "span": {"start_s": 0.5, "end_s": None, "words": "since 9:05"},
    }
    assert backend.queries == [Query("lobby", "what?", max_new_tokens=5)]


def test_a_clip_says_what_it_holds(call: Caller, backend: FakeBackend) -> None:
    response = call("GET", "/v1/streams/lobby/clip.mp4", params={"from": 143, "to": 152.5})
    assert (response.status_code, response.content) == (200, b"abcdef")
    told = ("content-type", "content-length", "x-start-seconds", "x-end-seconds", "x-clip")
    assert [response.headers[name] for name in told] == ["video/mp4", "6", "142.500", "152.750", "copied"]
    assert backend.looked == [("lobby", 143.0, 152.5)]


@pytest.mark.parametrize(
    "query", ["", "from=1", "to=1", "from=-1&to=1", "from=nan&to=1", "from=a&to=1", "from=0&to=inf"]
)
def test_a_clip_of_no_span_is_422(call: Caller, backend: FakeBackend, query: str) -> None:
    response = call("GET", f"/v1/streams/lobby/clip.mp4?{query}")
    assert response.status_code == 422
    error_of(response)
    assert backend.looked == []


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.UnknownStreamError("no"), 404),
        (errors.SourceError("live"), 422),
        (errors.SourceGoneError("gone"), 410),
        (OverloadedError("no"), 429),
    ],
)
def test_a_clip_that_cannot_be_has_its_status(
    call: Caller, backend: FakeBackend, error: Exception, status: int
) -> None:
    backend.error = error
    response = call("GET", "/v1/streams/lobby/clip.mp4?from=1&to=2")
    assert response.status_code == status
    assert error_of(response) == {"type": type(error).__name__, "message": str(error)}


def test_pictures_inside_an_answer_are_there_when_asked_for(call: Caller, backend: FakeBackend) -> None:
    def thumbnail(**beside: Any) -> Any:
        response = call("POST", "/v1/streams/lobby/questions", json={"question": "what?"} | beside)
        return response.json()["evidence"][0]["thumbnail"]

    assert (thumbnail(), thumbnail(thumbnails=False), backend.looked) == (None, None, [])
    assert thumbnail(thumbnails=True) == "data:image/jpeg;base64,anBlZw=="
    assert backend.looked == [("lobby", 1.5, 160)]
    found = call("POST", "/v1/search", json={"question": "which?", "thumbnails": True}).json()
    assert found["streams"][0]["answer"]["evidence"][0]["thumbnail"]


@pytest.mark.parametrize("start", [None, 0, 12.5, "90", "2026-01-31T14:07:03+01:00"])
def test_a_question_may_name_the_time_it_is_about(call: Caller, backend: FakeBackend, start: Any) -> None:
    body = {"question": "what?", "from": start, "to": 700}
    assert call("POST", "/v1/streams/lobby/questions", json=body).status_code == 200
    assert backend.queries == [Query("lobby", "what?", start=start, end=700)]


@pytest.mark.parametrize("time", ["Infinity", "NaN", "true", "[1]", '"' + "9" * 65 + '"', "1e999"])
def test_times_that_are_none_are_422(call: Caller, backend: FakeBackend, time: str) -> None:
    body = f'{{"question": "what?", "from": {time}}}'
    headers = {"content-type": "application/json"}
    response = call("POST", "/v1/streams/lobby/questions", content=body, headers=headers)
    assert response.status_code == 422
    assert "from" in error_of(response)["message"]
    assert backend.queries == []


@pytest.mark.parametrize(
    ("body", "query"),
    [
        ({}, SearchQuery("which?")),
        ({"streams": "*", "max_streams": 1, "answer": False}, SearchQuery("which?", None, 1, False)),
        (
            {"streams": ["b", "a", "b"], "max_new_tokens": 9},
            SearchQuery("which?", ("b", "a"), max_new_tokens=9),
        ),
        ({"from": 3, "to": "2026-01-31"}, SearchQuery("which?", start=3, end="2026-01-31")),
    ],
)
def test_a_question_may_go_to_many_streams(
    call: Caller, backend: FakeBackend, body: dict[str, Any], query: SearchQuery
) -> None:
    response = call("POST", "/v1/search", json={"question": "which?"} | body)
    assert response.status_code == 200
    assert response.json() == FOUND.model_dump()
    assert backend.searches == [query]


@pytest.mark.parametrize(
    "wrong",
    [{"streams": []}, {"streams": "lobby"}, {"max_streams": 0}, {"max_streams": 101}, {"question": None}],
)
def test_searches_that_make_no_sense_are_422(
    call: Caller, backend: FakeBackend, wrong: dict[str, Any]
) -> None:
    assert call("POST", "/v1/search", json={"question": "which?"} | wrong).status_code == 422
    assert backend.searches == []


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.UnknownStreamError("no"), 404),
        (errors.StreamExistsError("no"), 409),
        (errors.StreamIdError("no"), 422),
        (errors.SourceError("no"), 422),
        (errors.QuestionError("no"), 422),
        (errors.ConfigError("no"), 422),
        (errors.StoreError("nothing is committed yet"), 409),
        (errors.ForeignStoreError("no"), 409),
        (errors.CorruptSegmentError("no"), 500),
        (errors.LegalHoldError("no"), 409),
        (errors.SegmentGoneError("no"), 503),
        (errors.StoreFullError("no"), 503),
        (OverloadedError("no"), 429),
        (NotReadyError("no"), 503),
        (WorkerLostError("no"), 503),
        (DeadlineError("no"), 504),
    ],
)
def test_errors_have_one_form_and_a_clear_status(
    call: Caller, backend: FakeBackend, error: Exception, status: int
) -> None:
    backend.error = error
    response = call("POST", "/v1/streams/lobby/questions", json={"question": "what?"})
    assert response.status_code == status
    assert error_of(response) == {"type": type(error).__name__, "message": str(error)}
    assert ("retry-after" in response.headers) == (status in (429, 503))


def test_every_error_of_the_tree_has_a_status() -> None:
    def subclasses(kind: type[Exception]) -> Iterator[type[Exception]]:
        yield kind
        for sub in kind.__subclasses__():
            yield from subclasses(sub)

    for kind in subclasses(errors.StreamKVError):
        assert 400 <= status_of(kind("x")) < 600
    assert set(STATUS.values()) <= {404, 409, 410, 422, 429, 500, 503, 504}


@pytest.mark.parametrize(
    "request_",
    [
        {"json": {}},
        {"json": {"id": "a"}},
        {"json": {"id": "a", "uri": ""}},
        {"json": {"id": 5, "uri": "/a"}},
        {"json": {"id": "a", "uri": "/a", "sneaky": 1}},
        {"json": [1, 2]},
        {"content": b"not json", "headers": {"content-type": "application/json"}},
        {"content": b'{"id": "\xff\xfe", "uri": "/a"}', "headers": {"content-type": "application/json"}},
        {},
    ],
)
def test_bodies_that_are_wrong_are_422(call: Caller, request_: dict[str, Any]) -> None:
    response = call("POST", "/v1/streams", **request_)
    assert response.status_code in (400, 422)
    error_of(response)


@pytest.mark.parametrize("tokens", [0, -1, 10**12, 1.5, "many"])
def test_token_limits_that_make_no_sense_are_422(call: Caller, tokens: Any) -> None:
    body = {"question": "what?", "max_new_tokens": tokens}
    assert call("POST", "/v1/streams/lobby/questions", json=body).status_code == 422


def test_unknown_paths_and_methods_have_the_same_form(call: Caller) -> None:
    assert error_of(call("GET", "/v2/nothing"))
    assert call("PUT", "/v1/streams").status_code == 405
    assert error_of(call("PUT", "/v1/streams"))


@pytest.mark.parametrize("announced", [True, False])
def test_a_body_without_end_is_refused(call: Caller, backend: FakeBackend, announced: bool) -> None:
    body = b'{"question": "' + b"x" * MAX_BODY_BYTES + b'"}'

    async def chunks():
        for start in range(0, len(body), 65_536):
            yield body[start : start + 65_536]

    response = call(
        "POST",
        "/v1/streams/lobby/questions",
        content=body if announced else chunks(),
        headers={"content-type": "application/json"},
    )
    assert response.status_code == 413
    error_of(response)
    assert backend.queries == []


def test_what_is_our_own_mistake_tells_no_details(call: Caller, backend: FakeBackend) -> None:
    backend.error = RuntimeError("secret path /srv/x")
    response = call("GET", "/v1/streams")
    assert response.status_code == 500
    assert "secret" not in response.text
    error_of(response)


def test_health_follows_the_ingest_plane(call: Caller, backend: FakeBackend) -> None:
    assert call("GET", "/healthz").json() == {"status": "ok", "detail": ""}
    backend.phase = PlaneState("failed", "another model's store")
    response = call("GET", "/healthz")
    assert (response.status_code, response.json()["status"]) == (503, "failed")


def test_the_schema_is_whole_and_shows_examples(call: Caller) -> None:
    document = call("GET", "/openapi.json").json()
    assert set(document["paths"]) >= {
        "/v1/streams",
        "/v1/streams/{stream_id}",
        "/v1/streams/{stream_id}/questions",
        "/v1/search",
        "/healthz",
    }
    for name in ("NewStream", "Question", "Answer", "Search", "SearchResult", "ErrorResponse"):
        assert document["components"]["schemas"][name]["examples"], name
