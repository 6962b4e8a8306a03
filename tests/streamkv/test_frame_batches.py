"""Which frames go through the tower together depends on the footage alone, wherever reading begins."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamkv.frame_batches import MAX_BATCH_BYTES, FrameBatches
from streamkv.types import Frame

PICTURE = np.zeros((2, 2, 3), np.uint8)


def frames_at(starts_s: list[float], rgb: np.ndarray = PICTURE) -> list[Frame]:
    return [Frame(rgb, start, start + 1.0) for start in starts_s]


def starts(batches: list[list[Frame]]) -> list[list[float]]:
    return [[frame.start_s for frame in batch] for batch in batches]


def test_batches_end_at_multiples_of_their_size_and_missing_frames_leave_them_smaller() -> None:
    batches = FrameBatches(0.5, 4).of(frames_at([0, 2, 4, 6, 8, 14, 16, 18, 20]))
    assert starts(list(batches)) == [[0, 2, 4, 6], [8, 14], [16, 18, 20]]


def test_a_batch_is_complete_with_its_last_frame_and_does_not_wait_for_another() -> None:
    batches = FrameBatches(1.0, 2)
    zero, one, two, six = frames_at([0, 1, 2, 6])
    assert batches.add(zero) == []
    assert batches.add(one) == [[zero, one]]
    assert batches.add(two) == []
    assert batches.add(six) == [[two]]
    assert (batches.rest(), batches.rest()) == ([six], [])


def test_one_frame_at_a_time_may_complete_two_batches() -> None:
    batches = FrameBatches(1.0, 4)
    (one, seven) = frames_at([1, 7])
    assert batches.add(one) == []
    assert batches.add(seven) == [[one], [seven]]


def test_large_pictures_make_smaller_batches() -> None:
    rgb = np.zeros((MAX_BATCH_BYTES // 3 // 3000, 1000, 3), np.uint8)  # three of them, nearly to the byte
    batches = FrameBatches(1.0, 8).of(frames_at([float(k) for k in range(16)], rgb))
    assert [len(batch) for batch in batches] == [3, 3, 2, 3, 3, 2]


@st.composite
def footage(draw: st.DrawFn) -> tuple[float, int, list[Frame]]:
    """A sample rate, a size, and frames of a folder: of videos that begin at whole seconds, some frames missing."""
    fps = draw(st.sampled_from([0.1, 0.3, 0.5, 1.0, 2.0, 2.997]))
    sizes = draw(st.lists(st.sampled_from([1, 3, 20]), min_size=1, max_size=4))  # of pictures, by the video
    frames, begins_s = [], 0
    for width in sizes:
        length_s = draw(st.integers(1, 40))
        for k in range(int(length_s * fps) + 1):
            if k / fps < length_s and draw(st.integers(0, 4)):
                end_s = begins_s + min((k + 1) / fps, length_s)
                frames.append(Frame(np.zeros((1, width, 3), np.uint8), begins_s + k / fps, end_s))
        begins_s += length_s
    return fps, draw(st.integers(1, 7)), frames


@given(footage(), st.data())
def test_reading_from_anywhere_makes_the_same_batches(
    found: tuple[float, int, list[Frame]], data: st.DataObject
) -> None:
    fps, size, frames = found

    def batches() -> FrameBatches:
        return FrameBatches(fps, size, max_bytes=70)

    whole = list(batches().of(frames))
    assert [start_s for batch in starts(whole) for start_s in batch] == [f.start_s for f in frames]
    assert all(0 < len(batch) <= size for batch in whole)
    for batch in whole:
        assert len(batch) == 1 or sum(f.rgb.nbytes for f in batch) - batch[-1].rgb.nbytes <= 70
    if not frames:
        return
    wanted = data.draw(st.sampled_from(frames))
    from_s = batches().first_s(wanted.start_s)
    part = list(batches().of(f for f in frames if f.start_s >= from_s))
    at = next(i for i, batch in enumerate(whole) if any(f is wanted for f in batch))
    again = next(i for i, batch in enumerate(part) if any(f is wanted for f in batch))
    assert starts(part[again:]) == starts(whole[at:])


@pytest.mark.parametrize("size", [1, 4])
def test_little_is_read_before_what_is_wanted(size: int) -> None:
    batches = FrameBatches(0.5, size)
    for start_s in range(0, 100, 2):
        from_s = batches.first_s(float(start_s))
        assert start_s - 2 * size < from_s <= start_s or from_s == 0.0
