"""`inspect`: what a stream's memory looks like, in the terminal and as a picture."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from pipeline.commands.options import DEFAULT, HomeOption, JsonOption
from pipeline.terminal import bars, clock, fail, friendly, out, print_json

if TYPE_CHECKING:
    from streamkv.config import PipelineConfig
    from streamkv.inspection import FrameWatch, Inspection
    from streamkv.models import VideoLLM
    from streamkv.store import StreamInfo
    from streamkv.types import Frame

ARCHIVED_SCHEMES = ("file", "http", "https")
"""Addresses that may be a recording; any other is a live source's."""


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: [bold]streamkv inspect lobby --ask 'what colour is the bus?'[/]")(inspect)


def inspect(
    stream_id: Annotated[str, typer.Argument(metavar="STREAM")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Settings a.b=c, those that the stream was ingested with.", show_default=False),
    ] = None,
    question: Annotated[
        str, typer.Option("--ask", help="A question, whose blocks are drawn too.", show_default=False)
    ] = "",
    video: Annotated[
        bool,
        typer.Option("--video/--no-video", help="Encode the video again, for similarity and thumbnails."),
    ] = True,
    to: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE.png", help="Default: STREAM.png here.", show_default=False),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the picture; without it one that is there is kept.")
    ] = False,
    config: Annotated[
        str,
        typer.Option(help="Configuration; default: the running server's, else local.", show_default=False),
    ] = "",
    home: HomeOption = DEFAULT,
    as_json: JsonOption = False,
) -> None:
    """Draw a stream's memory: segments, frame similarity, what each layer kept and, with --ask, what it read.

    Reads the store of the home; a server may run or not. --json draws a picture only with --out.
    """
    picture = to or (None if as_json else Path(f"{stream_id}.png"))
    with friendly(as_json=as_json):
        if picture is not None:
            _check_free(picture, overwrite=overwrite, as_json=as_json)
        found = _inspect(_settings(home, config, overrides or []), stream_id, question, video=video)
        if picture is not None and found.segments:
            from pipeline.picture import write_picture

            try:
                write_picture(found, picture)
            except OSError as exc:
                fail(f"--out: {picture} cannot be written: {exc.strerror}", as_json=as_json, kind="OSError")
    if as_json:
        print_json(found.as_json())
        return
    from pipeline.sketch import Sketch

    out.print(Sketch(found))
    if found.segments:
        out.print(f"picture: {escape(str(picture))}", highlight=False)


def _check_free(picture: Path, *, overwrite: bool, as_json: bool) -> None:
    """Before anything is computed."""
    if picture.suffix.lower() != ".png":
        fail(f"--out: got {str(picture)!r}, allowed a name that ends in .png", as_json=as_json)
    if picture.exists() and not overwrite:
        fail(
            f"--out: {picture} is there already; give another --out, or --overwrite to replace it",
            as_json=as_json,
            kind="FileExistsError",
        )
    if not picture.parent.is_dir():
        fail(f"--out: no folder {picture.parent}; make it first", as_json=as_json, kind="FileNotFoundError")


def _settings(home: str, name: str, overrides: list[str]) -> PipelineConfig:
    """The configuration as the home's server has it, with the home's store unless another one is named."""
    from pipeline.home import Home
    from pipeline.launch import running
    from pipeline.settings import load_settings
    from streamkv.config import StoreConfig

    place = Home(home)
    record = running(place)
    if record is not None and not name:
        name = record.config
        overrides = [f"preset={record.preset}", *overrides] if record.preset else overrides
    config = load_settings(name or "local", overrides)
    if config.store.root == StoreConfig().root:
        return replace(config, store=replace(config.store, root=str(place.store)))
    return config


