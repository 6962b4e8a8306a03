"""`eval`: suites x presets to one table."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from pipeline.commands.options import JsonOption
from pipeline.terminal import bars, err, friendly, out, print_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streamkv.config import PipelineConfig
    from streamkv.evaluation.types import Suite

TOWNSQUARE = "townsquare"


def register(app: typer.Typer) -> None:
    app.command(name="eval", epilog="Example: [bold]streamkv eval --quick --seed 7[/]")(evaluate)


def evaluate(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            help="Settings a.b=c for every preset, such as model.path=FOLDER.", show_default=False
        ),
    ] = None,
    suite: Annotated[
        str, typer.Option(help="townsquare, or a benchmark: `streamkv eval --suites` lists them.")
    ] = TOWNSQUARE,
    preset: Annotated[
        str, typer.Option(help="Presets, with commas; `oracle` is streamkv handed the right segments.")
    ] = "streamkv,rekv,window,recent,full,oracle",
    variant: Annotated[
        list[str] | None,
        typer.Option(help="A row of your own: 'NAME: a.b=c ...'. May be repeated.", show_default=False),
    ] = None,
    ablations: Annotated[
        bool, typer.Option("--ablations", help="Add the rows of configs/evaluation/ablations.yaml.")
    ] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="A small townsquare, in two or three minutes.")
    ] = False,
    lengths: Annotated[
        str, typer.Option(help="Only worlds of these minutes, such as 2,10.", show_default=False)
    ] = "",
    seed: Annotated[int, typer.Option(min=0, max=999, help="Of the worlds and questions.")] = 0,
    annotations: Annotated[
        Path | None,
        typer.Option(help="A benchmark's annotation file, or folder of them.", show_default=False),
    ] = None,
    videos: Annotated[
        Path | None, typer.Option(help="Folder of a benchmark's videos.", show_default=False)
    ] = None,
    config: Annotated[str, typer.Option(help="Configuration: model, sample rate.")] = "demo",
    folder: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Worlds, features, answers and tables; resumed from.")
    ] = Path("eval"),
    workers: Annotated[int, typer.Option(min=0, help="Tasks at once; 0: one for each core.")] = 0,
    list_suites: Annotated[bool, typer.Option("--suites", help="List the suites and end.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Measure answers: accuracy by kind and age, bytes an hour and time to first token, for each preset.

    The controls `recent` (the last 4 frames) and `full` (everything) are always there. Run the same command again to
    go on after a break. Writes answers.parquet, table.parquet, table.md and accuracy.png to DIR/SUITE-SEED.
    """
    from pipeline.evaluation import ablations as ablation_rows
    from pipeline.evaluation import make_variants
    from pipeline.settings import load_settings

    with friendly(as_json=as_json):
        if list_suites:
            _print_suites(as_json)
            return
        settings = load_settings(config, tuple(overrides or ()))
        names = [name.strip() for name in preset.split(",") if name.strip()]
        variants = make_variants(config, overrides or (), names, variant or ())
        if ablations:
            variants += ablation_rows(config, overrides or ())
        minutes = _numbers(lengths)
        suites = _suites(suite, folder, seed, annotations, videos, quick=quick, lengths=minutes)
        here = folder / "-".join(
            [suite, *(["quick"] if quick else []), *(f"{m:g}m" for m in minutes), str(seed)]
        )
        report = _measure(settings, suites, variants, here, folder, seed, workers or os.cpu_count() or 1)
        if as_json:
            print_json(report)
        else:
            _print_tables(report, here)


def _numbers(text: str) -> list[float]:
    from streamkv.errors import SuiteError

    try:
        return [float(part) for part in text.split(",") if part.strip()]
    except ValueError as exc:
        raise SuiteError(f"--lengths: got {text!r}, need minutes with commas, such as 2,10") from exc


