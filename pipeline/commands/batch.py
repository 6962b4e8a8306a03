"""`batch`: a log of questions about archived footage."""

from __future__ import annotations

import os
import sys
import time
from contextlib import ExitStack, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from pipeline.commands.options import JsonOption
from pipeline.terminal import INTERRUPTED, bars, counts_of, err, fail, friendly, out, print_json

if TYPE_CHECKING:
    from pipeline.batch.run import OnAnswers, Outcome
    from streamkv.config import PipelineConfig

LINE_EVERY_S = 5.0
"""Between lines of progress, where stderr is no terminal."""
MOST_ERRORS = 5
"""Failed rows that are shown; the output has them all."""


def register(app: typer.Typer) -> None:
    app.command(
        epilog="Example: [bold]streamkv batch questions.jsonl --footage videos --out answers.parquet[/]"
    )(batch)


def batch(
    questions: Annotated[
        Path | None,
        typer.Argument(metavar="QUESTIONS", help="The log: .jsonl, .csv or .parquet.", show_default=False),
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings over the configuration, a.b=c.", show_default=False)
    ] = None,
    footage: Annotated[
        Path | None,
        typer.Option(help="Folder of the videos, or of a store (.streamkv/store).", show_default=False),
    ] = None,
    answers: Annotated[
        Path | None, typer.Option("--out", help="Where the answers go, a .parquet.", show_default=False)
    ] = None,
    example: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Write three short videos and a log to try, and end.", show_default=False
        ),
    ] = None,
    config: Annotated[str, typer.Option(help="A shipped configuration's name, or a YAML file.")] = "local",
    preset: Annotated[str, typer.Option(help="Method: streamkv, rekv, window ...", show_default=False)] = "",
    workers: Annotated[
        int, typer.Option(min=0, help="Videos at once; 0: one for each core, or each GPU.")
    ] = 0,
    address: Annotated[
        str,
        typer.Option(envvar="RAY_ADDRESS", help="A Ray that runs already; default: one of our own."),
    ] = "",
    as_json: JsonOption = False,
) -> None:
    """Answer a log of questions about archived footage. Each video is shown to the model once, each question is
    asked once, and all cores or nodes take part.

    The log has the columns `question` and `video`: a file's name in the folder, or a stream's id in the store. `id`,
    `max_new_tokens`, `from` and `to` are read if they are there; all others go through. A row that cannot be
    answered keeps its error. Stopped or killed, the same command goes on; given again at the end, it tries what has
    failed.
    """
    from pipeline.settings import load_settings

    with friendly(as_json=as_json):
        if example is not None:
            _write_example(example, as_json=as_json)
            return
        if questions is None or footage is None or answers is None:
            fail("need QUESTIONS, --footage and --out; or try --example DIR", as_json=as_json, status=2)
        settings = load_settings(config, [*(overrides or ()), *([f"preset={preset}"] if preset else [])])
        begun = time.monotonic()
        try:
            outcome = _answer(settings, questions, footage, answers, workers, address)
        except KeyboardInterrupt:
            fail(
                "interrupted; what is answered is kept: to go on, give the same command again",
                as_json=as_json,
                kind="Interrupted",
                status=INTERRUPTED,
            )
        summary = summarise(outcome, answers, time.monotonic() - begun)
        if as_json:
            print_json(summary)
        else:
            _print(summary, outcome)


def _write_example(folder: Path, *, as_json: bool) -> None:
    from pipeline.batch.example import write_example

    with bars() as progress:
        task = progress.add_task("drawing", total=None, note="videos")
        try:
            log = write_example(folder, counts_of(progress, task))
        except OSError as exc:
            fail(str(exc), as_json=as_json, kind=type(exc).__name__)
    if as_json:
        print_json({"questions": str(log), "footage": str(folder)})
        return
    out.print(f"{escape(str(log))}  (what is true is in its column `expected`)")
    out.print(
        f"next:  streamkv batch {escape(str(log))} --footage {escape(str(folder))} "
        f"--out {escape(str(folder / 'answers.parquet'))}",
        soft_wrap=True,
    )


