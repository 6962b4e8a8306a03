"""A folder is one stream, resumed like one; pictures stand upright; keyframes alone are cheap."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
from clips import SIDE, steady, write_clip
from live_servers import needs_ffmpeg
from PIL import Image

from streamkv.errors import SourceError
from streamkv.sources import probe_source, sample_archive
from streamkv.townsquare.script import make_world
from streamkv.townsquare.video import write_video
from streamkv.types import Frame
from streamkv.video import sample_frames


def shade(frame: Frame) -> float:
    return float(frame.rgb[SIDE // 2 + 4 :].mean())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three clips of 4, 3 and 5 seconds, a damaged one, and what is no video."""
    folder = tmp_path / "cam"
    folder.mkdir()
    write_clip(folder / "cam-10.mp4", steady(5))
    write_clip(folder / "cam-2.mp4", steady(3))
    write_clip(folder / "cam-1.mkv", steady(4))
    (folder / "cam-3.mp4").write_text("not a video\n" * 40)
    (folder / "notes.txt").write_text("no")
    (folder / ".cam-4.mp4").write_text("being written")
    return folder


def test_a_folder_is_its_videos_in_the_order_of_their_names(folder: Path) -> None:
    gaps: list[tuple[float, float, str]] = []
    frames = list(sample_archive(str(folder), 1.0, on_gap=lambda *gap: gaps.append(gap)))
    assert [f.start_s for f in frames] == [float(k) for k in range(12)]
    assert [round(shade(f) / 10) for f in frames] == [0, 1, 2, 3, 0, 1, 2, 0, 1, 2, 3, 4]
    assert [(start, end) for start, end, _ in gaps] == [(7.0, 7.0)]
    assert "cam-3.mp4" in gaps[0][2]
    info = probe_source(str(folder), timeout_s=1)
    assert info.duration_s == pytest.approx(12, abs=0.5)
    assert not info.is_live


@pytest.mark.parametrize("fps", [1.0, 0.7, 2.0])
def test_a_folder_resumes_at_the_very_frames_of_an_unbroken_run(folder: Path, fps: float) -> None:
    whole = list(sample_archive(str(folder), fps))
    for cut in range(len(whole)):
        resumed = list(sample_archive(f"file://{folder}", fps, start_s=whole[cut].start_s))
        assert [(f.start_s, f.end_s) for f in resumed] == [(f.start_s, f.end_s) for f in whole[cut:]]
        assert all(np.array_equal(a.rgb, b.rgb) for a, b in zip(resumed, whole[cut:], strict=True))


def test_a_folder_without_videos_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="holds no video"):
        probe_source(str(tmp_path), timeout_s=1)
    (tmp_path / "a.mp4").write_text("no video\n" * 40)
    with pytest.raises(SourceError, match="can be read"):
        probe_source(str(tmp_path), timeout_s=1)


def test_keyframes_alone_are_decoded_from_an_archive(tmp_path: Path) -> None:
    path = str(write_clip(tmp_path / "clip.mp4", steady(12), gop=16))
    every, keys = (list(sample_frames(path, 2.0, keyframes_only=only)) for only in (False, True))
    assert [f.start_s for f in keys] == [f.start_s for f in every], "the same sampling times, no gaps"
    assert len({f.rgb.tobytes() for f in keys}) < len(keys) / 2
    for frame in keys:
        assert 0 <= frame.start_s * 10 - shade(frame) + 4 < 28, "a keyframe of at most two seconds before"


MATRICES = {
    90: (0, 1, 0, -1, 0, 0, 0, 0, 16384),
    180: (-1, 0, 0, 0, -1, 0, 0, 0, 16384),
    270: (0, -1, 0, 1, 0, 0, 0, 0, 16384),
}


@needs_ffmpeg
@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_a_picture_that_lies_on_its_side_is_stood_up(tmp_path: Path, degrees: int) -> None:
    """Against ffmpeg's own autorotation."""
    data = bytearray(write_video(make_world(4, 0.05), tmp_path / "town.mp4").read_bytes())
    at = data.index(b"tkhd") + 4 + 40  # the track's matrix
    data[at : at + 36] = struct.pack(">9i", *(value * 65536 for value in MATRICES[degrees]))
    turned, upright = tmp_path / "turned.mp4", tmp_path / "upright.png"
    turned.write_bytes(data)
    command = ["ffmpeg", "-loglevel", "error", "-i", str(turned), "-frames:v", "1", str(upright)]
    subprocess.run(command, check=True)
    frame = next(sample_frames(str(turned), 1.0))
    with Image.open(upright) as image:
        expected = np.asarray(image.convert("RGB"))
    assert frame.rgb.shape == expected.shape
    assert np.abs(frame.rgb.astype(int) - expected).mean() < 3
