"""`watch add`, `watch ls`, `watch rm` and `watch follow`: questions that are asked of all that a stream will show."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from pipeline.commands.options import DEFAULT, HomeOption, JsonOption, UrlOption
from pipeline.commands.streams import connect
from pipeline.terminal import clock, friendly, out, print_json

WatchArgument = Annotated[str, typer.Argument(metavar="WATCH", help="Its id, as `watch ls` shows it.")]


def register(app: typer.Typer) -> None:
    watch = typer.Typer(
        name="watch",
        help="Standing questions: asked of each new segment of a stream, told when the answer changes.",
        no_args_is_help=True,
    )
    watch.command(epilog="Example: [bold]streamkv watch add lobby 'is there a red bus?'[/]")(add)
    watch.command(epilog="Example: [bold]streamkv watch ls --stream lobby[/]")(ls)
    watch.command(epilog="Example: [bold]streamkv watch rm watch_5f0c2f9d1e7a4b3c8d6e9f01[/]")(rm)
    watch.command(epilog="Example: [bold]streamkv watch follow watch_5f0c2f9d1e7a4b3c8d6e9f01[/]")(follow)
    app.add_typer(watch)


def add(
    stream_id: Annotated[str, typer.Argument(metavar="STREAM")],
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="About what is on show at a time.")],
    min_confidence: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="A less likely answer counts as not shown.", show_default="the server's"
        ),
    ] = None,
    when_gone: Annotated[
        bool, typer.Option("--when-gone", help="Tell, too, when it is not shown any more.")
    ] = False,
    webhook: Annotated[
        str, typer.Option(metavar="URL", help="Post each event there, signed.", show_default=False)
    ] = "",
    secret: Annotated[
        str,
        typer.Option(
            envvar="STREAMKV_WEBHOOK_SECRET",
            help="What signs them, `whsec_...`; better in the variable, as others see command lines.",
            show_default="the server makes one",
        ),
    ] = "",
    home: HomeOption = DEFAULT,
    url: UrlOption = "",
    as_json: JsonOption = False,
) -> None:
    """Ask a question of each segment that a stream shows from now on."""
    with friendly(as_json=as_json), connect(home, url) as client:
        added = client.add_watch(
            stream_id,
            question,
            min_confidence=min_confidence,
            when_gone=when_gone,
            webhook=webhook,
            secret=secret if webhook else "",
        )
        if as_json:
            print_json(added)
            return
        out.print(escape(added["id"]), highlight=False)
        if added["secret"]:
            out.print(f"secret: {escape(added['secret'])}", highlight=False, soft_wrap=True)
            out.print("It is not shown again; the receiver checks signatures with it.", style="dim")


def ls(
    stream: Annotated[
        str, typer.Option(metavar="ID", help="Only those of this one.", show_default=False)
    ] = "",
    home: HomeOption = DEFAULT,
    url: UrlOption = "",
    as_json: JsonOption = False,
) -> None:
    """List the watches, what each heard last, and how its events fare."""
    with friendly(as_json=as_json), connect(home, url) as client:
        watches = client.watches(stream)
        if as_json:
            print_json(watches)
        elif watches:
            out.print(_table(watches), highlight=False)
        else:
            out.print("no watches yet; add one with: streamkv watch add STREAM QUESTION")


def rm(
    watch_id: WatchArgument, home: HomeOption = DEFAULT, url: UrlOption = "", as_json: JsonOption = False
) -> None:
    """Remove a watch and its events."""
    with friendly(as_json=as_json), connect(home, url) as client:
        client.remove_watch(watch_id)
        if as_json:
            print_json({"removed": watch_id})
        else:
            out.print(f"removed {escape(watch_id)}")


def follow(
    watch_id: WatchArgument,
    after: Annotated[int, typer.Option(min=-1, help="Only events of later segments than this one.")] = -1,
    home: HomeOption = DEFAULT,
    url: UrlOption = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print each event as a line of JSON.")] = False,
) -> None:
    """Print what a watch has told and whatever it tells, until Ctrl-C."""
    with friendly(as_json=False), connect(home, url) as client:  # an error to stderr: stdout has events alone
        for event in client.follow_watch(watch_id, after):
            if as_json:
                sys.stdout.write(json.dumps(event) + "\n")
                sys.stdout.flush()
            else:
                out.print(_line(event), highlight=False)


def _table(watches: list[dict[str, Any]]) -> Table:
    names = ("watch", "stream", "question", "answer", "events", "webhook")
    table = Table(*names, box=None, pad_edge=False, header_style="bold")
    for w in watches:
        marks = [f"{w[state]} {state}" for state in ("waiting", "failed") if w[state]]
        table.add_row(
            escape(w["id"]),
            escape(w["stream"]),
            escape(w["question"]),
            escape(w["answer"] or "not shown"),
            str(w["events"]),
            escape(", ".join([w["webhook"] or "", *marks])),
        )
    return table


def _line(event: dict[str, Any]) -> str:
    """`0:52 to 1:00  yes (was no)  97% sure`"""
    sure = f"  {event['confidence']:.0%} sure" if event["confidence"] is not None else ""
    answer, previous = (event[side] or "not shown" for side in ("answer", "previous"))
    times = f"{clock(event['start_s'])} to {clock(event['end_s'])}"
    return f"{times}  [bold]{escape(answer)}[/] (was {escape(previous)})[dim]{sure}[/]"
