"""How urgent a process is beside the others of its machine."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

LEAST_URGENT = 19


def yield_by(nice: int) -> None:
    """Makes this process that much less urgent than it is: who shares its processors with it goes first.

    On Linux each thread has a niceness of its own, and a new one has that of the thread that makes it.
    """
    if nice <= 0:
        return
    tasks = Path("/proc/self/task")
    threads = [int(task.name) for task in tasks.iterdir()] if tasks.is_dir() else [0]
    for thread in threads:
        with suppress(ProcessLookupError):  # it has ended meanwhile
            urgency = os.getpriority(os.PRIO_PROCESS, thread)
            os.setpriority(os.PRIO_PROCESS, thread, min(LEAST_URGENT, urgency + nice))
