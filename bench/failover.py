"""How long a stream stands still when an actor dies.

    python -m bench.failover --json       needs ffmpeg

A server with two decode and two prefill actors ingests archives (a world's video, over and over). One actor of each
kind is killed with SIGKILL, while both of a pool have their share of the streams:

- `KIND_s`: until the last of all streams has committed a segment that was not on its way yet (more than
  `prefill.in_flight`, as the catalog says); `KIND_median_s`: the median one; `KIND_usual_s`: the last
  one just before, when nothing dies.

On a machine with few cores the new actor's imports compete with the streams that have moved.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

from bench.machine import Figure
from bench.served import run
from pipeline import launch
from pipeline.client import Client
from pipeline.home import Home
from pipeline.settings import load_settings
from pipeline.worlds import write_world
from streamkv.store import SegmentStore

KINDS = ("DecodeEncode", "Prefill", "StoreActor", "SupervisorFront")
POOLS = ("encode.actors=2", "prefill.actors=2", "serve.port=0")
WAIT_S = 300.0
POLL_S = 0.05


def write_film(folder: Path, minutes: float) -> Path:
    """Of at least so many minutes."""
    world = write_world(folder, "square", seed=900, minutes=4, questions=1)
    film, loops = folder / "film.mp4", int(minutes / 4) + 1
    command = ["ffmpeg", "-v", "error", "-nostdin", "-stream_loop", str(loops), "-i", str(world.video)]
    subprocess.run([*command, "-c", "copy", str(film)], check=True)
    return film


def processes(server_pid: int, kind: str) -> list[psutil.Process]:
    """The server's actors of that class, the oldest first."""
    found = []
    for process in psutil.Process(server_pid).children(recursive=True):
        try:
            if " ".join(process.cmdline()).startswith(f"ray::{kind}"):
                found.append((process.create_time(), process))
        except psutil.Error:
            continue  # it has ended
    return [process for _, process in sorted(found, key=lambda pair: pair[0])]


def until(condition: Callable[[], Any], what: str) -> None:
    end = time.monotonic() + WAIT_S
    while not condition():
        if time.monotonic() > end:
            raise SystemExit(f"waited in vain: {what}")
        time.sleep(POLL_S)


class Streams:
    """What the catalog and the server say of them."""

    def __init__(self, client: Client, home: Home, in_flight: int) -> None:
        self._client, self._in_flight = client, in_flight
        self._store = SegmentStore.open(home.store, read_only=True)

    def segments(self) -> dict[str, int]:
        """Committed ones."""
        found = self._store.streams()
        ended = [s.stream_id for s in found if s.state not in ("registered", "ingesting")]
        if ended:
            raise SystemExit(
                f"{', '.join(ended)}: over before the last actor was killed; give more --minutes"
            )
        return {s.stream_id: s.num_segments for s in found}

    def is_spread(self) -> bool:
        """Whether each actor has its share of the streams."""
        pools = self._client.pools()
        shares = [[w["streams"] for w in pool["workers"]] for pool in pools]
        up = all(w["state"] == "up" for pool in pools for w in pool["workers"])
        return up and all(len(each) == 2 and max(each) - min(each) <= 1 for each in shares)

    def gone_on(self) -> dict[str, float]:
        """Waits until each has committed what nobody had on the way; after how many seconds it had."""
        before, begun = self.segments(), time.monotonic()
        took: dict[str, float] = {}

        def all_went_on() -> bool:
            for name, count in self.segments().items():
                if count > before[name] + self._in_flight:
                    took.setdefault(name, time.monotonic() - begun)
            return len(took) == len(before)

        until(all_went_on, "a stream does not go on")
        return took


def measure(config: str, overrides: Sequence[str], streams: int, minutes: float, work: Path) -> list[Figure]:
    film, home = write_film(work, minutes), Home(work / "home")
    figures: list[Figure] = []
    try:
        started = launch.start(home, config, [*POOLS, *overrides], on_phase=_say)
        in_flight = load_settings(config, list(overrides)).prefill.in_flight
        with Client(started.record.url) as client:
            for i in range(streams):
                client.add_stream(f"film-{i}", str(film))
            seen = Streams(client, home, in_flight)
            for kind in KINDS:
                until(seen.is_spread, "streams are not spread over both actors")
                usual_s = max(seen.gone_on().values())
                os.kill(processes(started.record.pid, kind)[0].pid, signal.SIGKILL)
                took = seen.gone_on().values()
                _say(f"{kind}: {max(took):.1f} s, {usual_s:.1f} s when nothing dies")
                figures += [
                    Figure(f"{kind}_s", "s", (max(took),)),
                    Figure(f"{kind}_median_s", "s", (statistics.median(took),)),
                    Figure(f"{kind}_usual_s", "s", (usual_s,)),
                ]
    except BaseException:
        _say(home.log.read_text()[-4000:])
        raise
    finally:
        launch.stop(home)
    return figures


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    run("bench.failover", __doc__, measure, arguments, streams=4, minutes=400.0, of_what="of the film")


if __name__ == "__main__":
    main()
