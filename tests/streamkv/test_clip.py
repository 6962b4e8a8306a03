"""A clip shows what the source shows, at the same times: copied where it can be, else encoded anew."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import pytest
from clips import steady, write_clip

from streamkv import clip as clips
from streamkv.clip import write_clip as write_mp4
from streamkv.decoding import to_rgb
from streamkv.errors import SourceError


class Shown(NamedTuple):
    """A decoded picture."""

    time_s: float
    rgb: np.ndarray


def decoded(path: Path) -> list[Shown]:
    """Its pictures by their own timestamps, once it is what a browser plays."""
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat"), "its index comes first"
    with av.open(str(path)) as container:
        (stream,) = container.streams
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        return [
            Shown(float(image.pts * image.time_base), to_rgb(image)) for image in container.decode(stream)
        ]


def grey(rgb: np.ndarray) -> float:
    """What the clips of these tests tell their time by: ten times the seconds."""
    return float(rgb[rgb.shape[0] // 2 + 4 :].mean())


def pictures_of(source: Path) -> list[Shown]:
    """All of the source's, in stream time; of a folder's files each in its slot."""
    found, begins_s = list[Shown](), 0.0
    files = [f for f in sorted(source.iterdir()) if f.name != "2b.mp4"] if source.is_dir() else [source]
    for file in files:
        with av.open(str(file)) as container:
            own = [(float(image.pts * image.time_base), to_rgb(image)) for image in _decodable(container)]
        found += [Shown(begins_s + time_s - own[0][0], rgb) for time_s, rgb in own]
        begins_s = math.ceil(found[-1].time_s + 1 / 8)
    return found


def _decodable(container: Any) -> Iterator[Any]:
    with suppress(av.error.InvalidDataError):  # of a file that is cut
        yield from container.decode(video=0)


def check(path: Path, found: clips.Clip, source: Path, *, exact: bool) -> list[float]:
    """That the clip shows what the source shows; the stream times of its pictures."""
    times, wanted = [], pictures_of(source)
    for shown in decoded(path):
        at_s = found.start_s + shown.time_s
        on_show = max((w for w in wanted if w.time_s <= at_s + 0.003), key=lambda w: w.time_s)
        if exact:
            assert np.array_equal(shown.rgb, on_show.rgb), at_s
        assert abs(grey(shown.rgb) - grey(on_show.rgb)) < 3, at_s
        times.append(round(at_s, 3))
    return times


def keyframe_before(source: Path, start_s: float) -> float:
    """The last one's stream time, by reading all packets."""
    with av.open(str(source)) as container:
        packets = [p for p in container.demux(video=0) if p.size]
    origin = min(p.pts for p in packets)
    times = [float((p.pts - origin) * p.time_base) for p in packets if p.is_keyframe]
    return max(t for t in times if t <= start_s)


def eighths(first: float, end: float) -> list[float]:
    """Times of the pictures on show between."""
    return [k / 8 for k in range(math.floor(first * 8 + 0.01), math.ceil(end * 8 - 0.01))]


@pytest.mark.parametrize(("start_s", "end_s"), [(0, 2), (5.3, 7), (7.5, 8), (7.95, 9.1)])
@pytest.mark.parametrize(
    ("name", "options"),
    [("a.mp4", {}), ("a.mkv", {}), ("late.mp4", {"offset_s": 100.5}), ("a.mov", {})],
)
def test_packets_are_copied_from_the_keyframe_before(
    tmp_path: Path, name: str, options: dict, start_s: float, end_s: float
) -> None:
    """Not one picture is encoded again."""
    source, path = write_clip(tmp_path / name, steady(10), gop=7, **options), tmp_path / "clip.mp4"
    found = write_mp4(str(source), start_s, end_s, path)
    first_s = keyframe_before(source, start_s)
    assert found.is_copy
    assert found.start_s == pytest.approx(first_s, abs=0.002)
    assert found.end_s == pytest.approx(end_s, abs=0.126)
    assert check(path, found, source, exact=True) == pytest.approx(eighths(first_s, end_s), abs=0.002)


@pytest.mark.parametrize("gap_s", [2.0, 4.0])
def test_matroska_has_no_decoding_times_at_first(tmp_path: Path, gap_s: float) -> None:
    """Its keyframe may be the very packet that the search lands on."""
    source, path = write_clip(tmp_path / "a.mkv", steady(20), gop=round(8 * gap_s)), tmp_path / "clip.mp4"
    for start_s in (5.0, 8.1, 11.9, 12.0):
        found = write_mp4(str(source), start_s, start_s + 1.5, path)
        assert (found.is_copy, found.start_s) == (True, keyframe_before(source, start_s))
        check(path, found, source, exact=True)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("other.mp4", {"codec": "mpeg4"}),
        ("a.ts", {}),
        ("other.mkv", {"codec": "mpeg4"}),
        ("far.mp4", {"gop": 1000}),  # a keyframe at 0 alone
    ],
)
def test_what_cannot_be_copied_is_encoded_and_begins_where_asked(
    tmp_path: Path, name: str, options: dict
) -> None:
    source, path = write_clip(tmp_path / name, steady(20), **options), tmp_path / "clip.mp4"
    found = write_mp4(str(source), 15.3, 17.5, path)
    assert not found.is_copy
    assert (found.start_s, found.end_s) == (pytest.approx(15.3), pytest.approx(17.5))
    times = check(path, found, source, exact=False)
    assert times == pytest.approx([15.3, *eighths(15.375, 17.5)], abs=0.001)


