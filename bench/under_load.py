"""What questions and ingest cost each other, while both want all of the machine.

    python -m bench.under_load --json

A server with one world in its store is asked one question after the other, and ingests another, longer world, as many
streams; each is measured alone and beside the other. A CASE is how ingest yields, `ingest.nice` and `ingest.give_way`:
`0/0` not at all, `0/0.5` only by waiting for questions under way, as is all that it can do on a GPU.

- `question_ms_CASE_alone`, `question_ms_CASE_beside`: a whole answer over HTTP, the median.
- `wait_ratio_CASE`: the second over the first; `wait_ratio_p95_CASE`: of their 95th percentiles.
- `ingest_ratio_CASE`: frames/s beside questions, over those alone.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from bench.machine import Figure, machine, report
from pipeline import launch
from pipeline.client import Client
from pipeline.home import Home
from pipeline.show import wait_for_streams
from pipeline.worlds import WrittenWorld, write_world

ASKED, TAKEN = "asked", "taken"
PAUSE_S = 1.0
"""Ingest has begun by then."""


def asking(client: Client, questions: Iterator[str], waits: list[float]) -> Iterator[None]:
    """Asks one after the other; each adds its milliseconds."""
    for question in questions:
        begun = time.perf_counter()
        client.ask(ASKED, question)
        waits.append(1000 * (time.perf_counter() - begun))
        yield


def frames_per_s(client: Client, seconds: float, meanwhile: Iterator[None]) -> float:
    """Frames that prefill has done a second; `meanwhile` is gone through until the time is over."""
    before, begun = client.stats()["prefilled_frames"], time.monotonic()
    go_through(meanwhile, seconds)
    return float((client.stats()["prefilled_frames"] - before) / (time.monotonic() - begun))


def go_through(steps: Iterator[None], seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        next(steps)


def resting() -> Iterator[None]:
    while True:
        time.sleep(0.1)
        yield


def measure(
    case: str,
    config: str,
    overrides: Sequence[str],
    worlds: tuple[WrittenWorld, WrittenWorld],
    home: Home,
    seconds: float,
    streams: int,
) -> list[Figure]:
    short, long = worlds
    questions = itertools.cycle(q.question for q in short.questions)
    alone, beside = list[float](), list[float]()
    try:
        nice, give_way = case.split("/")
        settings = ["serve.port=0", f"ingest.nice={nice}", f"ingest.give_way={give_way}", *overrides]
        started = launch.start(home, config, settings, on_phase=_say)
        with Client(started.record.url) as client:
            client.add_stream(ASKED, str(short.video))
            wait_for_streams(client, [ASKED])
            go_through(asking(client, questions, []), PAUSE_S)
            go_through(asking(client, questions, alone), seconds)
            names = [f"{TAKEN}-{i}" for i in range(streams)]
            for name in names:
                client.add_stream(name, str(long.video))
            time.sleep(PAUSE_S)
            ingest_alone = frames_per_s(client, seconds, resting())
            ingest_beside = frames_per_s(client, seconds, asking(client, questions, beside))
            if any(s["state"] != "ingesting" for s in client.streams() if s["id"] in names):
                raise SystemExit("a world was over before the measurement: give more --minutes or --streams")
    finally:
        launch.stop(home)
    tail = float(np.percentile(beside, 95) / np.percentile(alone, 95))
    return [
        Figure(f"wait_ratio_{case}", "ratio", (float(np.median(beside) / np.median(alone)),)),
        Figure(f"wait_ratio_p95_{case}", "ratio", (tail,)),
        Figure(f"ingest_ratio_{case}", "ratio", (ingest_beside / ingest_alone,)),
        Figure(f"question_ms_{case}_alone", "ms", tuple(alone)),
        Figure(f"question_ms_{case}_beside", "ms", tuple(beside)),
        Figure(f"frames_per_s_{case}_alone", "frames/s", (ingest_alone,)),
    ]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.under_load", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--minutes", type=float, default=60.0, help="of the world that is ingested")
    parser.add_argument("--streams", type=int, default=8, help="of that world")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement")
    parser.add_argument("--cases", nargs="*", default=["0/0", "5/0", "0/0.5", "5/0.5"], help="NICE/GIVE_WAY")
    parser.add_argument("--config", default="local")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("overrides", nargs="*", metavar="SETTING", help="settings a.b=c")
    given = parser.parse_args(arguments)
    about = machine()
    work = Path(tempfile.mkdtemp(prefix="bench-"))
    try:
        worlds = (
            write_world(work, ASKED, seed=900, minutes=4, questions=200),
            write_world(work, TAKEN, seed=901, minutes=given.minutes, questions=1),
        )
        figures = [
            figure
            for number, case in enumerate(given.cases)
            for figure in measure(
                case,
                given.config,
                given.overrides,
                worlds,
                Home(work / f"home-{number}"),
                given.seconds,
                given.streams,
            )
        ]
    finally:
        shutil.rmtree(work, ignore_errors=True)
    report(figures, about, as_json=given.json)


if __name__ == "__main__":
    main()
