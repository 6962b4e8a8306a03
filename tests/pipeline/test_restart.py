"""A server that is killed whole, and stores that outlive it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from live import SETTINGS, LiveServer, wait_for_end, wait_until
from test_live import QUESTION, check_whole
from tiny import write_tiny_checkpoint

from pipeline import launch
from pipeline.processes import ProcessName, orphans

pytestmark = pytest.mark.ray


def test_a_power_cut_costs_nothing_but_time(tmp_path: Path, tiny_checkpoint: Path, films: Path) -> None:
    """Killed with SIGKILL in the middle of ingest, all of it at once; up again; then down in the proper way."""
    server = LiveServer(tmp_path / "home", tiny_checkpoint, *SETTINGS)
    server.up()
    try:
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

        record = server.record
        everything = record.process.descendants()
        assert len(everything) > 8
        server.down()
        assert not ProcessName(record.pid, record.created).is_alive
        assert [p for p in everything if p.is_alive] == []
        assert not Path(record.ray_temp).exists()
        assert server.home.read() is None
    finally:
        launch.stop(server.home)


def test_another_models_store_is_refused_and_left_alone(
    tmp_path: Path, tiny_checkpoint: Path, server: LiveServer
) -> None:
    """A server whose configuration names the store of another model does not start, and says which."""
    other = write_tiny_checkpoint(tmp_path / "other", seed=1)
    stranger = LiveServer(tmp_path / "home", other, *SETTINGS, f"store.root={server.home.store}")
    done = stranger.run("up", "--port", "0", *stranger._settings, "--json")
    assert done.returncode == 1
    message = json.loads(done.stdout)["error"]["message"]
    assert "fingerprint" in message
    assert launch.running(stranger.home) is None
    with server.client() as client:
        client.streams()
