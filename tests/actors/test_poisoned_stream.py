"""A stream that kills its decoder's process each time is set aside; the others on that actor go on and lose nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from clips import steady, write_clip
from damage import still
from stage import wait_until
from tiny import write_tiny_checkpoint

from actors.remote import wait_for
from pipeline.cluster import local_ray, make_temp
from streamkv.config import (
    MethodConfig,
    ModelConfig,
    PipelineConfig,
    SegmentConfig,
    SourceConfig,
    StoreConfig,
)
from streamkv.store import SegmentStore

pytestmark = pytest.mark.ray

SECONDS = 60
ROOT = Path(__file__).parent.parent.parent
DEADLY = """
import os, signal
from streamkv.segmentation import SIMILARITIES, cosine

def deadly(a_ND, b_ND):
    if a_ND.equal(b_ND):  # as no two pictures of a noisy camera are
        os.kill(os.getpid(), signal.SIGKILL)
    return cosine(a_ND, b_ND)

SIMILARITIES["deadly"] = deadly
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PipelineConfig:
    """Two pictures that are alike kill the process, as a file that a decoder crashes on would."""
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    (plugins / "deadly.py").write_text(DEADLY)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (plugins, ROOT))))
    monkeypatch.syspath_prepend(str(plugins))
    segments = SegmentConfig(similarity="deadly", theta=-1, max_frames=8, min_frames=1, max_seconds=4)
    return PipelineConfig(
        plugins=["deadly"],
        model=ModelConfig(path=str(write_tiny_checkpoint(tmp_path / "tiny"))),
        method=MethodConfig(segment=segments),
        source=SourceConfig(sample_fps=1.0, batch_frames=4, queue_frames=4),
        store=StoreConfig(root=str(tmp_path / "store")),
    )


@pytest.fixture
def supervisor(config: PipelineConfig) -> Iterator[Any]:
    with local_ray(config, make_temp()):
        from actors.spawn import ensure_supervisor

        front = ensure_supervisor(config)
        wait_until(lambda: wait_for(front.state.remote(), 60).phase == "ready", 120)
        yield front
        wait_for(front.shutdown.remote(), 60)


def test_a_stream_that_kills_its_decoder_is_set_aside_and_costs_the_others_nothing(
    supervisor: Any, config: PipelineConfig, tmp_path: Path
) -> None:
    poison = tmp_path / "poison.mkv"
    poison.write_bytes(still(40, 1.0))
    names = ("a", "b", "c")
    for name in names:
        clip = write_clip(tmp_path / f"{name}.mp4", steady(SECONDS))
        wait_for(supervisor.add_stream.remote(name, str(clip)), 60)
    wait_for(supervisor.add_stream.remote("poison", str(poison)), 60)

    def views() -> dict[str, Any]:
        return {view.stream_id: view for view in wait_for(supervisor.streams.remote(), 60)}

    wait_until(lambda: {view.state for view in views().values()} <= {"done", "failed"}, 200)
    ended = views()
    assert {name: view.state for name, view in ended.items()} == {
        **dict.fromkeys(names, "done"),
        "poison": "failed",
    }
    assert "set aside" in ended["poison"].detail
    assert "its decoder was restarted" in ended["poison"].detail
    with SegmentStore.open(config.store.root, read_only=True) as store:
        for name in names:
            spans = [(s.start_s, s.end_s) for s in store.reader(name).refresh().segments]
            assert [start for start, _ in spans] == [0.0, *(end for _, end in spans[:-1])]
            assert spans[-1][1] == SECONDS
            assert store.stream(name).num_source_frames == SECONDS
        assert [p for p in store.verify() if p.kind != "extra"] == []
