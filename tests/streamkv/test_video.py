"""Sampling follows the footage's timestamps, survives damage, and resumes exactly."""

from __future__ import annotations

import gc
from pathlib import Path

import av
import numpy as np
import pytest
from clips import SIDE, steady, write_clip

from streamkv.decoding import Source
from streamkv.errors import SourceError
from streamkv.types import Frame
from streamkv.uris import redact_uri
from streamkv.video import probe, sample_frames


def shade(frame: Frame) -> float:
    """The time that the picture was drawn for, in tenths, from its lower half."""
    return float(frame.rgb[SIDE // 2 + 4 :].mean())


class Gaps(list[tuple[float, float, str]]):
    def __call__(self, start_s: float, end_s: float, reason: str) -> None:
        self.append((start_s, end_s, reason))


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_clip(tmp_path / "clip.mp4", steady(12))


def test_frames_lie_on_the_grid_and_show_what_was_on_show(clip: Path) -> None:
    gaps = Gaps()
    frames = list(sample_frames(str(clip), 2.0, on_gap=gaps))
    assert [f.start_s for f in frames] == [k / 2 for k in range(24)]
    assert [f.end_s for f in frames] == [(k + 1) / 2 for k in range(24)]
    for frame in frames:
        assert shade(frame) == pytest.approx(frame.start_s * 10, abs=4)
    assert gaps == []


def test_sampling_faster_than_the_source_repeats_the_picture_on_show(clip: Path) -> None:
    frames = list(sample_frames(str(clip), 16.0))
    assert len(frames) == 192
    assert np.array_equal(frames[10].rgb, frames[11].rgb)


def test_variable_rate_is_sampled_by_time_not_by_count(tmp_path: Path) -> None:
    times = [*steady(2), 2.0, 5.0, *(5.5 + t for t in steady(2))]
    frames = list(sample_frames(str(write_clip(tmp_path / "vfr.mp4", times)), 1.0))
    assert [f.start_s for f in frames] == [0, 1, 2, 3, 4, 5, 6, 7]
    assert shade(frames[4]) == pytest.approx(20, abs=4), "the picture of 2.0 s is on show until 5.0 s"
    assert shade(frames[5]) == pytest.approx(50, abs=4)


@pytest.mark.parametrize("offset_s", [-3.0, 7.25, 4000.0])
def test_stream_time_starts_at_the_first_picture(tmp_path: Path, offset_s: float) -> None:
    path = write_clip(tmp_path / "late.mkv", steady(4), offset_s=offset_s)
    frames = list(sample_frames(str(path), 2.0))
    assert [f.start_s for f in frames] == [k / 2 for k in range(8)]
    assert shade(frames[6]) == pytest.approx(30, abs=4)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts", "a.avi", "a.h264"])
@pytest.mark.parametrize("fps", [2.0, 0.7, 3.0])
def test_a_resume_yields_the_very_frames_of_an_unbroken_run(tmp_path: Path, name: str, fps: float) -> None:
    codec = "mpeg4" if name.endswith("avi") else "libx264"
    path = str(write_clip(tmp_path / name, steady(12), codec=codec, gop=20))
    whole = list(sample_frames(path, fps))
    # a bare H.264 stream has no timestamps: its 96 pictures count as 25 a second
    assert len(whole) == pytest.approx((96 / 25 if name.endswith("h264") else 12) * fps, abs=1)
    for cut in range(len(whole)):
        resumed = list(sample_frames(path, fps, start_s=whole[cut].start_s))
        assert [f.start_s for f in resumed] == [f.start_s for f in whole[cut:]]
        assert all(np.array_equal(a.rgb, b.rgb) for a, b in zip(resumed, whole[cut:], strict=True))


def test_a_seek_that_lands_too_late_is_made_good(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An index may lead past the wanted time; then the source is decoded from its beginning."""
    whole = list(sample_frames(str(clip), 2.0))
    monkeypatch.setattr("streamkv.decoding.SEEK_MARGIN_S", -4.0)
    for cut in range(len(whole)):
        resumed = list(sample_frames(str(clip), 2.0, start_s=whole[cut].start_s))
        assert [f.start_s for f in resumed] == [f.start_s for f in whole[cut:]]
        assert all(np.array_equal(a.rgb, b.rgb) for a, b in zip(resumed, whole[cut:], strict=True))


def test_a_resume_at_the_end_yields_nothing(clip: Path) -> None:
    assert list(sample_frames(str(clip), 2.0, start_s=12.0)) == []


@pytest.mark.parametrize("pix_fmt", ["yuv444p", "gray", "yuv420p10le", "rgb24"])
def test_odd_pixel_formats_become_rgb(tmp_path: Path, pix_fmt: str) -> None:
    codec = "libx264rgb" if pix_fmt == "rgb24" else "libx264"
    path = tmp_path / "odd.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=4)
        stream.width, stream.height, stream.pix_fmt = 66, 50, pix_fmt
        for _ in range(4):
            picture = np.full((50, 66, 3), 120, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    (frame,) = sample_frames(str(path), 1.0)
    assert frame.rgb.shape == (50, 66, 3)
    assert frame.rgb.dtype == np.uint8
    assert frame.rgb.mean() == pytest.approx(120, abs=4)


def test_one_picture_is_one_frame(tmp_path: Path) -> None:
    (frame,) = sample_frames(str(write_clip(tmp_path / "one.mp4", [0.0])), 0.5)
    assert (frame.start_s, frame.end_s) == (0.0, 2.0)


def test_a_truncated_file_yields_what_is_there_and_says_what_is_not(tmp_path: Path) -> None:
    whole = write_clip(tmp_path / "whole.mp4", steady(12), movflags="faststart")
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 6 // 10])
    gaps = Gaps()
    frames = list(sample_frames(str(cut), 2.0, on_gap=gaps))
    full = list(sample_frames(str(whole), 2.0))
    assert 8 < len(frames) < 20
    assert all(np.array_equal(a.rgb, b.rgb) for a, b in zip(frames[:-1], full, strict=False))
    assert gaps[-1][:2] == (frames[-1].end_s, 12.0)
    assert "before its stated end" in gaps[-1][2]


def test_damaged_packets_lose_their_pictures_only_and_are_told(tmp_path: Path) -> None:
    """Zeroing three seconds of one-second keyframe groups leaves the other nine exact."""
    clip = write_clip(tmp_path / "clip.mp4", steady(12), gop=8)
    with av.open(str(clip)) as container:
        packets = [p for p in container.demux(video=0) if p.pts is not None]
        spans = [(p.pos, p.size, float(p.pts * p.time_base)) for p in packets]
    data = bytearray(clip.read_bytes())
    for pos, size, time in spans:
        if 4 <= time < 7:
            data[pos : pos + size] = bytes(size)
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(data)
    gaps = Gaps()
    frames = list(sample_frames(str(bad), 2.0, on_gap=gaps))
    good = {f.start_s: f.rgb for f in sample_frames(str(clip), 2.0)}
    outside = [f for f in frames if not 4 <= f.start_s < 7]
    assert [f.start_s for f in outside] == [k / 2 for k in (*range(8), *range(14, 24))]
    assert all(np.array_equal(f.rgb, good[f.start_s]) for f in outside)
    assert [(start, end) for start, end, _ in gaps] == [(4.0, 7.0)]
    assert "did not decode" in gaps[0][2]
    again = Gaps()
    resumed = list(sample_frames(str(bad), 2.0, start_s=4.0, on_gap=again))
    assert [f.start_s for f in resumed] == [f.start_s for f in frames if f.start_s >= 4]
    assert again == gaps, "a resume tells the same gap, not another"


@pytest.mark.parametrize("seed", range(12))
def test_flipped_bits_never_raise_and_never_invent_time(clip: Path, tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    data = bytearray(clip.read_bytes())
    for at in rng.integers(64, len(data) - 4000, 40):  # the index at the end stays whole
        data[at] ^= 1 << rng.integers(8)
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(data)
    gaps = Gaps()
    frames = list(sample_frames(str(bad), 2.0, on_gap=gaps))
    times = [f.start_s for f in frames]
    assert times == sorted(set(times))
    assert times[-1] < 13
    missing = {k / 2 for k in range(24)} - set(times)
    told = {k / 2 for k in range(26) for start, end, _ in gaps if start <= k / 2 < end}
    assert missing <= told, "what is missing is told"


def test_a_hole_in_the_timestamps_is_a_gap(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "hole.ts", [*steady(3), *(40 + t for t in steady(3))])
    gaps = Gaps()
    frames = list(sample_frames(str(path), 1.0, on_gap=gaps))
    assert [f.start_s for f in frames] == [0, 1, 2, 40, 41, 42]
    assert [(start, end) for start, end, _ in gaps] == [(3.0, 40.0)]
    assert "no picture for" in gaps[0][2]


def test_timestamps_that_start_over_go_on_from_where_they_were(tmp_path: Path) -> None:
    """Two transport streams end to end, as a camera that was restarted leaves them."""
    one = write_clip(tmp_path / "one.ts", steady(4)).read_bytes()
    spliced = tmp_path / "spliced.ts"
    spliced.write_bytes(one + one)
    times = [f.start_s for f in sample_frames(str(spliced), 1.0)]
    assert times == sorted(set(times))
    assert len(times) == pytest.approx(8, abs=1)


def test_a_changed_resolution_is_followed(tmp_path: Path) -> None:
    clips = []
    for side in (64, 96):
        path = tmp_path / f"{side}.h264"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=4)
            stream.width = stream.height = side
            stream.pix_fmt = "yuv420p"
            for _ in range(8):
                picture = np.zeros((side, side, 3), np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode(None))
        clips.append(path.read_bytes())
    both = tmp_path / "both.h264"
    both.write_bytes(b"".join(clips))
    assert {f.rgb.shape[0] for f in sample_frames(str(both), 2.0)} == {64, 96}


def write_audio(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 16_000, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def test_sources_without_pictures_are_refused_by_name(tmp_path: Path) -> None:
    text = tmp_path / "text.mp4"
    text.write_text("this is no video\n" * 100)
    empty = tmp_path / "empty.mp4"
    empty.touch()
    audio = write_audio(tmp_path / "audio.mp4")
    for path, words in [
        (tmp_path / "missing.mp4", "no such file"),
        (text, "cannot be opened"),
        (empty, "0 bytes"),
        (audio, "only audio"),
        (tmp_path, "not a file"),
    ]:
        for attempt in (lambda p=path: probe(str(p)), lambda p=path: list(sample_frames(str(p), 1.0))):
            with pytest.raises(SourceError, match=words) as caught:
                attempt()
            assert path.name in str(caught.value)


def test_a_video_of_which_nothing_decodes_is_refused(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", steady(2))
    with av.open(str(clip)) as container:
        spans = [(p.pos, p.size) for p in container.demux(video=0) if p.pos is not None and p.size]
    data = bytearray(clip.read_bytes())
    for pos, size in spans:
        data[pos : pos + size] = bytes(size)
    clip.write_bytes(data)
    with pytest.raises(SourceError, match="not one picture"):
        list(sample_frames(str(clip), 1.0))
    with pytest.raises(SourceError, match="not one picture"):
        probe(str(clip))


def test_probe_says_what_the_source_says(clip: Path) -> None:
    info = probe(str(clip))
    assert (info.width, info.height, info.codec) == (SIDE, SIDE, "h264")
    assert info.duration_s == pytest.approx(12)
    assert info.fps == pytest.approx(8, rel=0.1)


def test_a_nonsense_rate_is_refused(clip: Path) -> None:
    with pytest.raises(SourceError, match="sample_fps"):
        list(sample_frames(str(clip), 0.0))


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("rtsp://bob:hunter2@cam.local:554/a?x=1", "rtsp://***@cam.local:554/a?x=1"),
        ("https://host/v.mp4?token=hunter2&t=5", "https://host/v.mp4?token=***&t=5"),
        ("rtsp://bob:hun@ter2@cam/a", "rtsp://***@cam/a"),
        ("/footage/a@b.mp4", "/footage/a@b.mp4"),
        ("http://[hunter2", "http://***"),
    ],
)
def test_credentials_are_not_shown(uri: str, shown: str) -> None:
    assert redact_uri(uri) == shown


def test_credentials_stay_out_of_errors() -> None:
    with pytest.raises(SourceError) as caught:
        probe("http://bob:hunter2@127.0.0.1:1/a.mp4?token=hunter2")
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert "127.0.0.1" in str(caught.value)


@pytest.mark.parametrize("start_s", [0.0, 3.0])
def test_a_decoder_goes_with_its_reader_and_waits_for_no_collection(tmp_path: Path, start_s: float) -> None:
    clip = write_clip(tmp_path / "clip.mp4", steady(8))
    gc.collect()
    gc.disable()
    try:
        frames = sample_frames(str(clip), 1.0, start_s=start_s)
        assert next(frames).start_s == start_s
        assert num_open() == 1
        frames.close()  # in the middle
        assert num_open() == 0
        probe(str(clip))
        assert num_open() == 0
    finally:
        gc.enable()


def num_open() -> int:
    return sum(type(each) is Source for each in gc.get_objects())
