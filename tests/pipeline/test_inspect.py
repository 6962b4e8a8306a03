"""`streamkv inspect` on a real store: a town square, ingested in process with the bundled model."""

from __future__ import annotations

import json
import shutil
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PatchCollection, QuadMesh
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.commands.inspect import why_unreadable
from pipeline.picture import DPI, WIDTH_IN, draw, spread
from pipeline.settings import load_settings
from pipeline.sketch import Sketch
from pipeline.worlds import write_world
from streamkv.engine import Engine
from streamkv.inspection import (
    MAX_THUMBNAILS,
    FrameTrack,
    Inspection,
    MissingFootage,
    SegmentView,
    view_question,
    view_segments,
)
from streamkv.models import load_model
from streamkv.segmentation import Segmenter
from streamkv.store import ModelIdentity, SegmentStore, write_segment
from streamkv.video import sample_frames

runner = CliRunner()
QUESTION = "is there a person?"
NUM_LAYERS = 6


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose store has `square`, the same as `gone` and `live` from other sources, and `new`, empty."""
    root = tmp_path_factory.mktemp("home")
    world = write_world(root, "square", seed=7, minutes=1.0, questions=4)
    config = load_settings("local")
    model = load_model(config.model)
    engine, segmenter = Engine(model, config.method), Segmenter(config.method.segment)
    window = engine.open_window()
    closed = [
        segmenter.push(model.encode_frames([f.rgb])[0], f.start_s, f.end_s)
        for f in sample_frames(str(world.video), config.source.sample_fps)
    ]
    stored = [engine.prefill(window, s) for s in [*closed, segmenter.flush()] if s is not None]
    facts = {"preset": "streamkv", "sample_fps": config.source.sample_fps}
    sources = {"square": str(world.video), "gone": str(root / "gone.mp4"), "live": "rtsp://me:secret@cam/1"}
    with SegmentStore.open(root / "store", identity=ModelIdentity.of(model)) as store:
        store.add_stream("new", str(world.video), facts)
        for name, uri in sources.items():
            store.add_stream(name, uri, facts)
            epoch = store.begin_writing(name)
            for kv in stored:
                store.commit(write_segment(store.root, store.identity, name, epoch, kv))
    return root


@pytest.fixture(scope="module")
def seen(home: Path) -> Inspection:
    """The stream with a question and without its video."""
    config = load_settings("local")
    model = load_model(config.model)
    with SegmentStore.open(home / "store", read_only=True) as store:
        memory = store.reader("square").refresh()
        return Inspection(
            "square", "square.mp4", "done", memory.as_of_s, NUM_LAYERS, view_segments(memory),
            question=view_question(Engine(model, config.method), memory, QUESTION, max_new_tokens=4),
        )  # fmt: skip


def long_stream(num_segments: int = 5000, num_layers: int = 28) -> Inspection:
    segments = tuple(
        SegmentView(i, i, 1, 10.0 * i, 10.0 * i + 10, 5, (i % 5 / 4,) * num_layers)
        for i in range(num_segments)
    )
    spans = tuple((2.0 * i, 2.0 * i + 2) for i in range(5 * num_segments))
    track = FrameTrack("cosine", 0.9, spans, tuple(0.8 if i % 5 == 0 else 0.99 for i in range(len(spans))))
    gaps = (MissingFootage(100.0, 200.0, "lost"),)
    return Inspection("long", "long.mp4", "done", 10.0 * num_segments, num_layers, segments, gaps, track)


def panels(figure: Figure) -> dict[str, Axes]:
    return {str(axes.get_label()): axes for axes in figure.axes}


def pixels(figure: Figure) -> np.ndarray:
    """(height, width, 4) uint8."""
    canvas = cast(FigureCanvasAgg, figure.canvas)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())


def stored_bytes(home: Path) -> dict[Path, bytes]:
    """Every file of the store but those with which SQLite's readers agree."""
    files = (p for p in (home / "store").rglob("*") if p.is_file() and not p.name.endswith(("-shm", "-wal")))
    return {p: p.read_bytes() for p in files}


def text_of(inspection: Inspection, width: int = 80) -> list[str]:
    console = Console(width=width, file=StringIO())
    console.print(Sketch(inspection))
    return cast(StringIO, console.file).getvalue().splitlines()


