"""Pictures and clips of a stream's source, and what is said where there are none."""

from __future__ import annotations

import asyncio
import os
import threading
from base64 import b64decode
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import av
import pytest
from clips import steady, write_clip
from PIL import Image

from pipeline.dialogue import CancelledError
from pipeline.footage import Footage
from pipeline.links import links_of
from pipeline.schemas import Answer, Evidence
from pipeline.thumbnails import MOST, add_thumbnails
from streamkv.config import PipelineConfig, load_config
from streamkv.errors import SourceError, SourceGoneError, UnknownStreamError
from streamkv.store import ModelIdentity, SegmentStore
from streamkv.types import Geometry

GOING_ON = threading.Event()
GEOMETRY = Geometry(num_layers=1, num_heads=1, num_kv_heads=1, head_dim=4, hidden_dim=4, frame_tokens=1)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> PipelineConfig:
    """Of a store with `lobby` of 10 s, `gone`, whose source was deleted, and `cam`, which is live."""
    folder = tmp_path_factory.mktemp("footage")
    film = write_clip(folder / "film.mp4", steady(10))
    config = load_config(None, [f"store.root={folder / 'store'}", "serve.max_clip_s=5"])
    with SegmentStore.open(config.store.root, identity=ModelIdentity("m", GEOMETRY, "float32")) as store:
        store.add_stream("lobby", str(film), {"is_live": False, "duration_s": 10.0})
        store.add_stream("gone", str(folder / "gone.mp4"), {"is_live": False, "duration_s": 10.0})
        store.add_stream("cam", "rtsp://cam/1", {"is_live": True})
    return config


@pytest.fixture
def footage(config: PipelineConfig) -> Footage:
    return Footage(config)


def test_a_clip_is_a_file_that_goes_when_it_is_closed(footage: Footage, tmp_path: Path) -> None:
    head, file = footage.clip("lobby", 3.0, 5.5, GOING_ON)
    with file:
        data = file.read()
        assert Path(file.name).exists()
    assert not Path(file.name).exists()
    assert (len(data), head.how) == (head.num_bytes, "copied")
    assert 2 <= head.start_s <= 3
    assert 5.5 <= head.end_s <= 5.625
    with av.open(BytesIO(data)) as container:
        assert container.duration / 1e6 == pytest.approx(head.end_s - head.start_s, abs=0.01)


@pytest.mark.parametrize(
    ("stream_id", "start_s", "end_s", "error", "message"),
    [
        ("nobody", 0, 1, UnknownStreamError, "unknown"),
        ("cam", 0, 1, SourceError, "a live source, whose pictures are not kept"),
        ("gone", 0, 1, SourceGoneError, "put it back where it was"),
        ("lobby", 3, 3, SourceError, "`from` must come before `to`"),
        ("lobby", 3, 2, SourceError, "`from` must come before `to`"),
        ("lobby", 0, 5.5, SourceError, "allowed 5 .serve.max_clip_s"),
        ("lobby", 10, 11, SourceError, "the source lasts 10 s; ask for an earlier time"),
    ],
)
def test_a_clip_that_cannot_be_says_why(
    footage: Footage, stream_id: str, start_s: float, end_s: float, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        footage.clip(stream_id, start_s, end_s, GOING_ON)
    assert type(caught.value) is error


def test_nothing_is_left_of_a_clip_that_nobody_waits_for(
    footage: Footage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    gone = threading.Event()
    gone.set()
    with pytest.raises(CancelledError):
        footage.clip("lobby", 0, 5, gone)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("width", "expected"), [(None, 64), (32, 32), (640, 64)])
def test_a_picture_is_as_wide_as_wanted_at_most(footage: Footage, width: int | None, expected: int) -> None:
    with Image.open(BytesIO(footage.picture("lobby", 3.0, width).jpeg)) as image:
        assert image.size == (expected, expected)
    with pytest.raises(SourceGoneError):
        footage.picture("gone", 3.0, width)


def evidence_at(start_s: float) -> Evidence:
    links = links_of("lobby", start_s, start_s + 1, 60.0)
    return Evidence(segment=round(start_s), start_s=start_s, end_s=start_s + 1, weight=0.5, **links._asdict())


def test_thumbnails_are_small_pictures_of_the_middle(footage: Footage) -> None:
    times = [*range(9), 20]
    answer = Answer(answer="", evidence=[evidence_at(t) for t in times], as_of_s=10.0, timings_ms={}, gaps=[])

    async def look(stream_id: str, at: Sequence[float], width: int) -> list[bytes | None]:
        return footage.thumbnails(stream_id, at, 16)

    asyncio.run(add_thumbnails(look, "lobby", answer))
    shown = [e.thumbnail for e in answer.evidence]
    assert all(shown[:MOST])
    assert shown[MOST:] == [None, None]
    for time_s, url in zip(times, shown[:MOST], strict=False):
        assert url is not None
        with Image.open(BytesIO(b64decode(url.removeprefix("data:image/jpeg;base64,")))) as image:
            assert image.size == (16, 16)
            assert abs(image.convert("L").getpixel((8, 14)) - (time_s + 0.5) * 10) < 15
    assert footage.thumbnails("lobby", [20.0, 1.0], 16)[0] is None, "one that is missing costs no other"


def test_an_answer_goes_out_without_pictures_that_cannot_be_had() -> None:
    answer = Answer(answer="red", evidence=[evidence_at(0.0)], as_of_s=1.0, timings_ms={}, gaps=[])

    async def fails(stream_id: str, at: Sequence[float], width: int) -> list[bytes | None]:
        raise SourceGoneError("gone")

    asyncio.run(add_thumbnails(fails, "lobby", answer))
    assert answer.evidence[0].thumbnail is None


def test_a_long_segment_has_the_clip_of_its_beginning() -> None:
    links = links_of("lobby", 3600.125, 3800.5, 60.0)
    assert links == (
        "/v1/streams/lobby/frames?at_s=3700.312",
        "/v1/streams/lobby/clip.mp4?from=3600.125&to=3660.125",
    )
