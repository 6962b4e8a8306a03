"""Whatever is wrong with a video, sampling it ends: with frames on the grid, with gaps, or with a SourceError."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from damage import CORPUS, RATE, SECONDS, TEN_HOURS_S, Damaged, base, bomb, transport

from streamkv.decoding import MAX_JUMP_S, MAX_STATED_S, Source
from streamkv.errors import SourceError
from streamkv.sources import probe_source, sample_archive
from streamkv.types import Frame

FPS = 2.0
MAX_PICTURES = max(10 * RATE * SECONDS, TEN_HOURS_S // 8)
"""More than any file of the corpus holds; one that is decoded again and again soon has more."""
MANY = 40_000
"""Frames that are looked at; of absurd rates and of ten hours there are more."""


@dataclass
class Seen:
    """All that a file gave."""

    frames: list[Frame] = field(default_factory=list)
    gaps: list[tuple[float, float, str]] = field(default_factory=list)
    error: str = ""
    pictures: int = 0


@pytest.fixture(params=CORPUS, ids=lambda damaged: damaged.name)
def damaged(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    one: Damaged = request.param
    path = tmp_path / one.name
    path.write_bytes(one.make())
    return path


@pytest.fixture
def seen(damaged: Path, monkeypatch: pytest.MonkeyPatch) -> Seen:
    found = Seen()
    decode = Source._decode

    def counted(source: Source) -> Iterator[object]:
        for image in decode(source):
            found.pictures += 1
            assert found.pictures <= MAX_PICTURES, "it does not end"
            yield image

    monkeypatch.setattr(Source, "_decode", counted)
    look(damaged, found)
    return found


def look(path: Path, into: Seen, start_s: float = 0.0) -> Seen:
    try:
        frames = sample_archive(str(path), FPS, start_s=start_s, on_gap=lambda *gap: into.gaps.append(gap))
        into.frames.extend(frame for frame, _ in zip(frames, range(MANY), strict=False))
    except SourceError as exc:
        into.error = str(exc)
    return into


def test_the_corpus_is_large_and_each_file_is_another() -> None:
    assert len(CORPUS) >= 300
    assert len({one.name for one in CORPUS}) == len(CORPUS)
    assert len({one.kind for one in CORPUS}) >= 30
    assert CORPUS[0].make() == CORPUS[0].make()


def test_it_ends_with_frames_on_the_grid_or_with_a_reason(damaged: Path, seen: Seen) -> None:
    assert bool(seen.frames) != bool(seen.error), (len(seen.frames), seen.error)
    assert damaged.name in seen.error or seen.frames or "allowed up to" in seen.error
    times = [frame.start_s for frame in seen.frames]
    assert all(time * FPS == round(time * FPS) for time in times)
    assert all(early < late for early, late in pairwise(times)), "each time once, rising"
    assert all(frame.end_s == frame.start_s + 1 / FPS for frame in seen.frames)
    assert all(frame.rgb.ndim == 3 and frame.rgb.dtype == np.uint8 for frame in seen.frames)
    longest_s = float(max(MAX_JUMP_S, MAX_STATED_S))
    assert not times or times[-1] <= longest_s * seen.pictures, "no time is invented"


def test_what_is_missing_between_frames_is_told(seen: Seen) -> None:
    assert all(start <= end for start, end, _ in seen.gaps)
    end_s = 0.0
    told = sorted(gap[:2] for gap in seen.gaps)
    for frame in seen.frames:
        for start, end in told:
            if start == end_s < end <= frame.start_s:
                end_s = end
        assert end_s == frame.start_s
        end_s = frame.end_s


@pytest.mark.parametrize("suffix", ["mkv", "webm", "flv"])
def test_a_video_that_is_cut_tells_up_to_where_it_should_go(suffix: str, tmp_path: Path) -> None:
    cut = tmp_path / f"cut.{suffix}"
    cut.write_bytes(base(suffix)[: len(base(suffix)) * 6 // 10])
    seen = look(cut, Seen())
    assert seen.frames
    start_s, end_s, reason = seen.gaps[-1]
    assert (start_s, end_s) == (seen.frames[-1].end_s, SECONDS)
    assert "before its stated end" in reason


def test_the_stated_end_of_a_clock_that_was_set_anew_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "leap.ts"
    path.write_bytes(transport(0, 86_400))
    seen = look(path, Seen())
    assert [frame.start_s for frame in seen.frames] == [k / FPS for k in range(8)]
    assert seen.gaps == []


def test_a_picture_that_would_fill_the_memory_is_never_made(tmp_path: Path) -> None:
    """Were it decoded, and measured then, the error would have its size."""
    path = tmp_path / "bomb.mov"
    path.write_bytes(bomb(9_000))
    with pytest.raises(SourceError, match="not one picture decodes"):
        probe_source(str(path), timeout_s=1)


SILENT = {"flip_bits-webm-1.webm", "flip_bits-webm-8.webm", "zero-mkv-1.mkv"}
"""Their damage lies behind the place of the resume, and a decoder fills it with what it saw before the jump."""
RESUMED = [one for one in CORPUS if one.kind not in ("ten-hours", "rate") and one.name not in SILENT]


@pytest.mark.parametrize("one", RESUMED, ids=lambda one: one.name)
def test_a_resume_yields_the_very_frames_of_an_unbroken_run(one: Damaged, tmp_path: Path) -> None:
    path = tmp_path / one.name
    path.write_bytes(one.make())
    whole = look(path, Seen())
    for cut in {len(whole.frames) // 2, len(whole.frames) - 1} - {0, -1}:
        start_s = whole.frames[cut].start_s
        resumed = look(path, Seen(), start_s)
        assert [f.start_s for f in resumed.frames] == [f.start_s for f in whole.frames[cut:]]
        assert all(
            np.array_equal(a.rgb, b.rgb) for a, b in zip(resumed.frames, whole.frames[cut:], strict=True)
        )
        assert resumed.gaps == [gap for gap in whole.gaps if gap[0] >= start_s]
