"""What a decoder reads again at a resume: all of a batch, and no gap twice."""

from __future__ import annotations

from pathlib import Path

import pytest
from clips import write_clip

from actors.messages import StreamSpec
from actors.parts import _open_source
from streamkv.config import SourceConfig

SOURCE = SourceConfig(sample_fps=1.0, batch_frames=4)
TIMES_S = [k / 5 for k in [*range(35), *range(90, 150)]]  # nothing from 7 to 18
Told = tuple[list[float], list[tuple[float, float]]]


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("film") / "film.mp4", TIMES_S)


def told_from(film: Path, start_s: float) -> Told:
    """Starts of frames, and gaps."""
    gaps: list[tuple[float, float]] = []
    spec = StreamSpec("s", str(film), epoch=1, start_s=start_s)
    frames = _open_source(SOURCE, spec, lambda *gap: gaps.append(gap[:2]))
    return [frame.start_s for frame in frames], gaps


def test_a_resume_reads_all_of_the_batch_with_the_frame_before(film: Path) -> None:
    whole, gaps = told_from(film, 0.0)
    ((gap_begins_s, gap_ends_s),) = gaps
    assert (gap_begins_s, gap_ends_s) == (7.0, 18.0)
    assert whole == [*map(float, range(7)), *map(float, range(18, 30))]
    for start_s, first_s in {3.0: 0.0, 4.0: 0.0, 5.0: 4.0, 7.0: 4.0, 20.0: 18.0, 21.0: 20.0}.items():
        assert told_from(film, start_s)[0] == [s for s in whole if s >= first_s], start_s


def test_a_gap_in_whose_middle_reading_begins_is_not_told_again(film: Path) -> None:
    for start_s in (5.0, 7.0):
        assert told_from(film, start_s)[1] == [(7.0, 18.0)], "it comes first, or once more"
    for start_s in (12.0, 15.0, 18.0, 20.0, 25.0):
        assert told_from(film, start_s)[1] == [], start_s
