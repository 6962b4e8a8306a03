"""`add`, `ls`, `rm`, `reencode`, `scale`, `ask` and `search`: what a running server is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from actors.views import MAX_PRIORITY
from pipeline.commands.options import DEFAULT, FromOption, HomeOption, JsonOption, ToOption, UrlOption
from pipeline.show import (
    print_answer,
    print_found,
    print_pools,
    print_streams,
    wait_for_pools,
    wait_for_reencode,
    wait_for_streams,
)
from pipeline.terminal import FAILED, friendly, out, print_json
from streamkv.errors import SourceError

if TYPE_CHECKING:
    from pipeline.client import Client

CLIPS = 5
"""That `ask` saves."""


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: [bold]streamkv add lobby footage/lobby.mp4 --wait[/]")(add)
    app.command(epilog="Example: [bold]streamkv ls[/]")(ls)
    app.command(epilog="Example: [bold]streamkv rm lobby[/]")(rm)
    app.command(epilog="Example: [bold]streamkv scale --encode 3 --wait[/]")(scale)
    app.command(
        epilog="Example: [bold]streamkv reencode lobby --guidance 'signs and what they say' --wait[/]"
    )(reencode)
    app.command(epilog="Example: [bold]streamkv ask lobby 'what colour is the bus at 14:07?'[/]")(ask)

    app.command(epilog="Example: [bold]streamkv search 'where is the red truck?'[/]")(search)


def connect(home: str, url: str) -> Client:
    """A client of the server that is meant; NotRunningError when there is none."""
    from pipeline import launch
    from pipeline.client import Client, NotRunningError
    from pipeline.home import Home

    if not url:
        record = launch.running(Home(home))
        if record is None or record.phase != "ready":
            what = f"the server is {record.phase}" if record else f"no server is up in {Home(home).root}"
            raise NotRunningError(f"{what}; start one with: streamkv up")
        url = record.url
    return Client(url)


def add(
    stream_id: Annotated[str, typer.Argument(metavar="ID", help="1 to 64 of A-Z a-z 0-9 . _ -")],
    uri: Annotated[str, typer.Argument(metavar="URI", help="A video file or URL, as the server sees it.")],
    guidance: Annotated[
        str, typer.Option(help="What to keep of it, in words, such as 'signs and what they say'.")
    ] = "",
    tenant: Annotated[
        str, typer.Option(help="Whose it is; a tenant's streams share a limit of bytes.", show_default=False)
    ] = "",
    priority: Annotated[
        int,
        typer.Option(
            min=1,
            max=MAX_PRIORITY,
            help="Its share over that of a stream with 1, where not all can be taken in.",
        ),
    ] = 1,
    wait: Annotated[bool, typer.Option("--wait", help="Return when all of it is ingested.")] = False,
    home: HomeOption = DEFAULT,
    url: UrlOption = "",
    as_json: JsonOption = False,
) -> None:
    """Register a video stream; it is ingested while you go on."""
    with friendly(as_json=as_json), connect(home, url) as client:
        # The server may have another working directory, so a file is named in full.
        source = str(Path(uri).resolve()) if Path(uri).exists() else uri
        stream = client.add_stream(stream_id, source, guidance, tenant, priority)
        if wait:
            (stream,) = wait_for_streams(client, [stream_id])
        if as_json:
            print_json(stream)
        else:
            print_streams([stream])
        if stream["state"] == "failed":
            raise typer.Exit(FAILED)


def ls(home: HomeOption = DEFAULT, url: UrlOption = "", as_json: JsonOption = False) -> None:
    """List the streams and how far they are."""
    with friendly(as_json=as_json), connect(home, url) as client:
        streams = client.streams()
        if as_json:
            print_json(streams)
        elif streams:
            print_streams(streams)
        else:
            out.print("no streams yet; add one with: streamkv add ID VIDEO")


def rm(
    stream_id: Annotated[str, typer.Argument(metavar="ID")],
    home: HomeOption = DEFAULT,
    url: UrlOption = "",
    as_json: JsonOption = False,
) -> None:
    """Remove a stream: its ingest stops, and what was stored of it is deleted. Refused for one on legal hold."""
    with friendly(as_json=as_json), connect(home, url) as client:
        client.remove_stream(stream_id)
        if as_json:
            print_json({"removed": stream_id})
        else:
            out.print(f"removed {escape(stream_id)}")


def reencode(
    stream_id: Annotated[str, typer.Argument(metavar="STREAM")],
    guidance: Annotated[
        str | None,
        typer.Option(help="What to keep of it, in words; '' is the server's own prompt.", show_default=False),
    ] = None,
    keep: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Share of frames that each layer keeps; 0 is the server's own.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str, typer.Option(help="The server's; for another one: streamkv upgrade.", show_default=False)
    ] = "",
    cancel: Annotated[bool, typer.Option("--cancel", help="Give it up; the stream stays as it was.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Return when the new memory is in its place.")] = False,
    home: HomeOption = DEFAULT,
    url: UrlOption = "",
    as_json: JsonOption = False,
) -> None:
    """Ingest a stream's source again under other settings, while it answers from what it has.

    When the new memory is whole it takes the old one's place at once. What is not given stays as it is; with nothing
    given, the stream is encoded again as the server is set up now.
    """
    with friendly(as_json=as_json), connect(home, url) as client:
        if cancel:
            stream = client.cancel_reencode(stream_id)
        else:
            stream = client.reencode(stream_id, guidance, keep_ratio=keep, model=model)
            if wait:
                stream = wait_for_reencode(client, stream_id)
        if as_json:
            print_json(stream)
        else:
            print_streams([stream])
        if wait and stream["reencode"]:
            raise typer.Exit(FAILED)


def scale(
    encode: Annotated[
        int | None,
        typer.Option(
            min=0, help="Actors that decode and encode; 0: as configured, and by load.", show_default=False
        ),
    ] = None,
    prefill: Annotated[
        int | None, typer.Option(min=0, help="The same of those that prefill.", show_default=False)
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Return when all of them are there.")] = False,
    home: HomeOption = DEFAULT,
    url: UrlOption = "",
    as_json: JsonOption = False,
) -> None:
    """Show the actors of each stage of ingest, or change how many there are: streams go on meanwhile."""
    with friendly(as_json=as_json), connect(home, url) as client:
        pools = client.pools() if encode is None and prefill is None else client.scale(encode, prefill)
        if wait:
            pools = wait_for_pools(client)
        if as_json:
            print_json(pools)
        else:
            print_pools(pools)


def ask(
    stream_id: Annotated[str, typer.Argument(metavar="STREAM")],
    question: Annotated[str, typer.Argument(metavar="QUESTION")],
    start: FromOption = "",
    end: ToOption = "",
    max_new_tokens: Annotated[int, typer.Option(help="Length of the answer; 0: the server's own.")] = 0,
    clips: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help=f"Save the footage that it rests on here, the {CLIPS} heaviest."),
    ] = None,
    home: HomeOption = DEFAULT,
    url: UrlOption = "",
    as_json: JsonOption = False,
) -> None:
    """Ask a question about what a stream has shown, and see what the answer rests on.

    Words that name a span of time restrict what is looked at: in the last five minutes, at 1:20:05 into the video;
    for a live stream also: since 14:30, between 10:00 and 10:15. So do --from and --to, which come first.
    """
    with friendly(as_json=as_json), connect(home, url) as client:
        answer = client.ask(stream_id, question, max_new_tokens or None, start=start or None, end=end or None)
        if as_json:
            print_json(answer)
        else:
            print_answer(answer, client.url)
        if clips is not None:
            saved = save_clips(client, stream_id, answer, clips)
            if not as_json:
                for path in saved:
                    out.print(f"saved {escape(str(path))}", highlight=False)


def save_clips(client: Client, stream_id: str, answer: dict[str, Any], folder: Path) -> list[Path]:
    """Named by stream and segment; a live source has none. Files of the same name are replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    found = [e for e in answer["evidence"] if e["clip"]][:CLIPS]
    if not found:
        raise SourceError(
            f"stream {stream_id!r}: there are no clips, since a live source's footage is not kept"
        )
    paths = [folder / f"{stream_id}-{e['segment']}.mp4" for e in found]
    for evidence, path in zip(found, paths, strict=True):
        client.save(evidence["clip"], path)
    return paths


def search(
    question: Annotated[str, typer.Argument(metavar="QUESTION")],
    stream: Annotated[
        list[str] | None,
        typer.Option("--stream", metavar="ID", help="Search this one; repeat for more. Default: all."),
    ] = None,
    top: Annotated[int, typer.Option(min=1, max=100, help="Streams to find, at most.")] = 5,
    answers: Annotated[bool, typer.Option(help="Ask each of them, too.")] = True,
    start: FromOption = "",
    end: ToOption = "",
    home: HomeOption = DEFAULT,
    url: UrlOption = "",
    as_json: JsonOption = False,
) -> None:
    """Ask all streams at once: which of them have shown it, when, and what each answers."""
    with friendly(as_json=as_json), connect(home, url) as client:
        found = client.search(
            question, stream or (), max_streams=top, answer=answers, start=start or None, end=end or None
        )
        if as_json:
            print_json(found)
        else:
            print_found(found)
