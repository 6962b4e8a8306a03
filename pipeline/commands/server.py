"""`up`, `down` and `upgrade`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer
from rich.markup import escape

from pipeline.commands.options import DEFAULT, HomeOption, JsonOption
from pipeline.terminal import INTERRUPTED, Phases, fail, friendly, out, print_json


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: [bold]streamkv up --port 8010 method.compress.keep_ratio=0.2[/]")(up)
    app.command(epilog="Example: [bold]streamkv down[/]")(down)
    app.command(epilog="Example: [bold]streamkv upgrade model.path=models/larger[/]")(upgrade)


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


def upgrade(
    settings: Annotated[
        list[str] | None,
        typer.Argument(help="All settings over the configuration, as for `up`, a.b=c.", show_default=False),
    ] = None,
    config: Annotated[
        str,
        typer.Option(
            help="A shipped configuration's name, or a YAML file; default: the running server's, else local.",
            show_default=False,
        ),
    ] = "",
    live_anew: Annotated[
        bool,
        typer.Option(
            "--live-anew", help="Live sources, whose footage is not kept, may go on with an empty memory."
        ),
    ] = False,
    despite_failed: Annotated[
        bool, typer.Option("--despite-failed", help="Switch although some archives could not be encoded.")
    ] = False,
    cancel: Annotated[
        bool, typer.Option("--cancel", help="Give it up: the second server and its store go.")
    ] = False,
    home: HomeOption = DEFAULT,
    as_json: JsonOption = False,
) -> None:
    """Give a whole server another model, or other settings: all archives are encoded anew while it answers.

    A second server in HOME/next encodes them, with as much memory and disk once more. When all are whole, both stop,
    its store takes the old one's place, and the server starts under the new settings, on the port that it had: some
    seconds without answers. The old store is left in HOME/store.before.

    Stopped or killed at any moment, the same command goes on where it was; until the switch --cancel gives it up.
    """
    from pipeline.client import Client
    from pipeline.home import Home
    from pipeline.show import wait_for_streams
    from pipeline.upgrade import Upgrade

    with friendly(as_json=as_json), Phases("upgrade") as phases:

        def wait(url: str, stream_ids: Sequence[str]) -> None:
            with phases.aside(), Client(url) as client:
                wait_for_streams(client, stream_ids)

        under_way = Upgrade(Home(home), wait, phases)
        if cancel:
            under_way.cancel()
            done = None
        else:
            try:
                done = under_way.run(
                    config, settings or (), live_anew=live_anew, despite_failed=despite_failed
                )
            except KeyboardInterrupt:
                fail(
                    "interrupted; a second server that encodes goes on. To go on from here: streamkv upgrade; to give "
                    "it up: streamkv upgrade --cancel",
                    as_json=as_json,
                    kind="Interrupted",
                    status=INTERRUPTED,
                )
    if as_json:
        print_json(
            {"cancelled": True}
            if done is None
            else {"url": done.url, "old_store": str(done.old_store), "failed": list(done.failed)}
        )
    elif done is None:
        out.print("given up; the server and its store are as they were")
    else:
        up = (
            f"up: [bold]{escape(done.url)}[/]"
            if done.url
            else "done; start it, with these settings: streamkv up"
        )
        out.print(up)
        out.print(
            f"the old store is in {escape(str(done.old_store))}; remove it when you like", highlight=False
        )
        if done.failed:
            out.print(f"not whole: {escape(', '.join(done.failed))}; see: streamkv ls", highlight=False)
