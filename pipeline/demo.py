"""The demo: worlds are drawn while the server starts, ingested together, and asked about over HTTP."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from pipeline import launch
from pipeline.client import Client
from pipeline.home import Home
from pipeline.launch import LaunchError
from pipeline.show import wait_for_streams
from pipeline.terminal import Phases, bars, clock, err, out, shares_of
from pipeline.worlds import WrittenWorld, write_world

if TYPE_CHECKING:
    from streamkv.townsquare import Question

SHORT_MINUTES = (1.0, 1.5, 2.0)
"""Lengths of the streams beside the long one."""


@dataclass(frozen=True)
class DemoPlan:
    questions: int
    minutes: float  # of the long stream
    seed: int
    config: str
    overrides: tuple[str, ...]
    keep: bool

    def lengths(self) -> dict[str, float]:
        """Stream to minutes; the long one last."""
        names = [f"square-{letter}" for letter in "abc"]
        return {**dict(zip(names, SHORT_MINUTES, strict=True)), "square-long": self.minutes}

    def shares(self) -> dict[str, int]:
        """Stream to questions: half of them about the long one."""
        names = list(self.lengths())
        half = self.questions // 2
        rest = [half // 3 + (i < half % 3) for i in range(3)]
        return dict(zip(names, [*rest, self.questions - half], strict=True))


def run_demo(home: Home, plan: DemoPlan) -> dict[str, Any]:
    """The report: answers with truth and evidence, accuracy, and where the time went.

    The server is left as it was found: one that the demo started is stopped, unless `keep`.
    """
    begun = time.monotonic()
    process = launch.spawn(home, plan.config, plan.overrides)
    was_up = process is None
    try:
        worlds = _draw(home, plan)
        with Phases("starting the server") as phases:
            record = launch.wait_ready(home, process, phases).record
        ready_s = time.monotonic() - begun
        with Client(record.url) as client:
            ingest = _ingest(client, worlds)
            asked = time.monotonic()
            answers = _ask_all(client, worlds, plan)
            asking_s = time.monotonic() - asked
    except BaseException:
        if process is not None:
            launch.abort(home, process)
        raise
    if not was_up and not plan.keep:
        with Phases("stopping the server") as phases:
            phases("everything it started")
            launch.stop(home)
    return {
        "accuracy": round(sum(a["correct"] for a in answers) / len(answers), 4),
        "answers": answers,
        "streams": ingest["streams"],
        "preset": record.preset,
        "url": record.url if plan.keep or was_up else None,
        "timings_s": {
            "ready": round(ready_s, 2),
            "ingest": ingest["seconds"],
            "questions": round(asking_s, 2),
            "total": round(time.monotonic() - begun, 2),
        },
    }


def _draw(home: Home, plan: DemoPlan) -> list[WrittenWorld]:
    shares = plan.shares()
    worlds = []
    with bars() as progress:
        for i, (name, minutes) in enumerate(plan.lengths().items()):
            task = progress.add_task(f"drawing {name}", total=1.0, note=f"{minutes:g} min")
            world = write_world(
                home.worlds,
                name,
                seed=plan.seed + i,
                minutes=minutes,
                questions=max(1, shares[name]),
                on_progress=shares_of(progress, task),
            )
            progress.update(task, completed=1.0, note=f"{world.duration_s:g} s")
            worlds.append(world)
    err.print(f"{len(worlds)} videos in {home.worlds}", highlight=False)
    return worlds


def _ingest(client: Client, worlds: Sequence[WrittenWorld]) -> dict[str, Any]:
    """Registers the worlds anew and waits for them."""
    here = {stream["id"] for stream in client.streams()}
    begun = time.monotonic()
    for world in worlds:
        if world.name in here:
            client.remove_stream(world.name)
        client.add_stream(world.name, str(world.video))
    streams = wait_for_streams(client, [world.name for world in worlds])
    seconds = time.monotonic() - begun
    failed = [f"{s['id']}: {s['detail']}" for s in streams if s["state"] != "done"]
    if failed:
        raise LaunchError("ingest failed: " + "; ".join(failed))
    video_s = sum(world.duration_s for world in worlds)
    err.print(
        f"{len(worlds)} streams, {clock(video_s)} of video, ingested together in {seconds:.1f} s",
        highlight=False,
    )
    return {"streams": streams, "seconds": round(seconds, 2)}


def _ask_all(client: Client, worlds: Sequence[WrittenWorld], plan: DemoPlan) -> list[dict[str, Any]]:
    shares = plan.shares()
    answers = []
    with bars() as progress:
        task = progress.add_task("asking", total=plan.questions, note="")
        for world in worlds:
            for question in world.questions[: shares[world.name]]:
                answers.append(_ask(client, world.name, question))
                progress.advance(task)
    return answers


def _ask(client: Client, stream_id: str, question: Question) -> dict[str, Any]:
    from streamkv.townsquare import is_correct

    begun = time.monotonic()
    answer = client.ask(stream_id, question.question)
    return {
        "stream": stream_id,
        "kind": question.kind,
        "question": question.question,
        "answer": answer["answer"],
        "expected": question.answer,
        "correct": is_correct(answer["answer"], question.answer),
        "moment": {"start_s": question.start_s, "end_s": question.end_s},
        "evidence": [{k: e[k] for k in ("start_s", "end_s", "weight")} for e in answer["evidence"]],
        "as_of_s": answer["as_of_s"],
        "ms": round((time.monotonic() - begun) * 1000, 1),
    }


def print_report(report: dict[str, Any], plan: DemoPlan, home: str) -> None:
    table = Table(header_style="bold", box=None, pad_edge=False)
    for name in ("stream", "question", "answer", "truth", "", "strongest evidence", "true moment", "ms"):
        table.add_column(name, justify="right" if name == "ms" else "left", overflow="fold")
    for a in report["answers"]:
        best = a["evidence"][0] if a["evidence"] else None
        seen = f"{clock(best['start_s'])}-{clock(best['end_s'])} ({best['weight']:.2f})" if best else "-"
        moment = f"{clock(a['moment']['start_s'])}-{clock(a['moment']['end_s'])}"
        mark = "[green]ok[/]" if a["correct"] else "[red]no[/]"
        table.add_row(
            *(escape(a[name]) for name in ("stream", "question", "answer", "expected")),
            mark,
            seen,
            moment,
            f"{a['ms']:.0f}",
        )
    out.print(table)
    right = sum(a["correct"] for a in report["answers"])
    seconds = report["timings_s"]
    out.print(
        f"\n[bold]accuracy {report['accuracy']:.2f}[/] ({right} of {len(report['answers'])})   "
        f"preset {report['preset']}   ready after {seconds['ready']} s, ingest {seconds['ingest']} s, "
        f"questions {seconds['questions']} s, in all {seconds['total']} s",
        highlight=False,
    )
    at = "" if home == ".streamkv" else f" --home {escape(home)}"
    if report["url"]:
        out.print(f"It is still up at {escape(report['url'])}. Ask your own:")
        out.print(
            f"  streamkv ask{at} square-long 'what is the weather at {_some_clock(report)}?'", highlight=False
        )
        out.print(f"  streamkv down{at}", highlight=False)
    else:
        out.print(f"To keep it running and ask your own:  streamkv demo --keep{at}", highlight=False)


def _some_clock(report: dict[str, Any]) -> str:
    times = [a["expected"] for a in report["answers"] if a["kind"] == "time" and a["stream"] == "square-long"]
    return str(times[0]) if times else "12:00"
