"""`keys add`, `keys ls` and `keys rm`: who may use the HTTP API."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from pipeline.commands.options import DEFAULT, HomeOption, JsonOption
from pipeline.terminal import friendly, out, print_json

if TYPE_CHECKING:
    from pipeline.keys import KeyFile

StoreOption = Annotated[
    str,
    typer.Option(
        "--store", help="Folder of the store that the keys open; default: the home's.", metavar="FOLDER"
    ),
]
NameArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="Whose or what for: 1 to 64 of A-Z a-z 0-9 . _ -")
]


def register(app: typer.Typer) -> None:
    keys = typer.Typer(
        name="keys",
        help="Bearer keys of the HTTP API. As soon as there is one, every request needs one.",
        no_args_is_help=True,
    )
    keys.command(epilog="Example: [bold]streamkv keys add alice[/]")(add)
    keys.command(epilog="Example: [bold]streamkv keys ls[/]")(ls)
    keys.command(epilog="Example: [bold]streamkv keys rm alice[/]")(rm)
    app.add_typer(keys)


def key_file(home: str, store: str) -> KeyFile:
    from pipeline.home import Home
    from pipeline.keys import KeyFile

    return KeyFile(Path(store).resolve() if store else Home(home).store)


def add(
    name: NameArgument, home: HomeOption = DEFAULT, store: StoreOption = "", as_json: JsonOption = False
) -> None:
    """Make a key and show it, once. A server that runs takes it from now on."""
    with friendly(as_json=as_json):
        key = key_file(home, store).add(name)
        if as_json:
            print_json({"name": name, "key": key})
            return
        out.print(escape(key), highlight=False, soft_wrap=True)
        out.print(
            "It is not shown again. Programs send it as `Authorization: Bearer KEY`, "
            "these commands take it from STREAMKV_API_KEY.",
            style="dim",
            highlight=False,
        )


def ls(home: HomeOption = DEFAULT, store: StoreOption = "", as_json: JsonOption = False) -> None:
    """List the keys: name, when it was made, last four characters."""
    with friendly(as_json=as_json):
        keys = key_file(home, store).all()
        if as_json:
            print_json([{"name": k.name, "created_at": k.created_at, "last_four": k.last_four} for k in keys])
            return
        if not keys:
            out.print("no keys yet; make one with: streamkv keys add NAME")
            return
        table = Table("name", "made", "ends in", box=None, pad_edge=False, header_style="bold")
        for k in keys:
            made = datetime.fromtimestamp(k.created_at).astimezone().strftime("%Y-%m-%d %H:%M")
            table.add_row(escape(k.name), made, escape(k.last_four))
        out.print(table, highlight=False)


def rm(
    name: NameArgument, home: HomeOption = DEFAULT, store: StoreOption = "", as_json: JsonOption = False
) -> None:
    """Remove a key: it opens nothing any more, from the next request on."""
    with friendly(as_json=as_json):
        key_file(home, store).remove(name)
        if as_json:
            print_json({"removed": name})
        else:
            out.print(f"removed {escape(name)}")
