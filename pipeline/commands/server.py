"""`up` and `down`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from pipeline.commands.options import DEFAULT, HomeOption, JsonOption
from pipeline.terminal import Phases, friendly, out, print_json


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: [bold]streamkv up --port 8010 method.compress.keep_ratio=0.2[/]")(up)
    app.command(epilog="Example: [bold]streamkv down[/]")(down)


def up(
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings over the configuration, a.b=c.", show_default=False)
    ] = None,
    config: Annotated[str, typer.Option(help="A shipped configuration's name, or a YAML file.")] = "local",
    preset: Annotated[
        str, typer.Option(help="Method: streamkv, rekv, window, recent, full ...", show_default=False)
    ] = "",
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port of the HTTP API; 0: any that is free.")
    ] = None,
    address: Annotated[
        str,
        typer.Option(envvar="RAY_ADDRESS", help="A Ray that runs already; default: one of our own."),
    ] = "",
    home: HomeOption = DEFAULT,
    as_json: JsonOption = False,
) -> None:
    """Start the server in the background: Ray, ingest and the HTTP API."""
    from pipeline import launch
    from pipeline.home import Home

    given = [*(overrides or ())]
    given += [f"preset={preset}"] if preset else []
    given += [f"serve.port={port}"] if port is not None else []
    with friendly(as_json=as_json):
        with Phases("starting") as phases:
            started = launch.start(Home(home), config, given, address=address, on_phase=phases)
        record = started.record
        if as_json:
            print_json({"url": record.url, "pid": record.pid, "was_up": started.was_up})
            return
        said = "already up, with the settings it was started with" if started.was_up else "up"
        out.print(f"{said}: [bold]{escape(record.url)}[/]  (preset {record.preset}, pid {record.pid})")
        out.print("next:  streamkv add ID VIDEO    streamkv ask ID 'a question'    streamkv down")


def down(home: HomeOption = DEFAULT, as_json: JsonOption = False) -> None:
    """Stop the server that `up` started, and nothing else. Its streams go on when it is up again."""
    from pipeline import launch
    from pipeline.home import Home

    with friendly(as_json=as_json):
        with Phases("stopping") as phases:
            phases("waiting for what is in flight")
            stopped = launch.stop(Home(home))
        if as_json:
            print_json({"stopped": stopped})
        else:
            out.print("stopped" if stopped else "nothing to stop: no server is up here")