def _suites(
    name: str,
    folder: Path,
    seed: int,
    annotations: Path | None,
    videos: Path | None,
    *,
    quick: bool,
    lengths: Sequence[float],
) -> list[Suite]:
    from streamkv.errors import SuiteError
    from streamkv.evaluation.benchmarks import BENCHMARKS
    from streamkv.evaluation.townsquare import townsquare_suites

    if name == TOWNSQUARE:
        return list(townsquare_suites(seed, folder / "worlds", quick=quick, lengths=lengths))
    if name not in BENCHMARKS:
        raise SuiteError(f"--suite: unknown {name!r}; known: {', '.join([TOWNSQUARE, *BENCHMARKS])}")
    if annotations is None or videos is None:
        raise SuiteError(
            f"--suite {name}: needs --annotations (its published file) and --videos (a folder); see docs/benchmarks.md"
        )
    return [BENCHMARKS[name].load(annotations, videos)]


def _measure(
    config: PipelineConfig,
    suites: Sequence[Suite],
    variants: Sequence[Any],
    here: Path,
    folder: Path,
    seed: int,
    workers: int,
) -> dict[str, Any]:
    from pipeline.cluster import local_ray, make_temp, when_needed
    from pipeline.evaluation import plan, run
    from pipeline.machine import machine, versions
    from streamkv.evaluation.report import plot, summarise, to_markdown, write_answers, write_table

    about = machine()
    with bars() as progress:
        task = progress.add_task("evaluating", total=None, note="loading the model")

        def on_part(what: str, done: int, total: int) -> None:
            progress.update(task, completed=done, total=total, note=what)
            if not err.is_terminal:
                err.print(f"{done}/{total} {what}", highlight=False)

        with when_needed(lambda: local_ray(config, make_temp())) as need_ray:
            parts = plan(config, suites, variants, folder, need_ray)
            rows, problems = run(
                config,
                parts,
                seed=seed,
                cache=folder / "features",
                workers=workers,
                on_part=on_part,
                need_ray=need_ray,
            )
    summaries = summarise(rows)
    here.mkdir(parents=True, exist_ok=True)
    write_answers(rows, here / "answers.parquet")
    write_table(summaries, here / "table.parquet")
    (here / "table.md").write_text(to_markdown(summaries))
    plot(summaries, here / "accuracy.png")
    for problem in problems:
        err.print(f"[yellow]not shown[/] {escape(problem.video)}: {escape(problem.message)}", highlight=False)
    return {
        "machine": about,
        "versions": versions(),
        "rows": [s.as_json() for s in summaries],
        "problems": [{"suite": p.suite, "video": p.video, "message": p.message} for p in problems],
        "folder": str(here),
    }


def _print_tables(report: dict[str, Any], here: Path) -> None:
    rows = report["rows"]
    for suite in dict.fromkeys(row["suite"] for row in rows):
        table = Table(title=suite, title_justify="left", header_style="bold", box=None, pad_edge=False)
        mine = [row for row in rows if row["suite"] == suite]
        ages = list(dict.fromkeys(age for row in mine for age in row["by_age"]))
        for head in ("preset", "n", "accuracy", "95%", "top-3", "MB/hour", "first token", *ages):
            table.add_column(head, justify="left" if head == "preset" else "right")
        for row in mine:
            table.add_row(*_cells(row, ages))
        out.print(table)
    out.print(f"\n{escape(str(here))}: table.md (by kind too), table.parquet, answers.parquet, accuracy.png")


def _cells(row: dict[str, Any], ages: Sequence[str]) -> list[str]:
    from streamkv.evaluation.report import share

    return [
        escape(row["preset"]),
        str(row["questions"]),
        share(row["accuracy"]),
        f"{row['ci95'][0]:.2f}-{row['ci95'][1]:.2f}" if row["ci95"] else "-",
        share(row["evidence_top3"]),
        f"{row['bytes_per_hour'] / 1e6:.1f}",
        "-" if row["ttft_ms_p50"] is None else f"{row['ttft_ms_p50']:.0f} ms",
        *(share(row["by_age"][age]["accuracy"]) if age in row["by_age"] else "-" for age in ages),
    ]


def _print_suites(as_json: bool) -> None:
    from streamkv.evaluation.benchmarks import BENCHMARKS

    known = {TOWNSQUARE: "generated worlds of 2, 10 and 60 minutes, 400 questions each"}
    known.update({name: benchmark.about for name, benchmark in BENCHMARKS.items()})
    if as_json:
        print_json(known)
        return
    for name, about in known.items():
        out.print(f"[bold]{escape(name):22}[/] {escape(about)}", highlight=False)
