"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline.home import DEFAULT_HOME, HOME_VARIABLE

HomeOption = Annotated[
    str,
    typer.Option("--home", envvar=HOME_VARIABLE, help="Folder of the server's state, log and store."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON value and nothing else.")]
UrlOption = Annotated[
    str,
    typer.Option("--url", envvar="STREAMKV_URL", help="Address of a server elsewhere; default: the home's."),
]
FromOption = Annotated[
    str,
    typer.Option(
        "--from",
        metavar="TIME",
        help="Look only at what was shown from then on: seconds of the stream, or, where it is live, an ISO time.",
    ),
]
ToOption = Annotated[
    str, typer.Option("--to", metavar="TIME", help="Look only at what was shown before then.")
]
DEFAULT = DEFAULT_HOME
