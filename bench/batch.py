"""A log of questions as a batch, against asking them one by one.

    python -m bench.batch --json

The same town-square videos and questions go three ways, by turns, on a Ray and a server that are up:

- one by one: each question over HTTP, the next when the answer is there, of streams that are ingested already;
- a batch of the server's store: the same streams, so that only the asking differs;
- a batch of the folder of videos: each is shown to the model first.

`answers_per_s` of a batch counts from its first answers to its last, as HTTP's counts no start either; what is waited
for from the call to the output is in `batch_store_s` and `batch_files_s`, workers' start and model included. Asking
one by one of footage that nobody has ingested, a video being shown again for each question, is measured on a few
questions in one process.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.machine import Figure, machine, report
from pipeline.settings import load_settings
from pipeline.worlds import write_world
from streamkv.config import PipelineConfig

SHOWN_AGAIN = 6
"""Questions for each of which the video is shown again."""
FEWEST = 200
"""Questions in all: answers come 32 at a time."""


@dataclass(frozen=True)
class BatchRun:
    seconds: float  # from the call to the output
    answers_per_s: float  # from the first answers to the last
    same: float  # share of answers that are as HTTP's


class Case:
    """Videos, and a log of questions about them: by file for a folder, by stream for a store."""

    def __init__(self, folder: Path, videos: int, minutes: float, questions: int) -> None:
        self.folder = folder / "videos"
        worlds = [
            write_world(self.folder, f"v{i}", seed=900 + i, minutes=minutes, questions=questions)
            for i in range(videos)
        ]
        self.videos = {world.name: world.video for world in worlds}
        self.asked = [(world.name, q.question) for world in worlds for q in world.questions]
        self.logs = {kind: folder / f"{kind}.jsonl" for kind in ("files", "store")}
        for kind, log in self.logs.items():
            end = ".mp4" if kind == "files" else ""
            log.write_text(
                "".join(json.dumps({"question": q, "video": v + end}) + "\n" for v, q in self.asked)
            )


def ask_one_by_one(client: Any, case: Case) -> tuple[float, list[str]]:
    """Seconds, and the answers."""
    begun = time.perf_counter()
    answers = [client.ask(stream, question)["answer"] for stream, question in case.asked]
    return time.perf_counter() - begun, answers


def run_as_batch(log: Path, footage: Path, config: PipelineConfig, expected: Sequence[str]) -> BatchRun:
    from pipeline.batch.journal import open_journal
    from pipeline.batch.run import read_inputs, run_batch

    out = log.with_suffix(".parquet")
    out.unlink(missing_ok=True)
    heard: list[tuple[float, int]] = []
    begun = time.perf_counter()
    inputs = read_inputs(log, footage, out, config)
    with open_journal(out) as journal:
        outcome = run_batch(
            inputs,
            journal,
            workers=os.cpu_count() or 1,
            on_answers=lambda done, total, note: heard.append((time.perf_counter(), done)),
            need_ray=lambda: None,
        )
    seconds = time.perf_counter() - begun
    (first_at, first), (last_at, last) = heard[1], heard[-1]  # heard[0]: nothing yet
    answers = [answer.answer for _, answer in outcome.outcomes()]
    same = sum(a == b for a, b in zip(answers, expected, strict=True)) / len(expected)
    return BatchRun(seconds, (last - first) / (last_at - first_at), same)


def show_again(config: PipelineConfig, case: Case) -> tuple[float, ...]:
    """Seconds of each question whose video is shown to the model for it, and then forgotten."""
    from pipeline.batch.worker import Asked, VideoAnswerer, VideoQuestions

    worker, taken = VideoAnswerer(config, 1), []
    every = max(1, len(case.asked) // SHOWN_AGAIN)
    for i, (name, question) in enumerate(case.asked[::every][:SHOWN_AGAIN]):
        memory = case.folder.parent / f"again-{i}"
        asked = Asked(str(i), question, config.serve.max_new_tokens)
        begun = time.perf_counter()
        list(worker.answer(VideoQuestions(name, (asked,), str(case.videos[name]), str(memory))))
        taken.append(time.perf_counter() - begun)
    return tuple(taken)


def measure(config_name: str, overrides: Sequence[str], case: Case, work: Path, rounds: int) -> list[Figure]:
    from pipeline import launch
    from pipeline.client import Client
    from pipeline.cluster import local_ray, make_temp
    from pipeline.home import Home
    from pipeline.show import wait_for_streams

    home, config = Home(work / "home"), load_settings(config_name, overrides)
    one_by_one: list[float] = []
    batches: dict[str, list[BatchRun]] = {"store": [], "files": []}
    footage = {"store": home.store, "files": case.folder}
    try:
        started = launch.start(home, config_name, ["serve.port=0", *overrides], on_phase=_say)
        with Client(started.record.url) as client, local_ray(config, make_temp()):
            begun = time.perf_counter()
            for name, video in case.videos.items():
                client.add_stream(name, str(video))
            wait_for_streams(client, list(case.videos))
            ingest_s = time.perf_counter() - begun
            for _ in range(rounds):
                seconds, answers = ask_one_by_one(client, case)
                one_by_one.append(len(case.asked) / seconds)
                _say(f"one by one: {one_by_one[-1]:.1f} answers/s")
                for kind, runs in batches.items():
                    runs.append(run_as_batch(case.logs[kind], footage[kind], config, answers))
                    _say(f"batch of {kind}: {runs[-1]}")
    finally:
        launch.stop(home)
    again_s = show_again(config, case)
    store, files = batches["store"], batches["files"]
    n = len(case.asked)
    return [
        Figure(
            "batch_over_one_by_one", "ratio", _ratios(store, one_by_one), "the same store, once under way"
        ),
        Figure(
            "batch_over_one_by_one_whole",
            "ratio",
            tuple((ingest_s + n / rate) / run.seconds for run, rate in zip(files, one_by_one, strict=True)),
            "folder to answers; ingest and asking against the batch with its workers' start",
        ),
        Figure(
            "batch_over_shown_again",
            "ratio",
            tuple(n * sum(again_s) / len(again_s) / run.seconds for run in files),
            "one by one of footage that is not ingested, in one process",
        ),
        Figure("one_by_one_answers_per_s", "answers/s", tuple(one_by_one)),
        Figure("batch_answers_per_s", "answers/s", tuple(run.answers_per_s for run in store)),
        Figure("batch_store_s", "s", tuple(run.seconds for run in store)),
        Figure("batch_files_s", "s", tuple(run.seconds for run in files)),
        Figure("ingest_s", "s", (ingest_s,)),
        Figure("shown_again_s", "s", again_s, "for each question"),
        Figure("same_answers", "share", tuple(run.same for run in (*store, *files)), "as over HTTP"),
    ]


def _ratios(runs: Sequence[BatchRun], rates: Sequence[float]) -> tuple[float, ...]:
    return tuple(run.answers_per_s / rate for run, rate in zip(runs, rates, strict=True))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.batch", description=__doc__.partition("\n")[0])
    parser.add_argument("--videos", type=int, default=6)
    parser.add_argument("--minutes", type=float, default=4.0, help="of each video")
    parser.add_argument("--questions", type=int, default=200, help="about each video")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--config", default="local")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("overrides", nargs="*", help="settings a.b=c")
    given = parser.parse_args(arguments)
    if given.videos * given.questions < FEWEST:
        parser.error(
            f"got {given.videos} videos x {given.questions} questions, need {FEWEST} or more for a rate"
        )
    about = machine()
    work = Path(tempfile.mkdtemp(prefix="bench-"))
    try:
        case = Case(work, given.videos, given.minutes, given.questions)
        figures = measure(given.config, given.overrides, case, work, given.rounds)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    report(figures, about, as_json=given.json)


if __name__ == "__main__":
    main()
