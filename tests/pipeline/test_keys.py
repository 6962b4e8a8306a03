"""Keys: made once, kept as hashes, asked for wherever the network could reach, and everywhere once there is one."""

from __future__ import annotations

import asyncio
import json
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from live import LiveServer
from openai_backend import Backend as AskedBackend
from typer.testing import CliRunner

from pipeline import keys as keys_module
from pipeline.api import FREE, make_api
from pipeline.cli import app
from pipeline.client import Client
from pipeline.home import Home
from pipeline.keys import KeyFile, check_guarded, is_loopback
from streamkv.errors import ConfigError, UnknownWatchError

runner = CliRunner()
LOCKED = [
    ("GET", "/v1/streams"),
    ("POST", "/v1/streams"),
    ("GET", "/v1/streams/lobby"),
    ("DELETE", "/v1/streams/lobby"),
    ("POST", "/v1/streams/lobby/questions"),
    ("POST", "/v1/search"),
    ("GET", "/v1/streams/lobby/segments"),
    ("GET", "/v1/streams/lobby/frames"),
    ("GET", "/v1/streams/lobby/clip.mp4"),
    ("POST", "/v1/streams/lobby/reencode"),
    ("DELETE", "/v1/streams/lobby/reencode"),
    ("GET", "/v1/pools"),
    ("PUT", "/v1/pools"),
    ("GET", "/v1/watches"),
    ("POST", "/v1/watches"),
    ("GET", "/v1/watches/watch_1"),
    ("DELETE", "/v1/watches/watch_1"),
    ("GET", "/v1/watches/watch_1/events"),
    ("POST", "/v1/chat/completions"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/streamkv/lobby"),
    ("GET", "/v1/stats"),
]


class Backend(AskedBackend):
    """Of no watches."""

    async def watches(self, stream_id: str | None) -> list[Any]:
        return []

    async def watch(self, watch_id: str) -> Any:
        raise UnknownWatchError(watch_id)

    async def remove_watch(self, watch_id: str) -> None:
        raise UnknownWatchError(watch_id)


@pytest.fixture
def file(tmp_path: Path) -> KeyFile:
    return KeyFile(tmp_path / "store")


def call(file: KeyFile, method: str, path: str, *headers: tuple[str, str], is_open: bool) -> httpx.Response:
    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(make_api(Backend(), file, is_open=is_open))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            return await http.request(method, path, headers=list(headers))

    return asyncio.run(send())


# ---- the file


def test_a_key_opens_until_it_is_removed(file: KeyFile) -> None:
    alice, bob = file.add("alice"), file.add("bob")
    assert alice.startswith("skv_")
    assert len(alice) > 40
    other = KeyFile(file.path.parent)  # another process that read it before
    assert other.admits(alice)
    assert other.admits(bob)
    assert not any(other.admits(wrong) for wrong in ("", alice[:-1], alice + "x", alice.upper(), "alice"))
    file.remove("alice")
    assert not other.admits(alice)
    assert other.admits(bob)


def test_the_key_itself_is_kept_nowhere(file: KeyFile) -> None:
    key = file.add("alice")
    text = file.path.read_text()
    assert key not in text
    assert key[4:-4] not in text
    (known,) = file.all()
    assert (known.name, known.last_four) == ("alice", key[-4:])
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600


def test_every_key_is_compared_in_constant_time(file: KeyFile, monkeypatch: pytest.MonkeyPatch) -> None:
    made = [file.add(name) for name in ("a", "b", "c")]
    compared: list[str] = []

    def compare(one: str, other: str) -> bool:
        compared.append(other)
        return one == other

    monkeypatch.setattr(keys_module.hmac, "compare_digest", compare)
    assert file.admits(made[0])
    assert len(compared) == 3


@pytest.mark.parametrize("name", ["", "a b", "../a", "é", "x" * 65, "-a"])
def test_unsafe_names_are_refused(file: KeyFile, name: str) -> None:
    with pytest.raises(ConfigError, match="key name"):
        file.add(name)


def test_names_are_taken_once_and_removed_once(file: KeyFile) -> None:
    file.add("alice")
    with pytest.raises(ConfigError, match="exists already"):
        file.add("alice")
    file.remove("alice")
    with pytest.raises(ConfigError, match="unknown; known: none"):
        file.remove("alice")


def test_many_that_add_at_once_lose_no_key(file: KeyFile) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda i: KeyFile(file.path.parent).add(f"k{i}"), range(24)))
    assert len(file.all()) == 24
    assert all(file.admits(key) for key in made)


