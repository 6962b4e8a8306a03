"""Segments close where the features say, hold every frame once, and know their times."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import closed_segments, merged_frames
from torch import Tensor

from streamkv.config import SegmentConfig
from streamkv.errors import ConfigError
from streamkv.segmentation import SEGMENT_POLICIES, OpenFrame, Segmenter, SegmentPolicy, Similarity
from streamkv.types import Segment

N, D = 3, 5
STEP_S = 2.0


def frame_at(degrees: float, length: float = 1.0) -> Tensor:
    """(N, D) whose mean has the direction `degrees` in the first two axes."""
    mean = torch.zeros(D)
    mean[0], mean[1] = length * math.cos(math.radians(degrees)), length * math.sin(math.radians(degrees))
    noise = torch.tensor([[0.5], [-0.25], [-0.25]]).expand(N, D)  # sums to zero over tokens
    return mean + noise


def run(segmenter: Segmenter, frames: list[Tensor], *, flush: bool = True) -> list[Segment]:
    """Frames of 2 seconds each."""
    closed = [segmenter.push(f, STEP_S * t, STEP_S * (t + 1)) for t, f in enumerate(frames)]
    return [s for s in [*closed, segmenter.flush() if flush else None] if s is not None]


def semantic(**settings: object) -> SegmentConfig:
    return SegmentConfig(
        **({"min_frames": 2, "max_frames": 8, "max_seconds": 0, "still_seconds": 0} | settings)
    )


def test_closes_on_change_once_it_holds_min_frames() -> None:
    frames = [frame_at(d) for d in (0, 40, 41, 42, 90, 91)]
    segments = run(Segmenter(semantic()), frames)
    # 0 -> 40 is a change, but one frame is fewer than min_frames
    assert [s.features_nND.shape[0] for s in segments] == [4, 2]
    assert segments[0].similarities == pytest.approx(
        (1.0, *(math.cos(math.radians(x)) for x in (40, 1, 1))), abs=1e-5
    )
    assert segments[1].similarities[0] == pytest.approx(math.cos(math.radians(48)), abs=1e-5)


def test_similarity_at_theta_closes() -> None:
    """`<=`: a similarity that equals theta is a change."""
    one = frame_at(0)
    assert len(run(Segmenter(semantic(theta=1.0, min_frames=1)), [one, one.clone()])) == 2


@settings(max_examples=60)
@given(st.lists(st.sampled_from([0.0, 1.0, 30.0, 31.0, 80.0]), min_size=1, max_size=24), st.integers(1, 4))
def test_segments_equal_the_rule_applied_to_the_whole_list(degrees: list[float], min_frames: int) -> None:
    frames = [frame_at(d) for d in degrees]
    config = semantic(min_frames=min_frames, max_frames=64)
    segments = run(Segmenter(config), frames)
    expected = closed_segments(frames, min_frames, config.theta)
    assert [s.features_nND.shape[0] for s in segments] == [len(run) for run in expected]
    torch.testing.assert_close(torch.cat([s.features_nND for s in segments]), torch.stack(frames))
    assert [s.segment_no for s in segments] == list(range(len(expected)))
    assert [s.start_s for s in segments] == [STEP_S * run[0] for run in expected]
    assert [s.end_s for s in segments] == [STEP_S * (run[-1] + 1) for run in expected]
    assert [s.resume_s for s in segments] == [s.end_s for s in segments]


@settings(max_examples=60)
@given(
    st.lists(st.sampled_from([0.0, 2.0, 5.0, 9.0, 30.0, 60.0]), min_size=1, max_size=30),
    st.integers(1, 3),
    st.integers(3, 5),
    st.sampled_from([0.0, 2.0, 7.0, 12.0, 100.0]),
)
def test_frame_by_frame_equals_the_whole_list_at_once(
    degrees: list[float], min_frames: int, max_frames: int, max_seconds: float
) -> None:
    """Cut, bounded in time, then merged: content, what it was made of, and times."""
    frames = [frame_at(d + 0.3 * t + 0.01 * t * t) for t, d in enumerate(degrees)]  # no two pairs are alike
    config = semantic(min_frames=min_frames, max_frames=max_frames, max_seconds=max_seconds, theta=0.9)
    segments = run(Segmenter(config), frames)
    expected = closed_segments(frames, min_frames, config.theta, max_seconds, STEP_S)
    assert [s.num_source_frames for s in segments] == [len(numbers) for numbers in expected]
    for segment, numbers in zip(segments, expected, strict=True):
        merged = merged_frames([frames[t] for t in numbers], max_frames)
        torch.testing.assert_close(segment.features_nND, torch.stack([f for f, _ in merged]))
        made_of = [[numbers[i] for i in of] for _, of in merged]
        assert segment.spans_s == tuple((STEP_S * of[0], STEP_S * (of[-1] + 1)) for of in made_of)


def test_full_segment_merges_its_most_similar_neighbours() -> None:
    frames = [frame_at(d) for d in (0, 6, 8, 14, 19)]  # 6 and 8 are closest
    (segment,) = run(Segmenter(semantic(max_frames=4, theta=0.9)), frames)
    assert segment.num_source_frames == 5
    torch.testing.assert_close(segment.features_nND[1], (frames[1] + frames[2]) / 2)
    torch.testing.assert_close(segment.features_nND[[0, 2, 3]], torch.stack([frames[i] for i in (0, 3, 4)]))
    assert segment.spans_s == ((0.0, 2.0), (2.0, 6.0), (6.0, 8.0), (8.0, 10.0))
    # the merged frame points to 7 degrees, and so do its similarities
    expected = [1.0, *(math.cos(math.radians(x)) for x in (7, 7, 5))]
    assert segment.similarities == pytest.approx(tuple(expected), abs=1e-5)


def test_newest_frame_may_be_merged_and_the_next_is_compared_with_what_came() -> None:
    """s_t compares with frame t - 1 as it came, not with the merged frame."""
    frames = [frame_at(d) for d in (0, 10, 11, 25)]
    segments = run(Segmenter(semantic(max_frames=2, theta=math.cos(math.radians(14.2)))), frames)
    assert len(segments) == 1  # 14 degrees from frame 2 passes; from the merged (10.5) it would not
    first_three = (frames[0] + (frames[1] + frames[2]) / 2) / 2
    torch.testing.assert_close(segments[0].features_nND, torch.stack([first_three, frames[3]]))
    assert segments[0].similarities[0] == 1.0  # the first frame stays the first, whatever it was merged with


def test_pairs_are_compared_as_they_are_held() -> None:
    """The last frame is 10 and 11 merged, so 10.5: it is nearer to 0 than to 21.2, though 11 is not."""
    (segment,) = run(Segmenter(semantic(max_frames=2, theta=0.9)), [frame_at(d) for d in (0, 10, 11, 21.2)])
    assert segment.spans_s == ((0.0, 6.0), (6.0, 8.0))


@settings(max_examples=40)
@given(st.lists(st.floats(0, 5), min_size=1, max_size=40), st.integers(1, 5))
def test_merging_keeps_the_bound_and_covers_the_time(degrees: list[float], max_frames: int) -> None:
    config = semantic(min_frames=1, max_frames=max_frames, theta=-1.0)
    segmenter = Segmenter(config)
    for t, angle in enumerate(degrees):
        assert segmenter.push(frame_at(angle), STEP_S * t, STEP_S * (t + 1)) is None
        segment = segmenter.open_segment
        assert segment is not None
        assert segment.num_source_frames == t + 1
        assert len(segment.features_nND) == len(segment.spans_s) == min(t + 1, max_frames)
        bounds = [0.0, *(end for _, end in segment.spans_s)]
        assert [start for start, _ in segment.spans_s] == bounds[:-1]
        assert bounds[-1] == STEP_S * (t + 1)


def test_still_camera_closes_after_max_seconds() -> None:
    segments = run(Segmenter(semantic(max_seconds=6.0)), [frame_at(0)] * 8, flush=False)
    assert [(s.start_s, s.end_s) for s in segments] == [(0.0, 6.0), (6.0, 12.0)]


def test_full_time_closes_with_the_frame_that_fills_it() -> None:
    """Waiting for the next frame would make the segment answerable one interval later."""
    segmenter = Segmenter(semantic(max_seconds=4.0))
    assert segmenter.push(frame_at(0), 0.0, 2.0) is None
    assert segmenter.push(frame_at(0), 2.0, 4.0) is not None
    assert segmenter.open_segment is None


def test_policy_whose_one_frame_is_complete_loses_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """A frame that ends the segment before it and is complete by itself: two close, with two pushes."""

    class Alone(SegmentPolicy):
        """Frames that point down stand alone; the others gather."""

        def ends_before(self, frames: list[OpenFrame], similarity: float) -> bool:
            return similarity < 0

        def ends_after(self, frames: list[OpenFrame]) -> bool:
            return bool(frames[-1].features_ND[:, 1].mean() < 0)

        def fit(self, frames: list[OpenFrame], similarity: Similarity) -> None:
            pass

    monkeypatch.setitem(SEGMENT_POLICIES, "alone", Alone)
    segments = run(Segmenter(semantic(policy="alone")), [frame_at(d) for d in (90, 91, -90, -91, 90)])
    assert [len(s.features_nND) for s in segments] == [2, 1, 1, 1]


def test_segment_never_spans_more_than_max_seconds() -> None:
    segments = run(Segmenter(semantic(max_seconds=7.0)), [frame_at(0)] * 8)
    assert [(s.start_s, s.end_s) for s in segments] == [(0.0, 6.0), (6.0, 12.0), (12.0, 16.0)]


def test_gap_in_time_closes_the_segment_before_it() -> None:
    segmenter = Segmenter(semantic(max_seconds=60.0))
    assert segmenter.push(frame_at(0), 0.0, 2.0) is None
    closed = segmenter.push(frame_at(0), 600.0, 602.0)
    assert closed is not None
    assert (closed.start_s, closed.end_s) == (0.0, 2.0)


def test_frame_longer_than_max_seconds_is_its_own_segment() -> None:
    """Each push closes at most one segment; none is lost for it."""
    frames = [frame_at(0), frame_at(90), frame_at(90)]
    segments = run(Segmenter(semantic(min_frames=1, max_seconds=1.0)), frames)
    assert [(s.start_s, s.end_s) for s in segments] == [(0.0, 2.0), (2.0, 4.0), (4.0, 6.0)]
    change = Segmenter(semantic(min_frames=1, max_seconds=5.0))
    assert change.push(frame_at(0), 0.0, 2.0) is None
    first, second = change.push(frame_at(90), 2.0, 8.0), change.push(frame_at(90), 8.0, 10.0)
    assert first is not None
    assert second is not None
    assert [(s.start_s, s.end_s) for s in (first, second)] == [(0.0, 2.0), (2.0, 8.0)]


def test_uniform_closes_as_soon_as_it_is_full() -> None:
    config = semantic(policy="uniform", max_frames=3)
    segmenter = Segmenter(config)
    closed = [segmenter.push(frame_at(90 * t), STEP_S * t, STEP_S * (t + 1)) for t in range(7)]
    assert [s.segment_no if s else None for s in closed] == [None, None, 0, None, None, 1, None]
    last = segmenter.flush()
    assert last is not None
    assert last.num_source_frames == 1
    assert segmenter.flush() is None


def test_dot_similarity_sees_length() -> None:
    frames = [frame_at(0, length=2.0), frame_at(60, length=2.0), frame_at(60, length=0.5)]
    segments = run(Segmenter(semantic(similarity="dot", min_frames=1)), frames)
    # 2 * 2 * cos 60 = 2 passes theta, 2 * 0.5 * cos 0 = 1.0 passes 0.99
    assert [s.similarities for s in segments] == [pytest.approx((1.0, 2.0, 1.0), abs=1e-5)]
    assert len(run(Segmenter(semantic(min_frames=1)), frames)) == 2


def test_resumes_at_a_segment_number() -> None:
    (segment,) = run(Segmenter(semantic(), segment_no=7), [frame_at(0)])
    assert segment.segment_no == 7


def test_open_segment_is_a_peek() -> None:
    segmenter = Segmenter(semantic())
    assert segmenter.open_segment is None
    segmenter.push(frame_at(0), 0.0, 2.0)
    first, again = segmenter.open_segment, segmenter.open_segment
    assert first is not None
    assert again is not None
    torch.testing.assert_close(first.features_nND, again.features_nND)
    segmenter.push(frame_at(1), 2.0, 4.0)
    assert first.features_nND.shape[0] == 1  # a peek does not grow
    closed = segmenter.flush()
    assert closed is not None
    assert closed.segment_no == first.segment_no


def test_unknown_policy_is_named() -> None:
    with pytest.raises(ConfigError, match=r"segment.policy: unknown 'magic'; known: semantic, uniform"):
        Segmenter(SegmentConfig(policy="magic"))


@pytest.mark.parametrize(("changed", "closes"), [(1, False), (2, False), (3, True), (9, True)])
def test_quartile_similarity_asks_how_much_of_the_picture_changed(changed: int, closes: bool) -> None:
    """Nine places: of the sorted cosines it is the third, so it falls when three of them change."""
    before = torch.eye(9, 16)
    after = before.clone()
    after[:changed] = torch.eye(9, 16).roll(7, dims=1)[:changed]
    segmenter = Segmenter(semantic(similarity="quartile", min_frames=1, theta=0.5))
    assert segmenter.push(before, 0.0, 2.0) is None
    assert (segmenter.push(after, 2.0, 4.0) is not None) == closes
