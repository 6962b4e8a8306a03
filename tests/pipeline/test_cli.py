"""The command line where no server is needed: help, errors, exit statuses, worlds."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from pipeline import launch
from pipeline.cli import app
from pipeline.client import Client, NotRunningError, ServerError
from pipeline.demo import DemoPlan
from pipeline.home import Home, ServerRecord
from pipeline.processes import ProcessName, kill_all, name_of, orphans, this_process
from pipeline.server import usable_port
from pipeline.settings import load_settings, shipped_names
from pipeline.terminal import clock, size
from pipeline.worlds import write_world
from streamkv.errors import ConfigError

runner = CliRunner()
COMMANDS = [
    "up",
    "down",
    "upgrade",
    "add",
    "ls",
    "rm",
    "reencode",
    "scale",
    "ask",
    "search",
    "demo",
    "world",
    "eval",
    "batch",
    "inspect",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_shows_an_example_and_can_print_json(command: str) -> None:
    result = runner.invoke(app, [command, "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    assert f"Example: streamkv {command}" in result.output
    assert "--json" in result.output


def test_help_is_quick_and_loads_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['streamkv', '--help']\n"
        "from pipeline.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'ray', 'transformers', 'av', 'fastapi'} & set(sys.modules)), file=sys.stderr)"
    )
    begun = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert time.monotonic() - begun < 5, "1.5 s on an idle machine"


@pytest.mark.parametrize(
    "command",
    [["ls"], ["add", "a", "b.mp4"], ["rm", "a"], ["scale"], ["ask", "a", "what?"], ["search", "what?"]],
)
def test_without_a_server_the_way_to_one_is_named(tmp_path: Path, command: list[str]) -> None:
    result = runner.invoke(app, [*command, "--home", str(tmp_path)])
    assert result.exit_code == 3
    assert "streamkv up" in result.output
    as_json = runner.invoke(app, [*command, "--home", str(tmp_path), "--json"])
    assert as_json.exit_code == 3
    assert json.loads(as_json.stdout)["error"]["type"] == "NotRunningError"


def test_a_dead_server_is_not_taken_for_a_live_one(tmp_path: Path) -> None:
    home = Home(tmp_path)
    me = this_process()
    home.write(ServerRecord(me.pid, me.created - 5, "ready", url="http://127.0.0.1:1"))
    assert launch.running(home) is None
    assert runner.invoke(app, ["ls", "--home", str(tmp_path)]).exit_code == 3
    assert runner.invoke(app, ["down", "--home", str(tmp_path)]).exit_code == 0
    assert home.read() is None, "what a killed server left is cleared away"


def test_a_record_that_is_cut_is_no_record(tmp_path: Path) -> None:
    home = Home(tmp_path)
    for text in ("", "{", '{"pid": 1}', "[]"):
        home.record_file.write_text(text)
        assert home.read() is None


def test_only_one_server_has_a_home(tmp_path: Path) -> None:
    with Home(tmp_path).locked() as first, Home(tmp_path).locked() as second:
        assert (first, second) == (True, False)
    with Home(tmp_path).locked() as again:
        assert again


def test_a_server_that_cannot_start_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    result = runner.invoke(app, ["up", "--home", str(tmp_path), "source.sample_fps=-1", "--json"])
    assert result.exit_code == 1
    message = json.loads(result.stdout)["error"]["message"]
    assert "source.sample_fps: got -1.0, allowed > 0" in message
    assert launch.running(Home(tmp_path)) is None


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"127.0.0.1:{port} cannot be used"):
            usable_port("127.0.0.1", port)
    assert usable_port("127.0.0.1", 0) > 0


def test_an_unknown_configuration_lists_the_known() -> None:
    with pytest.raises(ConfigError, match="local"):
        load_settings("nonsense")


@pytest.mark.parametrize("name", shipped_names())
def test_every_shipped_configuration_loads(name: str) -> None:
    assert load_settings(name).preset == "streamkv"


def test_a_world_is_a_video_and_its_questions(tmp_path: Path) -> None:
    arguments = ["world", str(tmp_path), "w", "--seed", "3", "--minutes", "0.2", "--questions", "5", "--json"]
    result = runner.invoke(app, arguments)
    assert result.exit_code == 0, result.output
    made = json.loads(result.stdout)
    assert json.loads((tmp_path / "w.json").read_text()) == made
    assert len(made["questions"]) == 5
    assert {"kind", "question", "answer", "start_s", "end_s"} <= set(made["questions"][0])
    assert (tmp_path / "w.mp4").stat().st_size > 1000


def test_a_world_is_drawn_once(tmp_path: Path) -> None:
    first = write_world(tmp_path, "w", seed=1, minutes=0.1, questions=2)
    made_at = first.video.stat().st_mtime_ns
    again = write_world(tmp_path, "w", seed=1, minutes=0.1, questions=4)
    assert (again.video.stat().st_mtime_ns, len(again.questions)) == (made_at, 4)
    write_world(tmp_path, "w", seed=2, minutes=0.1, questions=2)
    assert first.video.stat().st_mtime_ns != made_at


@pytest.mark.parametrize("arguments", [["--minutes", "-1"], ["--minutes", "1e9"], ["a/b"]])
def test_a_world_that_cannot_be_says_why(tmp_path: Path, arguments: list[str]) -> None:
    result = runner.invoke(app, ["world", str(tmp_path), *arguments, "--json"])
    assert result.exit_code == 1
    assert "allowed" in json.loads(result.stdout)["error"]["message"]


def test_the_demo_has_four_streams_and_shares_its_questions_out() -> None:
    for questions in range(4, 40):
        plan = DemoPlan(questions, 10.0, 0, "demo", (), keep=False)
        assert sum(plan.shares().values()) == questions
        assert list(plan.shares()) == list(plan.lengths())
    assert len(plan.lengths()) >= 4
    assert max(plan.lengths().values()) >= 5 * min(plan.lengths().values())


def test_the_client_names_server_errors_and_silence() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/stats":
            return httpx.Response(502, text="<html>bad gateway</html>")
        return httpx.Response(404, json={"error": {"type": "UnknownStreamError", "message": "no such"}})

    with Client("http://test", transport=httpx.MockTransport(handler)) as client:
        with pytest.raises(ServerError, match="no such") as caught:
            client.stream("a/b")
        assert (caught.value.status, caught.value.kind) == (404, "UnknownStreamError")
        with pytest.raises(ServerError, match="bad gateway"):
            client.stats()
    with Client("http://127.0.0.1:1") as client, pytest.raises(NotRunningError, match="streamkv up"):
        client.streams()


def test_a_process_is_known_by_its_start_too() -> None:
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        child = next(p for p in this_process().descendants() if p.pid == sleeper.pid)
        impostor = ProcessName(child.pid, child.created - 1)
        impostor.kill()
        assert child.is_alive
        assert not impostor.is_alive
        child.kill()
        assert child.wait(10)
        assert not child.is_alive
    finally:
        sleeper.kill()
        sleeper.wait()


def test_what_a_killed_session_leaves_is_found() -> None:
    code = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); input()"
    leader = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, start_new_session=True)
    name = name_of(leader.pid)
    try:
        wait_for(lambda: len(name.descendants()) == 1)
        (child,) = name.descendants()
        assert orphans(name) == [], "the leader is alive"
        leader.kill()
        leader.wait()
        assert orphans(name) == [child]
        kill_all(orphans(name))
        wait_for(lambda: not child.is_alive)
    finally:
        leader.kill()
        leader.communicate()


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_times_and_sizes_read_well() -> None:
    assert [clock(s) for s in (0, 59.9, 61, 3723)] == ["0:00", "0:59", "1:01", "1:02:03"]
    assert [size(n) for n in (0, 999, 1000, 9_400_000)] == ["0 B", "999 B", "1.0 kB", "9.4 MB"]