@pytest.mark.parametrize("text", ["", "{", "[1]", '[{"name": "a"}]', "null"])
def test_a_file_that_cannot_be_read_lets_nobody_in(file: KeyFile, text: str) -> None:
    file.path.parent.mkdir()
    file.path.write_text(text)
    with pytest.raises(ConfigError, match=r"not a file of keys"):
        file.all()
    with pytest.raises(ConfigError, match=r"not a file of keys"):
        call(file, "GET", "/v1/streams", is_open=True)


# ---- who is let in


@pytest.mark.parametrize(("method", "path"), LOCKED)
def test_without_a_key_nothing_opens_but_what_is_free(file: KeyFile, method: str, path: str) -> None:
    key = file.add("alice")
    good = ("authorization", f"Bearer {key}")
    assert call(file, method, path, good, is_open=False).status_code != 401
    for headers in (
        [],
        [("authorization", f"Bearer {key}x")],
        [("authorization", f"Basic {key}")],
        [("authorization", key)],
        [("authorization", "Bearer ")],
        [("x-api-key", key)],
        [("authorization", "Bearer no"), good],
    ):
        response = call(file, method, path, *headers, is_open=False)
        assert response.status_code == 401, headers
        assert response.headers["www-authenticate"] == "Bearer"
        error = response.json()["error"]
        assert (error["code"], error["type"]) == ("invalid_api_key", "invalid_request_error")


def test_every_route_is_locked_or_free_on_purpose(file: KeyFile) -> None:
    document = make_api(Backend()).openapi()
    routes = {(m.upper(), path) for path, methods in document["paths"].items() for m in methods}
    named = {
        (
            m,
            p.replace("/lobby", "/{stream_id}")
            .replace("streamkv/{stream_id}", "{model}")
            .replace("watch_1", "{watch_id}"),
        )
        for m, p in LOCKED
    }
    assert routes - named == {("GET", "/healthz")}
    for path in FREE:
        assert call(file, "GET", path, is_open=False).status_code == 200
    error = call(file, "GET", "/elsewhere", is_open=False).json()["error"]
    assert set(error) == {"type", "message"}
    assert error["type"] == "AuthenticationError"


def test_loopback_is_open_until_there_is_a_key(file: KeyFile) -> None:
    assert call(file, "GET", "/v1/streams", is_open=True).status_code == 200
    assert call(file, "GET", "/v1/streams", is_open=False).status_code == 401
    key = file.add("alice")
    assert call(file, "GET", "/v1/streams", is_open=True).status_code == 401
    bearer = ("authorization", f"bearer {key}")
    assert call(file, "GET", "/v1/streams", bearer, is_open=True).status_code == 200
    file.remove("alice")
    assert call(file, "GET", "/v1/streams", is_open=True).status_code == 200


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("example.org", False),
        ("", False),
    ],
)
def test_only_loopback_needs_no_key(file: KeyFile, host: str, expected: bool) -> None:
    assert is_loopback(host) is expected
    if expected:
        check_guarded(host, file)
    else:
        with pytest.raises(ConfigError, match="streamkv keys add NAME"):
            check_guarded(host, file)
        file.add("alice")
        check_guarded(host, file)


# ---- the command line


