"""`store age`, `retain`, `hold`, `release`, `offload`, `tiers` and `verify`: the segment store's upkeep."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.commands.options import DEFAULT, HomeOption, JsonOption
from pipeline.terminal import FAILED, bars, clock, counts_of, fail, friendly, out, print_json, size

if TYPE_CHECKING:
    from rich.progress import Progress

    from streamkv.config import AgeingStep, RetentionConfig, StoreConfig
    from streamkv.store import Aged, Front, Problem, SegmentStore

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
    store.command(epilog="Example: [bold]streamkv store retain --max-age 2592000 --dry-run[/]")(retain)
    store.command(epilog="Example: [bold]streamkv store hold lobby --reason 'case 4711'[/]")(hold)
    store.command(epilog="Example: [bold]streamkv store release lobby[/]")(release)
    store.command(epilog="Example: [bold]streamkv store offload store.remote=s3://bucket/footage[/]")(offload)
    store.command(epilog="Example: [bold]streamkv store tiers store.remote=s3://bucket/footage[/]")(tiers)
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
    codec: Annotated[str, typer.Option(help="With --after: fp16, int8, int4 or int2.")] = "int8",
    keep_ratio: Annotated[
        float, typer.Option(help="With --after: blocks that are left, as a share of the frames.")
    ] = 1.0,
    config: ConfigOption = "local",
    home: HomeOption = DEFAULT,
    as_json: JsonOption = False,
) -> None:
    """Store old segments in fewer bytes, as store.ageing says or --after, --codec and --keep-ratio do.

    Doing it again does what is left. A server does it every store.upkeep_s.
    """
    from streamkv.config import AgeingStep
    from streamkv.errors import ConfigError

    with friendly(as_json=as_json):
        settings = store_config(home, config, overrides or [])
        policy = settings.ageing if after is None else [AgeingStep(after, codec, keep_ratio)]
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

    with SegmentStore.configured(settings) as store:
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


def retain(
    overrides: OverridesArgument = None,
    stream: StreamOption = "",
    max_age: Annotated[
        float | None,
        typer.Option(min=0, help="Seconds; default: store.retention.max_age_s.", show_default=False),
    ] = None,
    max_bytes: Annotated[
        int | None,
        typer.Option(
            min=1, help="Of each stream; the oldest go. Default: store.retention.", show_default=False
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would go, and delete nothing.")
    ] = False,
    config: ConfigOption = "local",
    home: HomeOption = DEFAULT,
    as_json: JsonOption = False,
) -> None:
    """Delete old segments, as store.retention says or --max-age and --max-bytes do: rows, files and vectors.

    Streams on legal hold keep theirs. Doing it again does what is left. A server does it every store.upkeep_s.
    """
    with friendly(as_json=as_json):
        settings = store_config(home, config, overrides or [])
        deleted = _retain(settings, stream, _retention(settings, max_age, max_bytes), dry_run=dry_run)
        if as_json:
            print_json({name: asdict(front) for name, front in deleted.items()})
            return
        for name, front in deleted.items():
            what = "would be deleted" if dry_run else "deleted"
            out.print(
                f"{name}: {front.num_segments} segments {what}, {size(front.file_bytes)}, all before "
                f"{clock(front.until_s)}",
                highlight=False,
            )
        if not deleted:
            out.print("nothing is due", highlight=False)


def _retention(settings: StoreConfig, max_age: float | None, max_bytes: int | None) -> RetentionConfig:
    """The settings' policy, or what the command line says in its place."""
    from streamkv.config import RetentionConfig
    from streamkv.errors import ConfigError

    if max_age is not None or max_bytes is not None:
        return RetentionConfig(max_age_s=max_age or 0, stream_bytes=max_bytes or 0, when_full="oldest")
    policy = settings.retention
    if not policy.max_age_s and policy.when_full != "oldest":
        raise ConfigError(
            "store.retention: got nothing to do; set max_age_s, or limits of bytes with when_full=oldest, or give "
            "--max-age or --max-bytes"
        )
    return policy


def _retain(
    settings: StoreConfig, stream: str, policy: RetentionConfig, *, dry_run: bool
) -> dict[str, Front]:
    from streamkv.store import SegmentStore

    with (
        SegmentStore.configured(settings, read_only=dry_run) as store,
        bars() as progress,
    ):
        task = progress.add_task("segments", total=None, note="")
        tell = counts_of(progress, task)
        return store.retain(policy, stream or None, dry_run=dry_run, on_segment=tell)


def hold(
    stream_id: Annotated[str, typer.Argument(metavar="ID")],
    reason: Annotated[str, typer.Option(help="Why, in words; it is shown to whoever tries to delete.")],
    overrides: OverridesArgument = None,
    config: ConfigOption = "local",
    home: HomeOption = DEFAULT,
    as_json: JsonOption = False,
) -> None:
    """Put a stream on legal hold: nothing of it is deleted or aged, and `rm` is refused, until `release`."""
    with friendly(as_json=as_json):
        _set_hold(store_config(home, config, overrides or []), stream_id, reason)
        if as_json:
            print_json({"held": stream_id, "reason": reason})
        else:
            out.print(f"{stream_id}: on legal hold", highlight=False, markup=False)


