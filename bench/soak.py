"""Whether memory stays flat while live streams are ingested for hours.

    python -m bench.soak --streams 16 --minutes 120 --json       needs ffmpeg

A server takes so many live streams (MPEG-TS over UDP on loopback: a world's video again and again, in real time), and a
question is asked of one of them every ten seconds. All the while the memory that each of the server's processes has for
itself (USS) is noted, by what it is. The first third is left out, in which caches fill:

- `PROCESS_mb`: at the end.
- `PROCESS_mb_per_hour`: the slope of a line through what was noted, least squares.
- `committed`, `gaps`, `dropped`: segments, gaps and dropped frames of all streams; `questions`, `failed_questions`.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil

from bench.machine import Figure
from bench.served import run
from pipeline import launch
from pipeline.client import Client, NotRunningError, ServerError
from pipeline.home import Home
from pipeline.worlds import WrittenWorld, write_world

FIRST_PORT = 17_000
NOTE_S = 10.0
OF_OURS = (
    "Supervisor",
    "DecodeEncode",
    "Prefill",
    "StoreActor",
    "ServeReplica",
    "ProxyActor",
    "ServeController",
)
OF_RAYS = ("raylet", "gcs_server")


def kind_of(process: psutil.Process) -> str | None:
    """Which of the server's processes it is; None: one that is not looked at."""
    title = " ".join(process.cmdline())
    found = [name for name in OF_OURS if title.startswith("ray::") and name in title]
    if found:
        deployment = title.rpartition(":")[2].partition(".")[0].strip()  # a method that runs stands behind it
        return f"{found[0]}_{deployment}" if found[0] == "ServeReplica" else found[0]
    return next((name for name in OF_RAYS if name in process.name()), None)


def memory_of(server_pid: int) -> dict[str, float]:
    """Megabytes that processes have for themselves, by kind; those of one kind together."""
    found: dict[str, float] = defaultdict(float)
    for process in psutil.Process(server_pid).children(recursive=True):
        try:
            kind = kind_of(process)
            if kind is not None:
                found[kind] += process.memory_full_info().uss / 1e6
        except psutil.Error:
            continue  # it has ended
    return found


@contextmanager
def senders(world: WrittenWorld, count: int) -> Iterator[list[str]]:
    """Addresses where the world is on air."""
    ports = range(FIRST_PORT, FIRST_PORT + count)
    command = ["ffmpeg", "-v", "error", "-nostdin", "-re", "-stream_loop", "-1", "-i", str(world.video)]
    began = [
        subprocess.Popen([*command, "-c", "copy", "-f", "mpegts", f"udp://127.0.0.1:{port}?pkt_size=1316"])
        for port in ports
    ]
    try:
        yield [f"udp://127.0.0.1:{port}" for port in ports]
    finally:
        for process in began:
            process.terminate()
            process.wait()


def measure(config: str, overrides: Sequence[str], streams: int, minutes: float, work: Path) -> list[Figure]:
    world = write_world(work, "square", seed=900, minutes=4, questions=40)
    home = Home(work / "home")
    noted: list[tuple[float, dict[str, float]]] = []
    asked = failed = 0
    try:
        started = launch.start(home, config, ["serve.port=0", *overrides], on_phase=_say)
        with senders(world, streams) as addresses, Client(started.record.url) as client:
            names = [f"camera-{i}" for i in range(streams)]
            for name, address in zip(names, addresses, strict=True):
                client.add_stream(name, address)
            begun = time.monotonic()
            while (passed := time.monotonic() - begun) < 60 * minutes:
                noted.append((passed, memory_of(started.record.pid)))
                _say(f"{passed / 60:.1f} min: {sum(noted[-1][1].values()):.0f} MB")
                question = world.questions[asked % len(world.questions)].question
                try:
                    client.ask(names[asked % streams], question)
                except (ServerError, NotRunningError) as exc:
                    failed += 1
                    _say(f"no answer: {exc}")
                asked += 1
                time.sleep(max(0.0, NOTE_S - (time.monotonic() - begun - passed)))
            found = client.streams()
    except Exception:
        _say(home.log.read_text()[-4000:])
        raise
    finally:
        launch.stop(home)
    later = [(passed, memory) for passed, memory in noted if passed >= noted[-1][0] / 3]
    figures = []
    for kind in sorted({kind for _, memory in later for kind in memory}):
        points = [(passed / 3600, memory[kind]) for passed, memory in later if kind in memory]
        hours, megabytes = np.array(points).T
        slope = np.polyfit(hours, megabytes, 1)[0] if len(points) > 1 else float("nan")
        figures.append(Figure(f"{kind}_mb", "MB", (float(megabytes[-1]),)))
        figures.append(Figure(f"{kind}_mb_per_hour", "MB/hour", (float(slope),)))
    counts = {
        "minutes": noted[-1][0] / 60,
        "committed": sum(s["segments"] for s in found),
        "gaps": sum(len(s["gaps"]) for s in found),
        "dropped": sum((s["live"] or {}).get("dropped_frames", 0) for s in found),
        "questions": asked,
        "failed_questions": failed,
    }
    return [*figures, *(Figure(name, "", (float(value),)) for name, value in counts.items())]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    run("bench.soak", __doc__, measure, arguments, streams=16, minutes=120.0)


if __name__ == "__main__":
    main()
