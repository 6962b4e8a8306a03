"""A Ray of our own: one that is too slow to start is started once more, and anything else is said at once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import ray

from pipeline.cluster import TOO_SLOW, cpus_needed, local_ray, when_needed
from streamkv.config import PipelineConfig, PoolConfig, ServeConfig


def test_there_are_processors_for_all_that_may_come() -> None:
    few = PipelineConfig(encode=PoolConfig(cpus=0.5), prefill=PoolConfig(cpus=0.5))
    many = PipelineConfig(
        encode=PoolConfig(cpus=0.5, max_actors=3),
        prefill=PoolConfig(cpus=0.5),
        serve=ServeConfig(replicas=2, max_replicas=4),
    )
    assert cpus_needed(many) - cpus_needed(few) == 2 * 0.5 + 3 * ServeConfig().cpus


@pytest.fixture
def outcomes(monkeypatch: pytest.MonkeyPatch) -> list[Exception | None]:
    """Of `ray.init`, call after call."""
    found: list[Exception | None] = []

    def init(**kwargs: Any) -> None:
        outcome = found.pop(0)
        if outcome is not None:
            raise outcome

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    return found


@pytest.mark.parametrize(
    ("happens", "fails"),
    [
        ([None], False),
        ([Exception(f"The current node {TOO_SLOW}."), None], False),
        ([Exception(f"The current node {TOO_SLOW}.")] * 2, True),
        ([ValueError("no such port"), None], True),
    ],
)
def test_a_ray_that_starts_too_slowly_is_started_once_more(
    tmp_path: Path, outcomes: list[Exception | None], happens: list[Exception | None], fails: bool
) -> None:
    outcomes += happens
    temp = tmp_path / "ray"
    temp.mkdir()
    was_up = False
    said = pytest.raises(type(happens[-1] or happens[0])) if fails else nullcontext()
    with said, local_ray(PipelineConfig(), temp):
        was_up = True
    assert was_up != fails
    assert len(outcomes) == (1 if isinstance(happens[0], ValueError) else 0)
    assert not temp.exists()


def test_what_ray_says_of_a_slow_node_is_still_what_we_look_for() -> None:
    node = Path(ray.__file__).parent / "_private" / "node.py"
    assert TOO_SLOW in node.read_text().replace('"\n', "").replace("  ", "")


def test_a_ray_that_nobody_needs_is_not_started() -> None:
    happened: list[str] = []

    @contextmanager
    def begin() -> Iterator[None]:
        happened.append("up")
        yield
        happened.append("down")

    with when_needed(begin):
        pass
    assert happened == []
    with when_needed(begin) as need_ray:
        need_ray()
        need_ray()
        assert happened == ["up"]
    assert happened == ["up", "down"]
