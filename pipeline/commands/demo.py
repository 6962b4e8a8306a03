"""`demo` and `world`: the generated town square."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from pipeline.commands.options import DEFAULT, HomeOption, JsonOption
from pipeline.terminal import FAILED, bars, fail, friendly, out, print_json, shares_of


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: [bold]streamkv demo --keep[/]")(demo)
    app.command(epilog="Example: [bold]streamkv world footage square-7 --seed 7 --minutes 5[/]")(world)


def demo(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Settings a.b=c, if no server is up.", show_default=False),
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the server up, to ask your own.")] = False,
    questions: Annotated[int, typer.Option(min=4, help="Questions in all.")] = 24,
    minutes: Annotated[float, typer.Option(min=1, max=240, help="Length of the longest stream.")] = 10.0,
    seed: Annotated[int, typer.Option(min=0, max=999_000, help="Of the worlds and questions.")] = 7,
    preset: Annotated[str, typer.Option(help="Method: streamkv, rekv, window ...", show_default=False)] = "",
    config: Annotated[str, typer.Option(help="Configuration, if no server is up.")] = "demo",
    home: HomeOption = DEFAULT,
    as_json: JsonOption = False,
) -> None:
    """Show it all: generated streams, ingested through Ray, and questions answered over HTTP."""
    from pipeline.demo import DemoPlan, print_report, run_demo
    from pipeline.home import Home

    settings = (*(overrides or ()), *([f"preset={preset}"] if preset else []))
    plan = DemoPlan(questions, minutes, seed, config, settings, keep=keep)
    with friendly(as_json=as_json):
        report = run_demo(Home(home), plan)
        if as_json:
            print_json(report)
        else:
            print_report(report, plan, home)
    if not report["answers"]:
        raise typer.Exit(FAILED)


def world(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where NAME.mp4 and NAME.json are written.")],
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Default: square-SEED.", show_default=False)
    ] = "",
    seed: Annotated[int, typer.Option(min=0, help="Every seed gives another world.")] = 0,
    minutes: Annotated[float, typer.Option(help="Length, above 0 and up to 240.")] = 1.0,
    questions: Annotated[int, typer.Option(min=1, help="Questions with their answers.")] = 20,
    as_json: JsonOption = False,
) -> None:
    """Write a town-square video and questions about it, with their answers."""
    from pipeline.worlds import write_world

    name = name or f"square-{seed}"
    with friendly(as_json=as_json), bars() as progress:
        if "/" in name or not name.strip("."):
            fail(f"NAME: got {name!r}, allowed a file name without folders", as_json=as_json)
        task = progress.add_task("drawing", total=1.0, note=f"{minutes:g} min")
        try:
            made = write_world(
                folder,
                name,
                seed=seed,
                minutes=minutes,
                questions=questions,
                on_progress=shares_of(progress, task),
            )
        except (ValueError, OSError) as exc:
            fail(str(exc), as_json=as_json, kind=type(exc).__name__)
    if as_json:
        print_json(made.as_json())
    else:
        out.print(f"{escape(str(made.video))}  ({made.duration_s:g} s)")
        out.print(f"{escape(str(made.questions_file))}  ({len(made.questions)} questions)")
        out.print(f"next:  streamkv add {escape(name)} {escape(str(made.video))} --wait")
