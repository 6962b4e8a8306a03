"""The routes of watches: registered, listed, removed; events that a cut connection does not lose."""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import httpx
import pytest
from live import wait_until
from openai_backend import Backend, Served
from test_api import Caller, error_of
from typer.testing import CliRunner, Result

from actors.failures import WorkerLostError
from actors.views import NewWatch, WatchEventView, WatchView
from pipeline.cli import app
from pipeline.client import Client, NotRunningError, ServerError
from pipeline.watches import Followers
from streamkv.errors import QuestionError, UnknownStreamError, UnknownWatchError, WatchError, WatchLimitError
from streamkv.types import Evidence
from streamkv.watches import Delivery, WatchEvent, event_body

VIEW = WatchView(
    watch_id="watch_1",
    stream_id="lobby",
    question="is there a bus?",
    min_confidence=0.5,
    when_gone=False,
    webhook="http://127.0.0.1:9/***",
    created_at=1764000000.0,
    answer="yes",
    segment_no=4,
    num_events=3,
    num_waiting=1,
    num_failed=1,
)
MAX_FOLLOWERS = 3


def event(segment_no: int) -> WatchEventView:
    evidence = (Evidence(segment_no, 2.0 * segment_no, 2.0 * segment_no + 2, 1.0, 3),)
    delivery = Delivery("waiting", 2, "the receiver answered 500")
    made = WatchEvent(
        "watch_1", "lobby", segment_no, 1.0, 2.0, f"réd\n{segment_no}", "", 0.9, evidence, 5.0, delivery
    )
    return WatchEventView(event_body(made), made.delivery.state, made.delivery.tries, made.delivery.detail)


class WatchBackend(Backend):
    """Knows one watch; `events` are what it has told so far."""

    def __init__(self) -> None:
        super().__init__()
        self.added: list[NewWatch] = []
        self.events: list[WatchEventView] = []
        self.is_removed = False
        self.look_error: Exception | None = None
        self.looks: list[list[tuple[str, int]]] = []
        self.followers = Followers(self._look, MAX_FOLLOWERS, poll_s=0.02, patience_s=0.3)

    async def add_watch(self, new: NewWatch) -> tuple[WatchView, str]:
        self._raise()
        self.added.append(new)
        return VIEW, "whsec_made" if new.url and not new.secret else ""

    async def watches(self, stream_id: str | None) -> list[WatchView]:
        self._raise()
        if stream_id not in (None, "lobby"):
            raise UnknownStreamError(f"stream {stream_id!r}: unknown; known: lobby")
        return [VIEW]

    async def watch(self, watch_id: str) -> WatchView:
        self._raise()
        if watch_id != VIEW.watch_id or self.is_removed:
            raise UnknownWatchError(f"watch {watch_id!r}: unknown")
        return VIEW

    async def remove_watch(self, watch_id: str) -> None:
        await self.watch(watch_id)
        self.is_removed = True

    def follow(self, watch_id: str, after: int, wait_s: float) -> AsyncGenerator[WatchEventView | None, None]:
        return self.followers.follow(watch_id, after, wait_s)

    async def _look(self, after: list[tuple[str, int]], limit: int) -> list[list[WatchEventView] | None]:
        self.looks.append(after)
        if self.look_error is not None:
            raise self.look_error
        if self.is_removed:
            return [None] * len(after)
        return [[e for e in self.events if e.body["segment"] > number][:limit] for _, number in after]


@pytest.fixture
def backend() -> WatchBackend:
    return WatchBackend()


@pytest.fixture
def call(backend: WatchBackend) -> Caller:
    return Caller(backend)


@pytest.fixture
def url(backend: WatchBackend) -> Iterator[str]:
    with Served(backend) as served:
        yield served.url


class Following:
    """A connection that reads events; `cut` it as a network does."""

    def __init__(self, url: str, **headers: str) -> None:
        self._client = httpx.Client(timeout=20)
        self._stream = self._client.stream("GET", f"{url}/v1/watches/watch_1/events", headers=headers)
        self.response = self._stream.__enter__()
        self._lines = self.response.iter_lines() if self.response.is_success else iter(())

    def next(self) -> dict[str, str]:
        """The next event's fields; a comment's is `comment`."""
        fields: dict[str, str] = {}
        for line in self._lines:
            if not line and fields:
                return fields
            if line:
                name, _, value = line.partition(": ")
                fields[name or "comment"] = value
        return fields

    def cut(self) -> None:
        self._stream.__exit__(None, None, None)
        self._client.close()


