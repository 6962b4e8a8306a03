"""Starting the server in the background, and stopping it: exactly the processes that it began."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.home import Home, ServerRecord
from pipeline.processes import ProcessName, kill_all, name_of, orphans

START_S = 900.0
STOP_S = 45.0
POLL_S = 0.1

LAST_PHASES = ("stopping", "failed")
"""Not told while a server starts: what follows says why."""

OnPhase = Callable[[str], None]


class LaunchError(Exception):
    """The server did not start; the message says why."""


@dataclass(frozen=True)
class Started:
    record: ServerRecord
    was_up: bool  # it ran already


def running(home: Home) -> ServerRecord | None:
    """The record of the home's server if it is alive, else None."""
    record = home.read()
    return record if record is not None and record.is_alive else None


def start(
    home: Home, config: str, overrides: Sequence[str] = (), *, address: str = "", on_phase: OnPhase = print
) -> Started:
    """Starts the server unless it runs, and returns when it takes streams and questions.

    Raises:
        LaunchError: it failed to start. Nothing of it is left running.
    """
    process = spawn(home, config, overrides, address=address)
    return wait_ready(home, process, on_phase)


def spawn(
    home: Home, config: str, overrides: Sequence[str] = (), *, address: str = ""
) -> subprocess.Popen[bytes] | None:
    """Begins to start the server, in a session of its own; None when it runs already."""
    if running(home) is not None:
        return None
    if home.is_between_stores:
        raise LaunchError(
            f"{home.root}: an upgrade was cut off before the new store was in its place; complete it with: "
            "streamkv upgrade"
        )
    clean_up(home)
    home.root.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pipeline.server", "--home", str(home.root), "--config", config]
    if address:
        command += ["--address", address]
    with home.log.open("ab") as log:
        return subprocess.Popen(
            [*command, *overrides],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")},
        )


def wait_ready(home: Home, process: subprocess.Popen[bytes] | None, on_phase: OnPhase) -> Started:
    """Waits for what `spawn` began, telling each phase; stops it when the wait is cut short."""
    phase = ""
    end = time.monotonic() + START_S
    try:
        while time.monotonic() < end:
            record = home.read()
            if record is not None and (process is None or record.pid == process.pid):
                if record.phase != phase:
                    phase = record.phase
                    if process is not None and phase not in LAST_PHASES:
                        on_phase(phase)
                if phase == "ready":
                    return Started(record, was_up=process is None)
                if phase == "failed":
                    raise LaunchError(f"{record.detail}\n(the log: {home.log})")
            if process is not None and process.poll() is not None:
                raise LaunchError(f"the server ended with status {process.returncode}; the log: {home.log}")
            if process is None and running(home) is None:
                raise LaunchError(f"the server is gone; the log: {home.log}")
            time.sleep(POLL_S)
        raise LaunchError(f"the server was not ready within {START_S:g} s; the log: {home.log}")
    except BaseException:
        if process is not None:
            abort(home, process)
        raise


def stop(home: Home) -> bool:
    """Stops the home's server and what it started; False when there is none, perhaps after a kill."""
    record = running(home)
    if record is None:
        clean_up(home)
        return False
    _end(record.process)
    clean_up(home)
    return True


def abort(home: Home, process: subprocess.Popen[bytes]) -> None:
    """Stops what `spawn` began, however far it has come."""
    if process.poll() is None:
        _end(name_of(process.pid))
    process.wait()
    clean_up(home)


def _end(process: ProcessName) -> None:
    """SIGTERM, time to stop in good order, then SIGKILL to it and to whatever it started."""
    started: set[ProcessName] = set(process.descendants())
    process.terminate()
    end = time.monotonic() + STOP_S
    while process.is_alive and time.monotonic() < end:
        started.update(process.descendants())
        process.wait(0.2)
    process.kill()
    kill_all(started)


def clean_up(home: Home) -> None:
    """Removes what a server that is gone could not remove itself."""
    record = home.read()
    if record is not None and not record.is_alive:
        kill_all(orphans(record.process))
        if record.ray_temp:
            shutil.rmtree(record.ray_temp, ignore_errors=True)
        home.forget()
