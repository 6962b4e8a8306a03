"""A process that yields does so with all of its threads, those to come too."""

from __future__ import annotations

import os
import subprocess
import sys

SCRIPT = """
import os, threading
from concurrent.futures import ThreadPoolExecutor
from actors.priority import yield_by

def niceness():
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

with ThreadPoolExecutor(1) as before, ThreadPoolExecutor(1) as after:
    first = before.submit(niceness).result()
    yield_by({nice})
    print(niceness() - first, before.submit(niceness).result() - first, after.submit(niceness).result() - first)
"""


def yielded(nice: int) -> list[int]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(nice=nice)], capture_output=True, text=True, check=True
    )
    return [int(word) for word in done.stdout.split()]


def test_all_threads_yield() -> None:
    room = 19 - os.getpriority(os.PRIO_PROCESS, 0)
    assert yielded(0) == [0, 0, 0]
    assert yielded(4) == [min(4, room)] * 3
    assert yielded(99) == [room] * 3