@pytest.fixture
def follow(url: str) -> Iterator[Any]:
    made: list[Following] = []

    def begin(**headers: str) -> Following:
        made.append(Following(url, **headers))
        return made[-1]

    yield begin
    for following in made:
        following.cut()


def numbers(following: Following, count: int) -> list[int]:
    """Segments of the next events; each one's id is the same."""
    found = []
    while len(found) < count:
        fields = following.next()
        assert fields, "the events have ended"
        if fields.get("event") == "change":
            data = json.loads(fields["data"])
            assert (fields["id"], data["answer"]) == (str(data["segment"]), f"réd\n{data['segment']}")
            found.append(data["segment"])
    return found


def test_watches_are_added_listed_shown_and_removed(call: Caller, backend: WatchBackend) -> None:
    added = call("POST", "/v1/watches", json={"stream": "lobby", "question": "is there a bus?"})
    assert added.status_code == 201
    assert backend.added == [NewWatch("lobby", "is there a bus?")]
    shown = call("GET", "/v1/watches/watch_1").json()
    assert added.json() == shown | {"secret": None}
    assert shown == {
        "id": "watch_1",
        "stream": "lobby",
        "question": "is there a bus?",
        "min_confidence": 0.5,
        "when_gone": False,
        "webhook": "http://127.0.0.1:9/***",
        "created_at": 1764000000.0,
        "answer": "yes",
        "segment": 4,
        "events": 3,
        "waiting": 1,
        "failed": 1,
    }
    assert call("GET", "/v1/watches").json() == {"watches": [shown]}
    assert call("GET", "/v1/watches", params={"stream": "lobby"}).json() == {"watches": [shown]}
    assert call("GET", "/v1/watches", params={"stream": "yard"}).status_code == 404
    assert call("DELETE", "/v1/watches/watch_1").status_code == 204
    assert error_of(call("DELETE", "/v1/watches/watch_1"))["type"] == "UnknownWatchError"


def test_a_webhooks_secret_is_told_when_it_was_made_and_never_again(
    call: Caller, backend: WatchBackend
) -> None:
    new = {"stream": "lobby", "question": "q", "min_confidence": 0.7, "when_gone": True}
    made = call("POST", "/v1/watches", json=new | {"webhook": {"url": "http://b/c"}}).json()
    assert made["secret"] == "whsec_made"
    given = {"url": "http://b/c", "secret": "whsec_hunter2"}
    known = call("POST", "/v1/watches", json=new | {"webhook": given})
    assert known.json()["secret"] is None
    assert "hunter2" not in known.text
    assert backend.added[1] == NewWatch("lobby", "q", 0.7, True, "http://b/c", "whsec_hunter2")
    too_long = call("POST", "/v1/watches", json=new | {"webhook": given | {"secret": "hunter2" * 99}})
    assert too_long.status_code == 422
    assert "hunter2" not in too_long.text


@pytest.mark.parametrize(
    "wrong",
    [
        {"question": None},
        {"stream": 5},
        {"min_confidence": 1.1},
        {"min_confidence": "much"},
        {"webhook": "http://b"},
        {"webhook": {"url": ""}},
        {"webhook": {"url": "http://" + "b" * 2048}},
        {"sneaky": 1},
    ],
)
def test_bodies_that_are_wrong_are_422(call: Caller, backend: WatchBackend, wrong: dict[str, Any]) -> None:
    response = call("POST", "/v1/watches", json={"stream": "lobby", "question": "q"} | wrong)
    assert response.status_code == 422
    error_of(response)
    assert backend.added == []


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UnknownStreamError("no"), 404),
        (QuestionError("no"), 422),
        (WatchError("no"), 422),
        (WatchLimitError("no"), 409),
    ],
)
def test_refusals_have_a_clear_status(
    call: Caller, backend: WatchBackend, error: Exception, status: int
) -> None:
    backend.error = error
    response = call("POST", "/v1/watches", json={"stream": "lobby", "question": "q"})
    assert (response.status_code, error_of(response)["type"]) == (status, type(error).__name__)


def test_events_come_as_they_are_told_and_a_cut_loses_and_repeats_none(
    follow: Any, backend: WatchBackend
) -> None:
    backend.events = [event(0), event(3)]
    first = follow()
    assert first.response.headers["content-type"].startswith("text/event-stream")
    assert numbers(first, 2) == [0, 3]
    backend.events.append(event(4))
    assert numbers(first, 1) == [4]
    first.cut()
    backend.events += [event(7), event(8)]
    again = follow(**{"Last-Event-ID": "4"})
    assert numbers(again, 2) == [7, 8]
    backend.events.append(event(9))
    assert numbers(again, 1) == [9]
    late = follow(**{"Last-Event-ID": "9"})
    backend.events.append(event(10))
    assert numbers(late, 1) == [10]


