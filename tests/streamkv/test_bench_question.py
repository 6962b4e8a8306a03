"""The memory that bench.question answers from is one that the engine can read."""

from __future__ import annotations

import pytest

from bench.question import SyntheticVideo
from streamkv.config import MethodConfig
from streamkv.engine import Engine
from streamkv.models import VideoLLM


@pytest.mark.parametrize("indexed", [False, True])
def test_a_synthetic_video_can_be_asked(tiny_model: VideoLLM, indexed: bool) -> None:
    video = SyntheticVideo(tiny_model.geometry, 6, 3, indexed=indexed, seed=1)
    answer = Engine(tiny_model, MethodConfig()).answer(video, "what is the bus", max_new_tokens=2)
    assert {e.segment_no for e in answer.evidence} <= set(range(6))
    assert sum(answer.blocks_per_layer) > 0