def run(home: Path, *arguments: str) -> Any:
    result = runner.invoke(app, ["keys", *arguments, "--home", str(home), "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.mark.parametrize("command", ["add", "ls", "rm"])
def test_each_command_shows_an_example(command: str) -> None:
    result = runner.invoke(app, ["keys", command, "--help"], env={"COLUMNS": "200"})
    assert f"Example: streamkv keys {command}" in result.output
    assert "--json" in result.output


def test_keys_are_added_listed_and_removed(tmp_path: Path) -> None:
    key = run(tmp_path, "add", "alice")["key"]
    (listed,) = run(tmp_path, "ls")
    assert (listed["name"], listed["last_four"]) == ("alice", key[-4:])
    assert set(listed) == {"name", "last_four", "created_at"}
    shown = runner.invoke(app, ["keys", "ls", "--home", str(tmp_path)]).output
    assert "alice" in shown
    assert key not in shown
    again = runner.invoke(app, ["keys", "add", "alice", "--home", str(tmp_path)])
    assert again.exit_code == 1
    assert "exists already" in again.output
    assert run(tmp_path, "rm", "alice") == {"removed": "alice"}
    assert run(tmp_path, "ls") == []


def test_a_store_elsewhere_has_its_own_keys(tmp_path: Path) -> None:
    key = run(tmp_path / "home", "add", "alice", "--store", str(tmp_path / "store"))["key"]
    assert KeyFile(tmp_path / "store").admits(key)
    assert not KeyFile(Home(tmp_path / "home").store).all()


def test_the_client_sends_the_environments_key(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[str | None] = []

    def handler(request: httpx.Request) -> httpx.Response:
        sent.append(request.headers.get("authorization"))
        return httpx.Response(200, json={"streams": []})

    def ask(**given: Any) -> None:
        with Client("http://test", transport=httpx.MockTransport(handler), **given) as client:
            client.streams()

    monkeypatch.delenv("STREAMKV_API_KEY", raising=False)
    ask()
    monkeypatch.setenv("STREAMKV_API_KEY", "skv_mine")
    ask()
    ask(api_key="skv_other")
    assert sent == [None, "Bearer skv_mine", "Bearer skv_other"]
    monkeypatch.setenv("STREAMKV_API_KEY", "skv_\n€")
    with pytest.raises(ConfigError, match="STREAMKV_API_KEY"):
        ask()


def test_a_server_without_a_key_does_not_open_to_the_network(tmp_path: Path) -> None:
    result = runner.invoke(
        app, ["up", "--home", str(tmp_path), "--port", "0", "serve.host=0.0.0.0", "--json"]
    )
    assert result.exit_code == 1
    message = json.loads(result.stdout)["error"]["message"]
    assert f"streamkv keys add NAME --store {tmp_path / 'store'}" in message


@pytest.mark.ray
def test_a_running_server_takes_a_key_the_moment_there_is_one(server: LiveServer) -> None:
    url = server.record.url
    added = json.loads(server.run("keys", "add", "alice", "--json").stdout)
    try:
        assert httpx.get(f"{url}/v1/streams").status_code == 401
        assert httpx.get(f"{url}/healthz").status_code == 200
        refused = server.run("ls", "--json")
        assert refused.returncode == 1
        assert "keys add" in json.loads(refused.stdout)["error"]["message"]
        os.environ["STREAMKV_API_KEY"] = added["key"]
        assert server.run("ls", "--json").returncode == 0
        with (
            openai.OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0) as stranger,
            pytest.raises(openai.AuthenticationError) as caught,
        ):
            stranger.models.list()
        assert caught.value.code == "invalid_api_key"
        with openai.OpenAI(base_url=f"{url}/v1", api_key=added["key"]) as client:
            assert client.models.list().object == "list"
    finally:
        os.environ.pop("STREAMKV_API_KEY", None)
        assert server.run("keys", "rm", "alice").returncode == 0
    assert httpx.get(f"{url}/v1/streams").status_code == 200