def test_the_place_to_begin_may_stand_in_the_address(url: str, backend: WatchBackend) -> None:
    backend.events = [event(no) for no in range(5)]
    with httpx.stream("GET", f"{url}/v1/watches/watch_1/events?after=3") as response:
        data = next(line for line in response.iter_lines() if line.startswith("data: "))
    assert json.loads(data.removeprefix("data: "))["segment"] == 4
    for wrong in ({"Last-Event-ID": "soon"}, {"Last-Event-ID": "-2"}):
        assert httpx.get(f"{url}/v1/watches/watch_1/events", headers=wrong).status_code == 422
    assert httpx.get(f"{url}/v1/watches/nobody/events").status_code == 404


def test_an_event_says_all_that_is_known(follow: Any, backend: WatchBackend) -> None:
    backend.events = [event(6)]
    following = follow()
    assert following.next() == {"retry": "2000"}
    assert json.loads(following.next()["data"]) == {
        "watch": "watch_1",
        "stream": "lobby",
        "segment": 6,
        "start_s": 1.0,
        "end_s": 2.0,
        "answer": "réd\n6",
        "previous": "",
        "confidence": 0.9,
        "evidence": [{"segment": 6, "start_s": 12.0, "end_s": 14.0, "weight": 1.0}],
        "fired_at": 5.0,
        "delivery": {"state": "waiting", "tries": 2, "detail": "the receiver answered 500"},
    }