def _inspect(config: PipelineConfig, stream_id: str, question: str, *, video: bool) -> Inspection:
    """Everything that is drawn, read-only; a model is loaded only for the video or a question."""
    from streamkv.engine import Engine
    from streamkv.inspection import Inspection, MissingFootage, view_question, view_segments
    from streamkv.models import load_model
    from streamkv.question import check_question
    from streamkv.store import ModelIdentity, SegmentStore
    from streamkv.uris import redact_uri

    if question:
        question = check_question(question, config.serve.max_question_chars)
    model = load_model(config.model) if video or question else None
    store = SegmentStore.configured(
        config.store,
        identity=ModelIdentity.of(model) if model is not None else None,
        read_only=True,
    )
    with store:
        info = store.stream(stream_id)
        memory = store.reader(stream_id).refresh()
        found = Inspection(
            stream_id=stream_id,
            source=redact_uri(info.uri),
            state=info.state,
            as_of_s=memory.as_of_s,
            num_layers=memory.geometry.num_layers,
            segments=view_segments(memory),
            gaps=tuple(MissingFootage(g.start_s, g.end_s, g.reason) for g in info.gaps),
        )
        if not found.segments:
            return replace(found, notes=("nothing of this stream is committed yet; no picture is drawn",))
        if question and model is not None:
            engine = Engine(model, config.method)
            asked = view_question(engine, memory, question, max_new_tokens=config.serve.max_new_tokens)
            found = replace(found, question=asked)
        preset = info.config.get("preset", config.preset)
    if model is not None and preset != config.preset:
        found = _noted(
            found,
            f"the stream was ingested with preset {preset}; threshold and question are of {config.preset} "
            f"(preset={preset} changes that)",
        )
    if not video:
        return _noted(found, "drawn without the video (--no-video): no thumbnails, no similarity")
    assert model is not None
    return _watch(config, info, model, found)


def _noted(found: Inspection, *notes: str) -> Inspection:
    return replace(found, notes=(*found.notes, *notes))


def _watch(config: PipelineConfig, info: StreamInfo, model: VideoLLM, found: Inspection) -> Inspection:
    """Adds similarity and thumbnails from the video, or the reason why they are missing."""
    from streamkv.errors import SourceError
    from streamkv.frame_batches import FrameBatches
    from streamkv.inspection import MAX_THUMBNAILS, FrameWatch, pick_shown

    shown = pick_shown(found.segments, MAX_THUMBNAILS)
    watch = FrameWatch(model, config.method.segment, shown, batches=FrameBatches.configured(config.source))
    try:
        if why := why_unreadable(info.uri):
            return _noted(found, f"{why}: no thumbnails, no similarity")
        _encode_again(watch, info, config, found.as_of_s)
    except SourceError as exc:
        return _noted(found, f"{exc}: no thumbnails, no similarity")
    notes = []
    if watch.end_s < found.as_of_s:
        notes.append(
            f"the video ends at {clock(watch.end_s)} now, but {clock(found.as_of_s)} of it are stored: "
            "it is another file, or one that was cut"
        )
    if len(shown) < len(found.segments):
        notes.append(
            f"thumbnails of {len(watch.thumbnails)} of {found.num_segments:,} segments, evenly in time"
        )
    return _noted(replace(found, frames=watch.track, thumbnails=watch.thumbnails), *notes)


def why_unreadable(uri: str) -> str:
    """Why a source's footage cannot be had again; empty when it can be tried."""
    from streamkv.live import is_live
    from streamkv.sources import as_folder
    from streamkv.uris import redact_uri
    from streamkv.video import probe

    if is_live(uri):
        return f"{redact_uri(uri)} is a live source, whose past cannot be read again"
    scheme, found, path = uri.partition("://")
    if not found or scheme == "file":
        file = Path(path if found else uri)
        return "" if file.is_file() or as_folder(uri) else f"the video {file} is gone"
    if scheme.lower() not in ARCHIVED_SCHEMES or probe(uri).duration_s == 0:
        return f"{redact_uri(uri)} is a live source, whose past cannot be read again"
    return ""


def _encode_again(watch: FrameWatch, info: StreamInfo, config: PipelineConfig, as_of_s: float) -> None:
    """With a progress bar, as far as the stream is stored, at the rate that it was sampled."""
    from streamkv.sources import sample_archive

    def stored(frames: Iterator[Frame]) -> Iterator[Frame]:
        return takewhile(lambda frame: frame.start_s < as_of_s, frames)

    sample_fps = float(info.config.get("sample_fps", config.source.sample_fps))
    with bars() as progress:
        task = progress.add_task("encoding", total=as_of_s, note=f"{clock(as_of_s)} of video")
        watch.run(
            stored(sample_archive(info.uri, sample_fps)), lambda at_s: progress.update(task, completed=at_s)
        )
