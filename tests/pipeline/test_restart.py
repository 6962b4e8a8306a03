"""A server that is killed whole, and stores that outlive it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from live import SETTINGS, LiveServer, wait_for_end, wait_until
from test_live import QUESTION, check_whole
from tiny import write_tiny_checkpoint

from pipeline import launch
from pipeline.client import NotRunningError, ServerError
from pipeline.processes import ProcessName, orphans
from streamkv.errors import StoreError
from streamkv.store import SegmentStore

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Iterator[LiveServer]:
    """One that may be killed, unlike the session's."""
    made = LiveServer(tmp_path_factory.mktemp("home"), tiny_checkpoint, *SETTINGS)
    try:
        made.up()
        yield made
    finally:
        launch.stop(made.home.next)
        made.discard()


def test_a_power_cut_costs_nothing_but_time(server: LiveServer, films: Path) -> None:
    """Killed with SIGKILL in the middle of ingest, all of it at once; up again."""
    with server.client() as client:
        client.add_stream("whole", str(films / "short.mp4"))
        wait_for_end(client, "whole")
        answer = client.ask("whole", QUESTION)
        client.add_stream("a", str(films / "long.mp4"))
        client.add_stream("b", str(films / "long.mp4"), "what signs say")
        wait_until(lambda: min(s["segments"] for s in client.streams()) > 2)
    server.kill_everything()
    with server.store() as store:
        before = {s.stream_id: s.num_segments for s in store.streams()}
        assert all(store.stream(s).state == "ingesting" for s in "ab")
        kept = {s: [p.path for p in store._catalog.all_segments(s)] for s in before}
    assert before["a"] < 50

    cut_off = server.record.process
    server.up()
    assert orphans(cut_off) == [], "what the cut left is cleared away"
    with server.client() as client:
        again = client.ask("whole", QUESTION)
        ended = wait_for_end(client, "a", "b")
        assert (ended["a"]["guidance"], ended["b"]["guidance"]) == ("", "what signs say")
    assert again | {"timings_ms": 0} == answer | {"timings_ms": 0}, "nothing was encoded again"
    for stream_id, seconds in (("whole", 10), ("a", 100), ("b", 100)):
        check_whole(server, stream_id, seconds)
    with server.store() as store:
        for stream_id, paths in kept.items():
            now = [p.path for p in store._catalog.all_segments(stream_id)]
            assert now[: len(paths)] == paths, "what was committed stays as it is"


@pytest.mark.timeout(600)
def test_it_gets_another_model_while_it_answers(
    tmp_path: Path, server: LiveServer, films: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Then it goes down in the proper way, and starts under no other model: a store is of one."""
    other = write_tiny_checkpoint(tmp_path / "other", seed=1)
    home, url = server.home, server.record.url
    was_answered, away_s = False, 0.0
    with server.client() as client:
        for stream in client.streams():
            client.remove_stream(stream["id"])
        client.add_stream("a", str(films / "short.mp4"))
        client.add_stream("b", str(films / "long.mp4"), "what signs say")
        wait_for_end(client, "a")
        upgrade = server.begin("upgrade", f"model.path={other}", *SETTINGS, "--json")
        while upgrade.poll() is None:
            begun, is_encoding = time.monotonic(), state_of(home.next.store, "b") == "ingesting"
            try:
                was_answered |= client.ask("a", QUESTION)["as_of_s"] == 10 and is_encoding
                time.sleep(0.1 if is_encoding else 0.5)
            except (NotRunningError, ServerError):
                time.sleep(0.5)
                away_s += time.monotonic() - begun
    said, errors = upgrade.communicate()
    assert upgrade.returncode == 0, said + errors + server.log()
    assert json.loads(said) == {"url": url, "old_store": str(home.old_store), "failed": []}
    with capsys.disabled():
        print(f" ({away_s:.0f} s without answers)", end="")
    assert was_answered
    assert not home.next.root.exists()
    assert model_of(home.old_store) != model_of(home.store)
    listed = {s["id"]: s for s in json.loads(server.run("ls", "--json").stdout)}
    assert {name: (s["state"], s["guidance"]) for name, s in listed.items()} == {
        "a": ("done", ""),
        "b": ("done", "what signs say"),
    }
    for stream_id, seconds in (("a", 10), ("b", 100)):
        check_whole(server, stream_id, seconds)
    with server.client() as client:
        assert client.ask("a", QUESTION)["as_of_s"] == 10

    record = server.record
    everything = record.process.descendants()
    assert len(everything) > 8
    server.down()
    assert not ProcessName(record.pid, record.created).is_alive
    assert [p for p in everything if p.is_alive] == []
    assert not Path(record.ray_temp).exists()
    assert home.read() is None

    done = server.run("up", "--port", "0", *server._settings, "--json")
    assert done.returncode == 1
    assert "fingerprint" in json.loads(done.stdout)["error"]["message"]
    assert launch.running(home) is None


def state_of(store: Path, stream_id: str) -> str:
    """As its catalog has it; empty when there is no such store, or stream."""
    with suppress(StoreError), SegmentStore.open(store, read_only=True) as opened:
        return opened.record(stream_id).state
    return ""


def model_of(store: Path) -> str:
    with SegmentStore.open(store, read_only=True) as opened:
        return opened.identity.fingerprint
