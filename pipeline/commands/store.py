"""`store age` and `store verify`: the segment store's upkeep."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.commands.options import DEFAULT, HomeOption, JsonOption
from pipeline.terminal import FAILED, bars, counts_of, fail, friendly, out, print_json, size

if TYPE_CHECKING:
    from rich.progress import Progress

    from streamkv.config import AgeingStep, StoreConfig
    from streamkv.store import Aged, Problem, SegmentStore

ConfigOption = Annotated[str, typer.Option(help="A shipped configuration's name, or a YAML file.")]
OverridesArgument = Annotated[
    list[str] | None, typer.Argument(help="Settings over the configuration, a.b=c.", show_default=False)
]
StreamOption = Annotated[
    str, typer.Option("--stream", metavar="ID", help="Only this stream; default: all.", show_default=False)
]


def register(app: typer.Typer) -> None:
    store = typer.Typer(
        name="store", help="Upkeep of the segment store; a server may run.", no_args_is_help=True
    )
    store.command(epilog="Example: [bold]streamkv store age --after 86400 --codec int8[/]")(age)
    store.command(epilog="Example: [bold]streamkv store verify --stream lobby[/]")(verify)
    app.add_typer(store)


def store_config(home: str, name: str, overrides: list[str]) -> StoreConfig:
    """The configuration's store; the home's unless another root is named."""
    from dataclasses import replace

    from pipeline.home import Home
    from pipeline.settings import load_settings
    from streamkv.config import StoreConfig

    found = load_settings(name, overrides).store
    return replace(found, root=str(Home(home).store)) if found.root == StoreConfig().root else found


def age(
    overrides: OverridesArgument = None,
    stream: StreamOption = "",
    after: Annotated[
        float | None,
        typer.Option(
            min=0, help="Seconds since a segment was committed; default: store.ageing's.", show_default=False
        ),
    ] = None,
    codec: Annotated[str, typer.Option(help="With --after: fp16, int8 or int4.")] = "int8",
    config: ConfigOption = "local",
    home: HomeOption = DEFAULT,
    as_json: JsonOption = False,
) -> None:
    """Store old segments in fewer bytes, as store.ageing says or --after and --codec do.

    Doing it again does what is left. Put it in a crontab.
    """
    from streamkv.config import AgeingStep
    from streamkv.errors import ConfigError

    with friendly(as_json=as_json):
        settings = store_config(home, config, overrides or [])
        policy = settings.ageing if after is None else [AgeingStep(after, codec)]
        if not policy:
            raise ConfigError("store.ageing: got nothing to do; set it, or give --after SECONDS and --codec")
        aged = _age(settings, stream, policy)
        if as_json:
            print_json({name: _counts(result) for name, result in aged.items()})
            return
        for name, result in aged.items():
            saved = f", {size(result.bytes_before)} to {size(result.bytes_after)}"
            out.print(
                f"{name}: {result.num_segments} segments{saved if result.num_segments else ''}",
                highlight=False,
            )


def _age(settings: StoreConfig, stream: str, policy: list[AgeingStep]) -> dict[str, Aged]:
    from streamkv.store import SegmentStore

    with SegmentStore.open(Path(settings.root), catalog_url=settings.catalog_url) as store:
        names = [stream] if stream else [info.stream_id for info in store.streams()]
        with bars() as progress:
            tasks = {name: progress.add_task(name, total=None, note="") for name in names}
            return {
                name: store.age(name, policy, on_segment=counts_of(progress, tasks[name])) for name in names
            }


def _counts(aged: Aged) -> dict[str, int]:
    return {
        "segments": aged.num_segments,
        "bytes_before": aged.bytes_before,
        "bytes_after": aged.bytes_after,
    }


def verify(
    overrides: OverridesArgument = None,
    stream: StreamOption = "",
    repair: Annotated[
        bool,
        typer.Option(
            "--repair",
            help="Make a lost catalog again from the files, remove orphans, turn lost segments into gaps.",
        ),
    ] = False,
    config: ConfigOption = "local",
    home: HomeOption = DEFAULT,
    as_json: JsonOption = False,
) -> None:
    """Read every stored byte and name what is damaged, missing or nobody's; exit 1 when something is left so.

    A segment that a server is writing meanwhile is named as extra. --repair wants the server down.
    """
    with friendly(as_json=as_json):
        settings = store_config(home, config, overrides or [])
        if repair:
            _check_down(home, settings, as_json=as_json)
        done, problems = _verify(settings, stream, repair=repair)
    if as_json:
        print_json({"done": done, "problems": [asdict(problem) for problem in problems]})
    else:
        for line in done:
            out.print(line, highlight=False, markup=False, soft_wrap=True)
        for problem in problems:
            out.print(str(problem), highlight=False, markup=False, soft_wrap=True)
        out.print(f"{len(problems)} problems" if problems else "all is well", highlight=False)
    if problems:
        raise typer.Exit(FAILED)


def _check_down(home: str, settings: StoreConfig, *, as_json: bool) -> None:
    """That no server of this home writes to the store."""
    from pipeline.home import Home
    from pipeline.launch import running

    if settings.root == str(Home(home).store) and running(Home(home)) is not None:
        fail("--repair: the server is up; stop it with: streamkv down", as_json=as_json)


def _verify(settings: StoreConfig, stream: str, *, repair: bool) -> tuple[list[str], list[Problem]]:
    """What was done, and what is wrong after that."""
    from streamkv.store import SegmentStore
    from streamkv.store.repair import rebuild_catalog

    root, url, done = Path(settings.root), settings.catalog_url, []
    with bars() as progress:
        if repair:
            task = progress.add_task("files", total=None, note="")
            done = rebuild_catalog(root, url, counts_of(progress, task))
        with SegmentStore.open(root, catalog_url=url, read_only=not repair) as store:
            problems = _look(store, stream, progress)
            if problems and repair:
                done += store.repair(problems)
                problems = _look(store, stream, progress)
    return done, problems


def _look(store: SegmentStore, stream: str, progress: Progress) -> list[Problem]:
    if stream:
        store.stream(stream)  # UnknownStreamError
    task = progress.add_task("segments", total=None, note="")
    return store.verify(stream or None, counts_of(progress, task))
