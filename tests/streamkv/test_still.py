"""A scene in which nothing changes is one frame for a long time; anything that changes closes it as before."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bench.still import main
from streamkv.config import SegmentConfig
from streamkv.segmentation import Segmenter
from streamkv.types import Segment

STEP_S = 2.0
CONFIG = SegmentConfig(
    min_frames=2, max_frames=64, theta=0.5, max_seconds=6.0, still_seconds=21.0, still_above=0.99
)


def scene(number: int) -> Tensor:
    return torch.randn(5, 8, generator=torch.Generator().manual_seed(number))


def moved(features_ND: Tensor) -> Tensor:
    """One token of five turns by 16 degrees: the mean cosine is 0.992."""
    changed_ND, away_D = features_ND.clone(), torch.roll(features_ND[4], 1)
    away_D = away_D - (away_D @ features_ND[4]) / features_ND[4].square().sum() * features_ND[4]
    changed_ND[4] += 0.28 * away_D * features_ND[4].norm() / away_D.norm()
    return changed_ND


def push_all(segmenter: Segmenter, frames: list[Tensor], first: int = 0) -> list[Segment]:
    closed = [segmenter.push(f, STEP_S * t, STEP_S * (t + 1)) for t, f in enumerate(frames, first)]
    return [s for s in [*closed, segmenter.flush()] if s is not None]


def spans(segments: list[Segment]) -> list[tuple[float, float]]:
    return [(s.start_s, s.end_s) for s in segments]


def test_a_still_scene_is_one_frame_until_still_seconds() -> None:
    segments = push_all(Segmenter(CONFIG), [scene(1)] * 14)
    assert spans(segments) == [(0.0, 20.0), (20.0, 28.0)]
    for segment in segments:
        assert torch.equal(segment.features_nND, scene(1)[None])
        assert segment.spans_s == ((segment.start_s, segment.end_s),)
        assert segment.resume_s == segment.end_s
    assert [s.num_source_frames for s in segments] == [10, 4]


def test_up_to_max_seconds_all_its_frames_are_there() -> None:
    (segment,) = push_all(Segmenter(CONFIG), [scene(1)] * 3)
    assert segment.features_nND.shape[0] == 3


def test_a_small_thing_that_moves_closes_it_before_that_frame() -> None:
    frames = [scene(1)] * 5 + [moved(scene(1))] + [scene(1)] * 2
    segments = push_all(Segmenter(CONFIG), frames)
    assert spans(segments) == [(0.0, 10.0), (10.0, 16.0)]
    assert segments[1].features_nND.shape[0] == 3


def test_a_scene_in_which_something_moved_closes_after_max_seconds() -> None:
    segments = push_all(Segmenter(CONFIG), [scene(1), moved(scene(1)), *[scene(1)] * 4])
    assert spans(segments)[0] == (0.0, 6.0)


def test_slow_change_is_measured_from_the_first_frame() -> None:
    """Each frame is like the one before it; after a while none is like the first."""
    frames = [torch.lerp(scene(1), scene(2), t / 20) for t in range(10)]
    segments = push_all(Segmenter(CONFIG), frames)
    assert max(end - start for start, end in spans(segments)) <= CONFIG.max_seconds


def test_what_nobody_saw_is_not_taken_for_still() -> None:
    segmenter = Segmenter(CONFIG)
    for t in range(4):
        assert segmenter.push(scene(1), STEP_S * t, STEP_S * (t + 1)) is None
    closed = segmenter.push(scene(1), 12.0, 14.0)
    assert closed is not None
    assert (closed.start_s, closed.end_s) == (0.0, 8.0)


@given(st.lists(st.integers(0, 2), min_size=1, max_size=40), st.data())
def test_a_resume_at_any_close_makes_the_same_segments(kinds: list[int], data: st.DataObject) -> None:
    frames = [moved(scene(1)) if kind == 2 else scene(kind) for kind in kinds]
    whole = push_all(Segmenter(CONFIG), frames)
    cut = data.draw(st.integers(0, len(whole) - 1))
    at = round(whole[cut].start_s / STEP_S)
    segmenter = Segmenter(CONFIG, cut - 1)
    if at:  # as `DecodeEncode` does: the frame before is compared with, and not kept
        segmenter.push(frames[at - 1], STEP_S * (at - 1), STEP_S * at)
        segmenter.flush()
    else:
        segmenter = Segmenter(CONFIG)
    resumed = push_all(segmenter, frames[at:], at)
    assert spans(resumed) == spans(whole[cut:])
    assert all(torch.equal(a.features_nND, b.features_nND) for a, b in zip(resumed, whole[cut:], strict=True))
    assert sum(s.num_source_frames for s in whole) == len(frames)


def test_an_hour_of_stillness_takes_less_than_a_busy_minute(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--worlds", "1", "--json"])
    figures = json.loads(capsys.readouterr().out)["figures"]
    assert figures["still_over_world"]["value"] < 1
    assert figures["still_prefilled"]["value"] == 4
