"""Many clients at once against one, through a replica's desk: how much questions that are answered together share.

    python -m bench.clients --json

One process, no HTTP and no Ray: town-square worlds are ingested into a store, and clients ask about them by turns of 1,
8 and 32 at once, each its next question when it has its answer. What a client waits is `wait_ms`, the median.

`clients_N_over_1` is of answers a second; `cpu_N_over_1` of processor time an answer, which other work on the machine
disturbs less. `same_answers` is the share of answers that are, to the letter, those of one client.
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
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.machine import Figure, machine, report
from pipeline.answering import Answerer
from pipeline.desk import Desk
from pipeline.dialogue import Query
from pipeline.settings import load_settings
from pipeline.worlds import write_world
from streamkv.config import PipelineConfig
from streamkv.engine import Engine
from streamkv.frame_batches import FrameBatches
from streamkv.ingest import ingest
from streamkv.models import load_model
from streamkv.store import ModelIdentity, SegmentStore
from streamkv.video import sample_frames

CLIENTS = (1, 8, 32)


@dataclass(frozen=True)
class Run:
    """The same questions, asked by some clients at once."""

    answers: list[str]
    seconds: float
    cpu_s: float  # of the whole process
    wait_ms: float  # of a client for an answer, median

    @property
    def per_s(self) -> float:
        return len(self.answers) / self.seconds


def write_store(config: PipelineConfig, videos: Path, streams: int, minutes: float, each: int) -> list[Query]:
    """Ingests worlds; questions about all of them, by turns."""
    model = load_model(config.model)
    engine, asked = Engine(model, config.method), []
    with SegmentStore.open(config.store.root, identity=ModelIdentity.of(model)) as store:
        for i in range(streams):
            world = write_world(videos, f"v{i}", seed=900 + i, minutes=minutes, questions=each)
            store.add_stream(world.name, str(world.video))
            frames = sample_frames(str(world.video), config.source.sample_fps)
            ingest(
                engine,
                store,
                world.name,
                frames,
                batches=FrameBatches.configured(config.source),
                codec=config.store.codec,
            )
            asked.append([Query(world.name, question.question) for question in world.questions])
    return [query for some in zip(*asked, strict=True) for query in some]


def ask(desk: Desk, queries: Sequence[Query], clients: int) -> Run:
    waits: list[float] = []

    def one(query: Query) -> str:
        begun = time.perf_counter()
        reply = desk.ask(query, threading.Event()).result()
        waits.append(1000 * (time.perf_counter() - begun))
        return reply.answer.answer

    with ThreadPoolExecutor(clients) as pool:
        begun, cpu = time.perf_counter(), time.process_time()
        answers = list(pool.map(one, queries))
        seconds, cpu_s = time.perf_counter() - begun, time.process_time() - cpu
    return Run(answers, seconds, cpu_s, statistics.median(waits))


def measure(desk: Desk, queries: Sequence[Query], rounds: int) -> list[Figure]:
    runs: dict[int, list[Run]] = {clients: [] for clients in CLIENTS}
    for clients in CLIENTS:
        ask(desk, queries, clients)  # indexes and tables are warm from here on
    for _ in range(rounds):
        for clients, some in runs.items():
            some.append(ask(desk, queries, clients))
            _say(f"{clients} clients: {some[-1].per_s:.1f} answers/s")
    ones, figures = runs[1], []
    for clients in CLIENTS[1:]:
        pairs = list(zip(runs[clients], ones, strict=True))
        figures += [
            Figure(f"clients_{clients}_over_1", "ratio", tuple(run.per_s / one.per_s for run, one in pairs)),
            Figure(f"cpu_{clients}_over_1", "ratio", tuple(run.cpu_s / one.cpu_s for run, one in pairs)),
            Figure(
                f"same_answers_{clients}",
                "share",
                tuple(statistics.mean(map(str.__eq__, run.answers, one.answers)) for run, one in pairs),
            ),
        ]
    for clients, some in runs.items():
        figures += [
            Figure(f"answers_per_s_{clients}", "answers/s", tuple(run.per_s for run in some)),
            Figure(f"wait_ms_{clients}", "ms", tuple(run.wait_ms for run in some)),
        ]
    return figures


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.clients", description=__doc__.partition("\n")[0])
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--minutes", type=float, default=6.0, help="of each")
    parser.add_argument("--questions", type=int, default=64, help="about each")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("overrides", nargs="*", help="settings a.b=c")
    given = parser.parse_args(arguments)
    about = machine()
    work = Path(tempfile.mkdtemp(prefix="bench-"))
    try:
        config = load_settings("local", [f"store.root={work / 'store'}", *given.overrides])
        torch.set_num_threads(max(1, config.model.threads))
        _say("ingesting")
        queries = write_store(config, work / "videos", given.streams, given.minutes, given.questions)
        desk = Desk(Answerer(config), config.serve.batch_questions)
        figures = measure(desk, queries, given.rounds)
        desk.close()
    finally:
        shutil.rmtree(work, ignore_errors=True)
    report(figures, about, as_json=given.json)


if __name__ == "__main__":
    main()