def _answer(
    settings: PipelineConfig, questions: Path, footage: Path, answers: Path, workers: int, address: str
) -> Outcome:
    from pipeline.batch.journal import open_journal
    from pipeline.batch.run import read_inputs, run_batch
    from pipeline.cluster import joined_ray, local_ray, make_temp, when_needed

    inputs = read_inputs(questions, footage, answers, settings)
    with ExitStack() as stack:
        journal = stack.enter_context(open_journal(answers))
        on_answers = _progress(stack, len(inputs.log.rows))
        stack.enter_context(redirect_stdout(sys.stderr))  # Ray tells of dead workers there, beside the --json
        if address:
            need_ray = stack.enter_context(when_needed(lambda: joined_ray(address)))
        else:
            workers = workers or os.cpu_count() or 1  # a Ray of our own says that it has more
            need_ray = stack.enter_context(when_needed(lambda: local_ray(settings, make_temp())))
        return run_batch(inputs, journal, workers=workers, on_answers=on_answers, need_ray=need_ray)


def _progress(stack: ExitStack, num_rows: int) -> OnAnswers:
    progress = stack.enter_context(bars())
    task = progress.add_task("answering", total=num_rows, note="loading the model")
    last = 0.0

    def on_answers(done: int, total: int, note: str) -> None:
        nonlocal last
        progress.update(task, completed=done, total=total, note=escape(note))
        if not err.is_terminal and (done == total or time.monotonic() - last > LINE_EVERY_S):
            last = time.monotonic()
            err.print(f"{done}/{total} {note}", highlight=False, markup=False)

    return on_answers


def summarise(outcome: Outcome, answers: Path, seconds: float) -> dict[str, Any]:
    """What a batch did and cost; a video's cost counts once, whatever the number of its questions."""
    rows = list(outcome.outcomes())
    asked = outcome.answers.values()
    videos = {p.video.name: outcome.answers[p.asked.key] for p in outcome.plan.rows if p.video and p.asked}
    failed = [{"id": row_id, "error": answer.error} for row_id, answer in rows if answer.error is not None]

    def total(of: Any, name: str) -> Any:
        return sum(getattr(answer, name) or 0 for answer in of)

    return {
        "out": str(answers),
        "rows": len(rows),
        "answered": len(rows) - len(failed),
        "failed": len(failed),
        "errors": failed[:MOST_ERRORS],
        "questions": len(outcome.answers),
        "from_before": outcome.found,
        "videos": len(videos),
        "seconds": round(seconds, 2),
        "cost": {
            "frames": total(videos.values(), "frames"),
            "prompt_tokens": total(asked, "prompt_tokens"),
            "answer_tokens": total(asked, "answer_tokens"),
            "decode_encode_s": round(total(videos.values(), "decode_encode_s"), 3),
            "prefill_s": round(total(videos.values(), "prefill_s"), 3),
            "answer_s": round(total(asked, "answer_s"), 3),
        },
    }


def _print(summary: dict[str, Any], outcome: Outcome) -> None:
    cost = summary["cost"]
    for failed in summary["errors"]:
        err.print(f"[yellow]failed[/] {escape(failed['id'])}: {escape(failed['error'])}", highlight=False)
    out.print(
        f"[bold]{escape(summary['out'])}[/]: {summary['answered']} of {summary['rows']} rows answered"
        + (f", {summary['failed']} failed (column `error`)" if summary["failed"] else "")
        + (f"; {summary['from_before']} answers from before" if summary["from_before"] else ""),
        highlight=False,
    )
    out.print(
        f"{summary['videos']} videos, {cost['frames']} frames, {cost['prompt_tokens']} prompt and "
        f"{cost['answer_tokens']} answer tokens; decode and encode {cost['decode_encode_s']:.1f} s, prefill "
        f"{cost['prefill_s']:.1f} s, answers {cost['answer_s']:.1f} s of work; in all {summary['seconds']:.1f} s",
        highlight=False,
    )
