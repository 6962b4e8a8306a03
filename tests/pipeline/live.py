"""A real server on a real Ray for tests, driven as a user would: by the command line and over HTTP."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from pipeline.client import Client
from pipeline.home import Home, ServerRecord
from pipeline.processes import kill_all, orphans
from streamkv.store import SegmentStore

START_S = 240

SEGMENT_FRAMES = 8
SAMPLE_FPS = 4
SETTINGS = (
    f"source.sample_fps={SAMPLE_FPS}",
    "method.segment.policy=uniform",  # segments then depend on the count alone: runs can be compared
    f"method.segment.max_frames={SEGMENT_FRAMES}",
    "serve.max_new_tokens=8",
)


class LiveServer:
    """One home, with a server or without."""

    def __init__(self, home: Path, model: Path, *overrides: str) -> None:
        self.home = Home(home)
        self._settings = [f"model.path={model}", *overrides]

    def up(self) -> dict[str, Any]:
        done = self.run("up", "--port", "0", *self._settings, "--json")
        assert done.returncode == 0, done.stdout + self.log()
        started: dict[str, Any] = json.loads(done.stdout)
        return started

    def down(self) -> None:
        assert self.run("down").returncode == 0

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self._command(*arguments), capture_output=True, text=True, timeout=START_S)

    def begin(self, *arguments: str) -> subprocess.Popen[str]:
        """As `run`, but goes on at once."""
        return subprocess.Popen(
            self._command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def _command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "pipeline.cli", *arguments, "--home", str(self.home.root)]

    @property
    def record(self) -> ServerRecord:
        record = self.home.read()
        assert record is not None
        return record

    def client(self) -> Client:
        return Client(self.record.url)

    def store(self) -> SegmentStore:
        return SegmentStore.open(self.home.store, read_only=True)

    def processes(self, name: str = "") -> list[Any]:
        """Processes of this server whose title begins so, e.g. `ray::Prefill`."""
        root = psutil.Process(self.record.pid)
        return [p for p in root.children(recursive=True) if title(p).startswith(name)]

    def kill(self, name: str) -> int:
        """SIGKILL to the actor of that class; its process id."""
        (process,) = self.processes(f"ray::{name}")
        os.kill(process.pid, signal.SIGKILL)
        return int(process.pid)

    def kill_everything(self) -> None:
        """SIGKILL to the server and its workers, as a power cut has it. (Ray's agents are left for `up` to find.)"""
        all_of_it = [
            psutil.Process(self.record.pid),
            *(p for p in self.processes() if "Agent" not in title(p)),
        ]
        for process in all_of_it:
            process.kill()
        psutil.wait_procs(all_of_it, timeout=20)

    def discard(self) -> None:
        """Ends all of it at once, for a test that is over; `down` is the proper way, and takes seconds."""
        record = self.home.read()
        if record is not None:
            kill_all([*record.process.descendants(), record.process])
            kill_all(orphans(record.process))
            shutil.rmtree(record.ray_temp, ignore_errors=True)

    def log(self) -> str:
        return "\n".join(self.home.log.read_text().splitlines()[-60:])


def title(process: Any) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def wait_until(condition: Callable[[], Any], timeout_s: float = 180.0, pause_s: float = 0.05) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(pause_s)


def wait_for_end(client: Client, *stream_ids: str, timeout_s: float = 240.0) -> dict[str, dict[str, Any]]:
    """The streams, once none is being ingested."""
    found: dict[str, dict[str, Any]] = {}

    def ended() -> bool:
        found.update({s["id"]: s for s in client.streams()})
        return all(found[s]["state"] in ("done", "failed") for s in stream_ids)

    wait_until(ended, timeout_s)
    return {s: found[s] for s in stream_ids}


def spans(store: SegmentStore, stream_id: str) -> list[tuple[float, float]]:
    return [(s.start_s, s.end_s) for s in store.reader(stream_id).refresh().segments]
