"""Processes by pid and start time: another one that got the same pid is not taken for the first."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import psutil


@dataclass(frozen=True)
class ProcessName:
    pid: int
    created: float

    @property
    def is_alive(self) -> bool:
        return self._find() is not None

    def terminate(self) -> None:
        """SIGTERM, if it is still there."""
        self._signal("terminate")

    def kill(self) -> None:
        """SIGKILL, if it is still there."""
        self._signal("kill")

    def descendants(self) -> list[ProcessName]:
        """All processes below it, as of now."""
        process = self._find()
        if process is None:
            return []
        return [
            ProcessName(p.pid, p.create_time()) for p in process.children(recursive=True) if p.is_running()
        ]

    def wait(self, timeout_s: float) -> bool:
        """Whether it ends within the time."""
        process = self._find()
        if process is None:
            return True
        try:
            process.wait(timeout_s)
        except psutil.TimeoutExpired:
            return False
        return True

    def _signal(self, method: str) -> None:
        process = self._find()
        if process is not None:
            try:
                getattr(process, method)()
            except psutil.NoSuchProcess:
                return

    def _find(self) -> Any | None:
        try:
            process = psutil.Process(self.pid)
            same = process.create_time() == self.created and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return None
        return process if same else None


def name_of(pid: int) -> ProcessName:
    """The process that has this id now; one that has just gone gets a name that fits none."""
    try:
        return ProcessName(pid, psutil.Process(pid).create_time())
    except psutil.NoSuchProcess:
        return ProcessName(pid, 0.0)


def this_process() -> ProcessName:
    return name_of(os.getpid())


def kill_all(processes: Iterable[ProcessName]) -> int:
    """SIGKILL to each that is still there; how many there were."""
    left = [process for process in processes if process.is_alive]
    for process in left:
        process.kill()
    return len(left)


def orphans(leader: ProcessName) -> list[ProcessName]:
    """What is left of the session that a process led, now that it is gone.

    Ray's agents outlive a server that was killed. While they live, nobody else gets the leader's id; so when somebody
    has it, none is left.
    """
    if psutil.pid_exists(leader.pid):
        return []
    return [name_of(pid) for pid in psutil.pids() if _session_of(pid) == leader.pid]


def _session_of(pid: int) -> int:
    try:
        return os.getsid(pid)
    except (ProcessLookupError, PermissionError):
        return 0
