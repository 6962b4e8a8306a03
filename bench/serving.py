"""What Serve, Ray and HTTP add to a question, and how many are answered when many ask at once, behind each proxy.

    python -m bench.serving --json

A world is ingested by a server that is up; the same store is read by an `Answerer` in this process. The same questions
go to both by turns, with the model on one thread each, while nothing else is asked:

- `added_ms_PROXY`: what a question waits longer over HTTP for its whole answer, the median over questions. (What the
  two have in common drops out question by question.)
- `added_share_PROXY`: the same over what it waits in this process.
- `answers_ratio_N_PROXY`: answers a second with N askers at once over HTTP, over those of one asker.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch

from bench.machine import Figure, machine, report
from pipeline import launch
from pipeline.answering import Answerer
from pipeline.client import Client
from pipeline.dialogue import Query
from pipeline.home import Home
from pipeline.settings import load_settings
from pipeline.show import wait_for_streams
from pipeline.worlds import WrittenWorld, write_world

STREAM = "square"
PROXIES = ("serve", "haproxy")
WARM_UP = 5


def waits(client: Client, answerer: Answerer, questions: Sequence[str]) -> tuple[list[float], list[float]]:
    """Seconds of each question over HTTP, and in this process."""
    over_http, in_process = [], []
    for question in questions:
        begun = time.perf_counter()
        client.ask(STREAM, question)
        between = time.perf_counter()
        answerer.answer(Query(STREAM, question), threading.Event())
        over_http.append(between - begun)
        in_process.append(time.perf_counter() - between)
    return over_http, in_process


def answers_per_s(url: str, questions: Sequence[str], askers: int) -> float:
    """Each asker has a connection of its own, and asks the next question when it has its answer."""
    waiting = list(reversed(questions))

    def ask() -> None:
        with Client(url) as client:
            while waiting:
                try:
                    question = waiting.pop()
                except IndexError:
                    return
                client.ask(STREAM, question)

    begun = time.perf_counter()
    with ThreadPoolExecutor(askers) as pool:
        for asked in [pool.submit(ask) for _ in range(askers)]:
            asked.result()
    return len(questions) / (time.perf_counter() - begun)


def measure(
    proxy: str,
    config_name: str,
    overrides: Sequence[str],
    world: WrittenWorld,
    work: Path,
    askers: Sequence[int],
) -> list[Figure]:
    home, settings = Home(work / proxy), [*overrides, f"serve.proxy={proxy}"]
    questions = [q.question for q in world.questions]
    try:
        started = launch.start(home, config_name, ["serve.port=0", *settings], on_phase=_say)
        with Client(started.record.url) as client:
            client.add_stream(STREAM, str(world.video))
            wait_for_streams(client, [STREAM])
            config = load_settings(config_name, settings)
            config = replace(config, store=replace(config.store, root=str(home.store)))
            torch.set_num_threads(max(1, config.model.threads))
            answerer = Answerer(config)
            waits(client, answerer, questions[:WARM_UP])
            over_http, in_process = waits(client, answerer, questions)
            rates = {n: answers_per_s(started.record.url, questions, n) for n in (1, *askers)}
    finally:
        launch.stop(home)
    added = [1e3 * (a - b) for a, b in zip(over_http, in_process, strict=True)]
    return [
        Figure(f"added_ms_{proxy}", "ms", tuple(added), "over HTTP, beyond the answer itself"),
        Figure(
            f"added_share_{proxy}",
            "share",
            (statistics.median(added) / (1e3 * statistics.median(in_process)),),
        ),
        Figure(f"in_process_ms_{proxy}", "ms", tuple(1e3 * s for s in in_process)),
        Figure(f"answers_per_s_1_{proxy}", "answers/s", (rates[1],)),
        *(Figure(f"answers_ratio_{n}_{proxy}", "ratio", (rates[n] / rates[1],)) for n in askers),
    ]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.serving", description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=4.0, help="of the world")
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--askers", type=int, nargs="*", default=[8, 32], help="at once, beside one")
    parser.add_argument("--proxies", nargs="*", choices=PROXIES, default=list(PROXIES))
    parser.add_argument("--config", default="local")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("overrides", nargs="*", metavar="SETTING", help="settings a.b=c")
    given = parser.parse_args(arguments)
    about = machine()
    work = Path(tempfile.mkdtemp(prefix="bench-"))
    try:
        world = write_world(work, STREAM, seed=900, minutes=given.minutes, questions=given.questions)
        figures = [
            figure
            for proxy in given.proxies
            for figure in measure(proxy, given.config, given.overrides, world, work, given.askers)
        ]
    finally:
        shutil.rmtree(work, ignore_errors=True)
    report(figures, about, as_json=given.json)


if __name__ == "__main__":
    main()
