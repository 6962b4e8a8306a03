"""Pools that grow, shrink and lose an actor while real video is ingested: the files are those of streams left alone."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from clips import steady, write_clip
from live import LiveServer, spans, wait_for_end, wait_until
from segment_contents import segment_contents

from streamkv.config import load_config
from streamkv.engine import Engine
from streamkv.ingest import ingest
from streamkv.models import load_model
from streamkv.sources import sample_archive
from streamkv.store import ModelIdentity, SegmentStore

pytestmark = pytest.mark.ray

SECONDS = 150
ROOT = Path(__file__).parent.parent.parent
PACED = """
import time
from streamkv.segmentation import SIMILARITIES, cosine

def paced(a_ND, b_ND):
    time.sleep(0.06)
    return cosine(a_ND, b_ND)

SIMILARITIES["paced"] = paced
"""
SETTINGS = (
    "source.sample_fps=1",
    "source.batch_frames=1",  # in a batch, the last bits of a frame's features depend on how many there are
    "method.segment.policy=semantic",
    "method.segment.theta=-2",
    "method.segment.max_seconds=4",
)
NAMES = ("a", "b", "c")


@pytest.fixture
def server(tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LiveServer]:
    """A frame takes it a while, so that actors can come and go before the film is over."""
    (tmp_path / "paced.py").write_text(PACED)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (tmp_path, ROOT))))
    pace = ("plugins=[paced]", "method.segment.similarity=paced")
    live = LiveServer(tmp_path / "home", tiny_checkpoint, *SETTINGS, *pace)
    try:
        live.up()
        yield live
    finally:
        live.discard()


def left_alone(folder: Path, tiny_checkpoint: Path, film: Path) -> SegmentStore:
    """The film as stream `a` of a store that one process makes in one go."""
    config = load_config(None, [f"model.path={tiny_checkpoint}", *SETTINGS])
    model = load_model(config.model)
    store = SegmentStore.open(folder, identity=ModelIdentity.of(model))
    store.add_stream("a", str(film))
    ingest(
        Engine(model, config.method),
        store,
        "a",
        sample_archive(str(film), config.source.sample_fps),
        batch_frames=config.source.batch_frames,
        codec=config.store.codec,
    )
    return store


def test_streams_that_are_moved_to_and_fro_and_cut_off_have_the_files_of_one_that_was_not(
    server: LiveServer, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    film = write_clip(tmp_path / "film.mp4", steady(SECONDS, 4))

    def actors() -> tuple[int, int]:
        return len(server.processes("ray::DecodeEncode")), len(server.processes("ray::Prefill"))

    with server.client() as client:
        for name in NAMES:
            client.add_stream(name, str(film))
        wait_until(lambda: min(stream["segments"] for stream in client.streams()) > 1)
        server.kill("Prefill")
        wait_until(lambda: min(stream["restarts"] for stream in client.streams()) > 0)
        wait_until(lambda: {stream["state"] for stream in client.streams()} == {"ingesting"})
        told = server.run("scale", "--encode", "2", "--prefill", "2", "--wait", "--json")
        pools = {pool["name"]: pool for pool in json.loads(told.stdout)}
        assert {name: (pool["size"], pool["is_set"]) for name, pool in pools.items()} == {
            "encode": (2, True),
            "prefill": (2, True),
        }
        wait_until(lambda: client.stats()["handovers"] >= 1)
        assert actors() == (2, 2)
        assert {stream["state"] for stream in client.streams()} == {"ingesting"}, (
            "the film is too short for this"
        )
        told = server.run("scale", "--encode", "1", "--prefill", "1", "--wait")
        assert "encode" in told.stdout
        wait_until(lambda: actors() == (1, 1))
        ended = wait_for_end(client, *NAMES)
        assert client.stats()["handovers"] >= 2
        assert client.stats()["replayed_segments"] > len(NAMES)
    assert {stream["state"] for stream in ended.values()} == {"done"}
    with left_alone(tmp_path / "alone", tiny_checkpoint, film) as alone, server.store() as store:
        assert spans(alone, "a") == [(float(k), min(k + 4.0, SECONDS)) for k in range(0, SECONDS, 4)]
        expected = segment_contents(alone, "a")
        for name in NAMES:
            assert spans(store, name) == spans(alone, "a")
            assert segment_contents(store, name) == expected
        assert [p for p in store.verify() if p.kind != "extra"] == []