def test_a_quiet_connection_is_kept_alive(
    follow: Any, backend: WatchBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.watches.routes.KEEP_ALIVE_S", 0.05)
    following = follow()
    assert following.next() == {"retry": "2000"}
    assert [following.next() for _ in range(3)] == [{"comment": "still here"}] * 3
    backend.events.append(event(0))
    assert numbers(following, 1) == [0]


def test_whatever_ends_the_events_says_so(follow: Any, backend: WatchBackend) -> None:
    removed, lost = follow(), follow()
    backend.look_error = WorkerLostError("there is no supervisor")
    for following in (removed, lost):
        assert following.next() == {"retry": "2000"}
    ended = lost.next()
    assert ended["event"] == "error"
    assert json.loads(ended["data"])["error"] == {
        "type": "WorkerLostError",
        "message": "there is no supervisor",
    }
    assert lost.next() == {}, "and then it is over"
    backend.look_error = None
    again = follow()
    backend.is_removed = True
    assert again.next() == {"retry": "2000"}
    assert json.loads(again.next()["data"])["error"]["type"] == "UnknownWatchError"


def test_what_is_our_own_mistake_tells_no_details(follow: Any, backend: WatchBackend) -> None:
    following = follow()
    backend.look_error = RuntimeError("secret path /srv/x")
    following.next()
    assert json.loads(following.next()["data"])["error"]["type"] == "InternalError"


def test_a_failed_look_that_passes_is_not_told(follow: Any, backend: WatchBackend) -> None:
    backend.followers._patience_s = 60
    following = follow()
    wait_until(lambda: len(backend.looks) > 1)
    backend.look_error = WorkerLostError("for a moment")
    seen = len(backend.looks)
    wait_until(lambda: len(backend.looks) > seen + 1)
    backend.look_error = None
    backend.events.append(event(2))
    assert numbers(following, 1) == [2]


def test_one_look_serves_all_and_nobody_looks_when_nobody_follows(follow: Any, backend: WatchBackend) -> None:
    for after in ("0", "5", "9"):
        follow(**{"Last-Event-ID": after})
    wait_until(lambda: any(len(look) == MAX_FOLLOWERS for look in backend.looks))
    full = next(look for look in backend.looks if len(look) == MAX_FOLLOWERS)
    assert sorted(full) == [("watch_1", 0), ("watch_1", 5), ("watch_1", 9)]
    one_too_many = follow()
    assert one_too_many.response.status_code == 429
    assert "watch.max_followers" in json.loads(one_too_many.response.read())["error"]["message"]


def test_who_hangs_up_makes_room(follow: Any, backend: WatchBackend) -> None:
    first = [follow() for _ in range(MAX_FOLLOWERS)]
    wait_until(lambda: len(backend.followers._followers) == MAX_FOLLOWERS)
    for following in first:
        following.cut()
    wait_until(lambda: not backend.followers._followers)
    wait_until(lambda: backend.followers._task is not None and backend.followers._task.done())
    backend.events = [event(0)]
    assert numbers(follow(), 1) == [0]


def test_many_events_come_page_by_page(
    follow: Any, backend: WatchBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.watches.following.PAGE", 4)
    backend.events = [event(no) for no in range(11)]
    assert numbers(follow(), 11) == list(range(11))


def test_the_client_follows_over_cuts(
    url: str, backend: WatchBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each event once, though the connection ends with an error after the second, and the watch in the end."""
    monkeypatch.setattr("pipeline.client.RECONNECT_S", 0.05)
    backend.events = [event(0), event(1)]
    found: list[int] = []
    errors: list[Exception] = []

    def read() -> None:
        try:
            with Client(url, api_key="") as client:
                for data in client.follow_watch("watch_1"):
                    found.append(data["segment"])
        except (ServerError, NotRunningError) as exc:
            errors.append(exc)

    reader = threading.Thread(target=read)
    reader.start()
    wait_until(lambda: found == [0, 1])
    backend.look_error = WorkerLostError("a restart")
    wait_until(lambda: not backend.followers._followers)
    backend.look_error = None
    backend.events += [event(2)]
    wait_until(lambda: found == [0, 1, 2])
    backend.is_removed = True
    reader.join(20)
    (error,) = errors
    assert isinstance(error, ServerError)
    assert (error.status, error.kind) == (404, "UnknownWatchError")


def test_the_client_gives_up_a_server_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.client.RECONNECT_S", 0.0)
    with (
        Client("http://127.0.0.1:9", api_key="") as client,
        pytest.raises(NotRunningError, match="ConnectError"),
    ):
        next(client.follow_watch("watch_1"))


def test_the_schema_shows_examples(call: Caller) -> None:
    document = call("GET", "/openapi.json").json()
    assert set(document["paths"]) >= {
        "/v1/watches",
        "/v1/watches/{watch_id}",
        "/v1/watches/{watch_id}/events",
    }
    for name in ("NewWatch", "Webhook", "Watch", "WatchEvent"):
        assert document["components"]["schemas"][name]["examples"], name


@pytest.fixture
def run(url: str) -> Any:
    """The command line, against the routes."""

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(app, ["watch", *arguments, "--url", url])

    return run


def test_the_command_line_adds_lists_and_removes(run: Any, backend: WatchBackend) -> None:
    assert run("add", "lobby", "is there a bus?").stdout == "watch_1\n"
    hook = ("--webhook", "http://b/c", "--min-confidence", "0.7", "--when-gone")
    told = run("add", "lobby", "q", *hook).stdout
    assert "secret: whsec_made" in told
    assert (
        json.loads(run("add", "lobby", "q", *hook, "--secret", "whsec_x", "--json").stdout)["secret"] is None
    )
    assert backend.added == [
        NewWatch("lobby", "is there a bus?"),
        NewWatch("lobby", "q", 0.7, True, "http://b/c"),
        NewWatch("lobby", "q", 0.7, True, "http://b/c", "whsec_x"),
    ]
    shown = run("ls", "--stream", "lobby").stdout
    assert "is there a bus?" in shown
    assert "1 waiting, 1 failed" in shown
    assert [w["id"] for w in json.loads(run("ls", "--json").stdout)] == ["watch_1"]
    assert json.loads(run("rm", "watch_1", "--json").stdout) == {"removed": "watch_1"}
    again = run("rm", "watch_1")
    assert (again.exit_code, "unknown" in again.stderr) == (1, True)


def test_the_command_line_follows(run: Any, backend: WatchBackend) -> None:
    backend.events = [event(0), event(3), event(5)]

    def remove_when_all_is_told() -> None:
        wait_until(lambda: any(number == 5 for look in backend.looks for _, number in look))
        backend.is_removed = True

    for form in (["--after", "0", "--json"], []):
        backend.is_removed, backend.looks = False, []
        remover = threading.Thread(target=remove_when_all_is_told)
        remover.start()
        told = run("follow", "watch_1", *form)
        remover.join()
        assert told.exit_code == 1, "there are no more: it was removed"
        if form:
            assert [json.loads(line)["segment"] for line in told.stdout.splitlines()] == [3, 5]
        else:
            assert told.stdout.count("0:01 to 0:02") == 3
            assert "(was not shown)" in told.stdout