def test_a_picture_on_its_side_is_stood_up(tmp_path: Path) -> None:
    """The dark half, which is below, comes to the left."""
    data = bytearray(write_clip(tmp_path / "a.mp4", steady(3)).read_bytes())
    at = data.index(b"tkhd") + 4 + 40  # the track's matrix: a quarter turn clockwise
    data[at : at + 36] = struct.pack(">9i", *(value * 65536 for value in (0, 1, 0, -1, 0, 0, 0, 0, 16384)))
    (tmp_path / "turned.mp4").write_bytes(data)
    found = write_mp4(str(tmp_path / "turned.mp4"), 0, 1, tmp_path / "clip.mp4")
    assert not found.is_copy
    last = decoded(tmp_path / "clip.mp4")[-1].rgb
    assert last[:, :28].mean() + 10 < last[:, 36:].mean()


def test_a_large_picture_is_made_smaller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clips, "MAX_SIDE", 48)
    source, path = write_clip(tmp_path / "a.mp4", steady(2), codec="mpeg4"), tmp_path / "clip.mp4"
    write_mp4(str(source), 0, 1, path)
    assert {shown.rgb.shape for shown in decoded(path)} == {(48, 48, 3)}


def test_a_clip_is_cut_at_the_end_and_where_it_grows_too_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, path = write_clip(tmp_path / "a.mp4", steady(10)), tmp_path / "clip.mp4"
    assert write_mp4(str(source), 9, 60, path).end_s == 10
    monkeypatch.setattr(clips, "MAX_BYTES", 5_000)
    found = write_mp4(str(source), 0, 10, path)
    assert 0.5 < found.end_s < 5
    assert check(path, found, source, exact=True)[-1] <= found.end_s


def test_footage_that_is_missing_is_left_out(tmp_path: Path) -> None:
    """Nothing between 3 and 8 s: the picture before is what a copy begins with."""
    times = [t for t in steady(12) if not 3 <= t < 8]
    source, path = write_clip(tmp_path / "a.mp4", times, gop=4), tmp_path / "clip.mp4"
    found = write_mp4(str(source), 2.9, 8.5, path)
    first_s = keyframe_before(source, 2.9)
    assert check(path, found, source, exact=True) == pytest.approx([*eighths(first_s, 3), *eighths(8, 8.5)])
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(write_clip(tmp_path / "b.mp4", steady(20), movflags="faststart").read_bytes()[:-8_000])
    found = write_mp4(str(cut), 0, 20, path)
    assert 5 < found.end_s < 20
    assert len(decoded(path)) > 40


def folder_of(tmp_path: Path, **options: dict) -> Path:
    """Three files of 4, 3 and 5 s and one that is damaged; `options` of each by name."""
    folder = tmp_path / "cam"
    folder.mkdir()
    for name, seconds in (("1", 4), ("2", 3), ("3", 5)):
        write_clip(folder / f"{name}.mp4", steady(seconds), **options.get(f"at_{name}", {}))
    (folder / "2b.mp4").write_text("not a video\n" * 40)
    return folder


def test_files_of_a_folder_are_joined_without_encoding(tmp_path: Path) -> None:
    folder, path = folder_of(tmp_path), tmp_path / "clip.mp4"
    found = write_mp4(str(folder), 3.3, 8.2, path)
    assert found.is_copy
    first_s = keyframe_before(folder / "1.mp4", 3.3)
    assert (found.start_s, found.end_s) == (first_s, 8.25)
    assert check(path, found, folder, exact=True) == pytest.approx(eighths(first_s, 8.25))
    inside = write_mp4(str(folder), 5, 6, path)
    assert (inside.is_copy, inside.start_s) == (True, 4 + keyframe_before(folder / "2.mp4", 1))
    check(path, inside, folder, exact=True)


def test_files_of_different_settings_are_encoded_as_one(tmp_path: Path) -> None:
    folder, path = folder_of(tmp_path, at_2={"codec": "mpeg4"}), tmp_path / "clip.mp4"
    found = write_mp4(f"file://{folder}", 3.5, 8, path)
    assert not found.is_copy
    assert check(path, found, folder, exact=False) == pytest.approx(eighths(3.5, 8), abs=0.001)


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "libx264"), ("b.mp4", "mpeg4")])
def test_where_there_is_no_footage_the_error_says_so(tmp_path: Path, name: str, codec: str) -> None:
    source = write_clip(tmp_path / name, steady(4), codec=codec)
    with pytest.raises(SourceError, match="shows nothing from 5 to 6 s"):
        write_mp4(str(source), 5, 6, tmp_path / "clip.mp4")
    for wrong in (tmp_path / "text.mp4", tmp_path / "none.mp4"):
        (tmp_path / "text.mp4").write_text("no video\n" * 50)
        with pytest.raises(SourceError):
            write_mp4(str(wrong), 0, 1, tmp_path / "clip.mp4")


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_whoever_asked_may_end_it(tmp_path: Path, codec: str) -> None:
    class GoneError(Exception):
        pass

    seen = 0

    def gone() -> None:
        nonlocal seen
        seen += 1
        if seen == 3:
            raise GoneError

    source = write_clip(tmp_path / "a.mp4", steady(10), codec=codec)
    with pytest.raises(GoneError):
        write_mp4(str(source), 0, 10, tmp_path / "clip.mp4", gone)
    assert seen == 3