def release(
    stream_id: Annotated[str, typer.Argument(metavar="ID")],
    overrides: OverridesArgument = None,
    config: ConfigOption = "local",
    home: HomeOption = DEFAULT,
    as_json: JsonOption = False,
) -> None:
    """End a stream's legal hold."""
    with friendly(as_json=as_json):
        _set_hold(store_config(home, config, overrides or []), stream_id, None)
        if as_json:
            print_json({"released": stream_id})
        else:
            out.print(f"{stream_id}: released", highlight=False, markup=False)


def _set_hold(settings: StoreConfig, stream_id: str, reason: str | None) -> None:
    """None: the end of it."""
    from streamkv.store import SegmentStore

    with SegmentStore.configured(settings) as store:
        if reason is None:
            store.release(stream_id)
        else:
            store.hold(stream_id, reason)


def offload(
    overrides: OverridesArgument = None,
    config: ConfigOption = "local",
    home: HomeOption = DEFAULT,
    as_json: JsonOption = False,
) -> None:
    """Upload what waits to store.remote, delete objects of what was deleted, keep the disk to store.local_bytes.

    Doing it again does what is left. A server does it every store.offload_s. Exit 1 when a segment cannot be uploaded.
    """
    from streamkv.store import SegmentStore

    with (
        friendly(as_json=as_json),
        SegmentStore.configured(store_config(home, config, overrides or [])) as store,
    ):
        with bars() as progress:
            done = store.offload(counts_of(progress, progress.add_task("segments", total=None, note="")))
        if as_json:
            print_json(asdict(done))
        else:
            out.print(
                f"{done.num_uploaded} segments uploaded, {size(done.uploaded_bytes)}; "
                f"{done.num_deleted} objects deleted",
                highlight=False,
            )
            for reason in done.failed:
                out.print(f"not uploaded: {reason}", highlight=False, markup=False, soft_wrap=True)
    if done.failed:
        raise typer.Exit(FAILED)


def tiers(
    overrides: OverridesArgument = None,
    config: ConfigOption = "local",
    home: HomeOption = DEFAULT,
    as_json: JsonOption = False,
) -> None:
    """Say what lies on the local disk, what in store.remote, what waits for it, and whether it can be reached."""
    from streamkv.store import SegmentStore

    with (
        friendly(as_json=as_json),
        SegmentStore.configured(store_config(home, config, overrides or []), read_only=True) as store,
    ):
        found = store.tiers()
    if as_json:
        print_json(asdict(found))
        return
    uploads = found.uploads
    budget = f" of {size(found.budget)}" if found.budget else ""
    lines = [
        f"local disk: {found.num_local} files, {size(found.local_bytes)}{budget}",
        f"{found.uri}: {uploads.num_uploaded} segments, {size(uploads.uploaded_bytes)}",
        f"waiting for upload: {uploads.num_waiting} segments, {size(uploads.waiting_bytes)}",
        f"objects to be deleted: {uploads.num_removed}",
        f"cannot be reached now: {found.unreachable}" if found.unreachable else "can be reached",
    ]
    for line in lines:
        out.print(line, highlight=False, markup=False, soft_wrap=True)


def verify(
    overrides: OverridesArgument = None,
    stream: StreamOption = "",
    repair: Annotated[
        bool,
        typer.Option(
            "--repair",
            help="Make a lost catalog again from the files, fetch or upload what one tier lacks, remove orphans, "
            "turn lost segments into gaps.",
        ),
    ] = False,
    objects: Annotated[
        bool, typer.Option("--objects", help="Read every object of store.remote, too, not only its size.")
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
        done, problems = _verify(settings, stream, repair=repair, read_objects=objects)
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


def _verify(
    settings: StoreConfig, stream: str, *, repair: bool, read_objects: bool
) -> tuple[list[str], list[Problem]]:
    """What was done, and what is wrong after that."""
    from streamkv.store import ObjectStore, SegmentStore
    from streamkv.store.repair import rebuild_catalog

    root, url, done = Path(settings.root), settings.catalog_url, []
    with bars() as progress:
        if repair:
            task = progress.add_task("files", total=None, note="")
            objects = ObjectStore(settings.remote, settings.s3) if settings.remote else None
            done = rebuild_catalog(root, url, counts_of(progress, task), objects)
        with SegmentStore.configured(settings, read_only=not repair) as store:
            problems = _look(store, stream, progress, read_objects=read_objects)
            if problems and repair:
                done += store.repair(problems)
                problems = _look(store, stream, progress, read_objects=read_objects)
    return done, problems


def _look(store: SegmentStore, stream: str, progress: Progress, *, read_objects: bool) -> list[Problem]:
    if stream:
        store.stream(stream)  # UnknownStreamError
    task = progress.add_task("segments", total=None, note="")
    return store.verify(stream or None, counts_of(progress, task), read_objects=read_objects)
