"""A stream that kills its decoder's process each time is set aside; the others on that actor lose nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from clips import steady, write_clip
from damage import still
from live import LiveServer, spans, wait_for_end

pytestmark = pytest.mark.ray

SECONDS = 240
ROOT = Path(__file__).parent.parent.parent
DEADLY = """
import os, signal, torch
from streamkv.segmentation import SIMILARITIES, cosine

def deadly(a_ND, b_ND):
    if torch.allclose(a_ND, b_ND, atol=1e-4):  # as no two pictures of a noisy camera are
        os.kill(os.getpid(), signal.SIGKILL)
    return cosine(a_ND, b_ND)

SIMILARITIES["deadly"] = deadly
"""


@pytest.fixture
def server(tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LiveServer]:
    """Two pictures that are alike kill the process, as a file does on which the C decoder crashes."""
    (tmp_path / "deadly.py").write_text(DEADLY)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (tmp_path, ROOT))))
    live = LiveServer(
        tmp_path / "home",
        tiny_checkpoint,
        "plugins=[deadly]",
        "source.sample_fps=1",
        "source.batch_frames=4",
        "source.queue_frames=4",
        "method.segment.policy=semantic",
        "method.segment.similarity=deadly",
        "method.segment.theta=-2",
        "method.segment.max_seconds=4",
    )
    try:
        live.up()
        yield live
    finally:
        live.discard()


def test_a_stream_that_kills_its_decoder_is_set_aside_and_costs_the_others_nothing(
    server: LiveServer, tmp_path: Path
) -> None:
    poison = tmp_path / "poison.mkv"
    poison.write_bytes(still(40, 1.0))
    names = ("a", "b", "c")
    with server.client() as client:
        for name in names:
            client.add_stream(name, str(write_clip(tmp_path / f"{name}.mp4", steady(SECONDS, 4))))
        client.add_stream("poison", str(poison))
        ended = wait_for_end(client, "poison", *names)
    assert {name: ended[name]["state"] for name in ended} == {
        **dict.fromkeys(names, "done"),
        "poison": "failed",
    }
    assert "set aside" in ended["poison"]["detail"]
    assert "its decoder was restarted" in ended["poison"]["detail"]
    log = server.home.log.read_text()
    assert any(f"stream {name}: its session is lost" in log for name in names), "they had the same decoder"
    with server.store() as store:
        for name in names:
            assert spans(store, name) == [(float(k), k + 4.0) for k in range(0, SECONDS, 4)]
            assert store.stream(name).num_source_frames == SECONDS
        assert [p for p in store.verify() if p.kind != "extra"] == []