def test_a_stream_is_drawn_in_the_terminal_and_as_a_png(home: Path, tmp_path: Path) -> None:
    picture = tmp_path / "square.png"
    arguments = ["inspect", "square", "--home", str(home), "--ask", QUESTION, "--out", str(picture)]
    before = stored_bytes(home)
    result = runner.invoke(app, arguments)
    assert result.exit_code == 0, result.output
    with Image.open(picture) as image:
        assert image.format == "PNG"
        assert image.width == round(WIDTH_IN * DPI)
        assert 600 < image.height < 1400
    assert list(tmp_path.iterdir()) == [picture], "nothing is left beside it"
    assert sum(line.startswith("layer ") for line in result.output.splitlines()) == 2 * NUM_LAYERS
    assert "threshold 0.85" in result.output
    assert QUESTION in result.output
    assert stored_bytes(home) == before


def test_a_picture_that_is_there_is_kept_unless_told(home: Path, tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    picture.write_bytes(b"mine")
    arguments = ["inspect", "square", "--home", str(home), "--no-video", "--out", str(picture)]
    refused = runner.invoke(app, arguments)
    assert refused.exit_code == 1
    assert "--overwrite" in refused.output
    assert picture.read_bytes() == b"mine"
    assert runner.invoke(app, [*arguments, "--overwrite"]).exit_code == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_help_shows_an_example() -> None:
    result = runner.invoke(app, ["inspect", "--help"], env={"COLUMNS": "200"})
    assert "Example: streamkv inspect" in result.output
    assert "--json" in result.output


@pytest.mark.parametrize(("name", "why"), [("x.jpg", "ends in .png"), ("no/x.png", "no folder")])
def test_a_place_that_cannot_be_written_is_refused_at_once(tmp_path: Path, name: str, why: str) -> None:
    result = runner.invoke(
        app, ["inspect", "s", "--home", str(tmp_path), "--out", str(tmp_path / name), "--json"]
    )
    assert result.exit_code == 1
    assert why in json.loads(result.stdout)["error"]["message"]


def test_json_has_the_data_and_draws_nothing(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = runner.invoke(app, ["inspect", "square", "--home", str(home), "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert len(found["segments"]) == len(found["thumbnails"]) > 3
    assert all(len(s["kept_share_L"]) == NUM_LAYERS for s in found["segments"])
    assert found["frames"]["spans_s"][-1][1] == found["as_of_s"]
    # A segment begins where the similarity is at most the threshold: by the policy, on the same numbers.
    frames = found["frames"]
    rows = zip(frames["spans_s"], frames["similarities"], strict=True)
    similarity = {start_s: value for (start_s, _), value in rows}
    starts = [s["start_s"] for s in found["segments"][1:]]
    assert all(similarity[start] <= frames["theta"] for start in starts)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("stream", "why"), [("gone", "gone.mp4 is gone"), ("live", "live source")])
def test_without_its_footage_a_stream_is_drawn_and_says_so(home: Path, stream: str, why: str) -> None:
    result = runner.invoke(app, ["inspect", stream, "--home", str(home), "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["frames"], found["thumbnails"]) == (None, [])
    assert why in found["notes"][0]
    assert "secret" not in result.output
    assert len(found["segments"]) > 3


def test_a_video_that_is_shorter_now_is_told(home: Path, tmp_path: Path) -> None:
    whole = home / "square.mp4"
    kept = shutil.copy(whole, tmp_path / "kept.mp4")
    short = write_world(tmp_path, "short", seed=7, minutes=0.3, questions=1)
    try:
        shutil.copy(short.video, whole)
        found = json.loads(runner.invoke(app, ["inspect", "square", "--home", str(home), "--json"]).stdout)
    finally:
        shutil.copy(kept, whole)
    assert any("another file, or one that was cut" in note for note in found["notes"])


def test_an_empty_stream_and_an_unknown_one(home: Path, tmp_path: Path) -> None:
    picture = tmp_path / "new.png"
    result = runner.invoke(app, ["inspect", "new", "--home", str(home), "--out", str(picture)])
    assert result.exit_code == 0
    assert "nothing of this stream is committed yet" in result.output
    assert not picture.exists()
    unknown = runner.invoke(app, ["inspect", "none", "--home", str(home), "--no-video", "--json"])
    assert json.loads(unknown.stdout)["error"]["type"] == "UnknownStreamError"


@pytest.mark.parametrize(
    ("uri", "why"),
    [("/no/such.mp4", "is gone"), ("file:///no/such.mp4", "is gone"), ("rtsp://cam/1", "is a live source")],
)
def test_what_cannot_be_read_again_says_why(uri: str, why: str) -> None:
    assert why in why_unreadable(uri)


def test_the_picture_has_a_row_a_layer_and_a_mark_a_block(seen: Inspection) -> None:
    drawn = panels(draw(seen))
    assert set(drawn) == {"segments", "kept", "read", "scale"}
    (mesh,) = (c for c in drawn["kept"].collections if isinstance(c, QuadMesh))
    expected = np.array([s.kept_share_L for s in seen.segments]).T
    np.testing.assert_allclose(np.asarray(mesh.get_array()).reshape(NUM_LAYERS, -1), expected)
    (marks,) = (c for c in drawn["read"].collections if isinstance(c, PatchCollection))
    assert seen.question is not None
    assert len(marks.get_paths()) == len(seen.question.blocks)
    tops = [path.get_extents().y0 for path in marks.get_paths()]
    layers = sorted(b.layer for b in seen.question.blocks)
    assert sorted(int(np.floor(top + 0.5)) for top in tops) == layers


def test_more_kept_is_darker_in_its_own_cell(seen: Inspection) -> None:
    """Pixels at the cells' middles: luminance falls with the share, so that hue is not needed."""
    figure = draw(seen)
    image, axes = pixels(figure), panels(figure)["kept"]
    light: dict[float, float] = {}
    for segment in seen.segments:
        for layer, share in enumerate(segment.kept_share_L):
            x, y = axes.transData.transform(((segment.start_s + segment.end_s) / 2, layer))
            rgb = image[image.shape[0] - 1 - int(y), int(x), :3]
            light.setdefault(round(share, 3), float(rgb @ np.array([0.2126, 0.7152, 0.0722])))
    shares = sorted(light)
    assert len(shares) >= 3
    assert [light[s] for s in shares] == sorted(light.values(), reverse=True)


def test_a_long_stream_is_binned_and_says_so() -> None:
    figure = draw(long_stream())
    (mesh,) = (c for c in panels(figure)["kept"].collections if isinstance(c, QuadMesh))
    assert np.asarray(mesh.get_array()).shape == (28, 556)
    words = " ".join(t.get_text() for t in figure.texts)
    assert "5,000 segments are drawn in 556 bins of up to 9" in words
    assert pixels(figure).shape[:2] == (round(figure.get_figheight() * DPI), round(WIDTH_IN * DPI))


@pytest.mark.parametrize("width", [60, 80, 132])
def test_the_terminal_s_width_is_kept_and_each_layer_has_its_line(seen: Inspection, width: int) -> None:
    for inspection in (seen, long_stream()):
        lines = text_of(inspection, width)
        assert max(len(line) for line in lines) <= width
        sections = 2 if inspection.question else 1
        layers = [line for line in lines if line.startswith("layer ")]
        assert len(layers) == sections * inspection.num_layers
        for line, mean in zip(layers, inspection.layer_shares(), strict=False):
            assert line.endswith(f" {mean:.2f}"), "the end of a line is not cut off"
    assert any("5,000 segments are drawn in" in line for line in lines)


def test_the_terminal_shows_where_and_how_much() -> None:
    """Two segments of 31 characters each: all of the first kept and none of the second."""
    segments = (SegmentView(0, 0, 1, 0.0, 31.0, 4, (1.0,)), SegmentView(1, 1, 1, 31.0, 62.0, 4, (0.0,)))
    track = FrameTrack("cosine", 0.9, ((0.0, 31.0), (31.0, 62.0)), (1.0, 0.5))
    lines = text_of(Inspection("s", "s.mp4", "done", 62.0, 1, segments, frames=track))
    line = {
        name: next(x for x in lines if x.startswith(name)) for name in ("segments", "layer 0", "similarity")
    }
    assert line["segments"][12:74] == "█" * 31 + "▒" * 31
    assert line["layer 0"][12:74] == "█" * 31 + "░" * 31
    assert line["layer 0"].endswith(" 0.50")
    assert set(line["similarity"][12:43]) == {"█"}
    assert set(line["similarity"][43:74]) == {"╌"}, "below the threshold it shows through"


@given(st.lists(st.floats(0, 10), min_size=1, max_size=MAX_THUMBNAILS))
def test_thumbnails_never_overlap_nor_leave_the_picture(middles: list[float]) -> None:
    lefts = spread(sorted(middles), 0.9, 0.1, 10.0)
    assert lefts[0] >= -1e-9
    assert lefts[-1] + 0.9 <= 10.0 + 1e-9
    assert all(b - a >= 1.0 - 1e-9 for a, b in pairwise(lefts))


def test_a_thumbnail_that_has_room_stands_above_its_segment() -> None:
    assert spread([2.0, 5.0], 1.0, 0.1, 10.0) == [1.5, 4.5]
