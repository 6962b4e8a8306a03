"""Pools that grow, shrink and lose actors while real video is ingested: by whom they are asked, and by a stream."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from clips import steady, write_clip
from damage import still
from live import LiveServer, spans, wait_for_end, wait_until
from segment_contents import segment_contents

from streamkv.config import load_config
from streamkv.engine import Engine
from streamkv.frame_batches import FrameBatches
from streamkv.ingest import ingest
from streamkv.models import load_model
from streamkv.sources import sample_archive
from streamkv.store import ModelIdentity, SegmentStore

pytestmark = pytest.mark.ray

SECONDS, FEW_SECONDS = 150, 100
ROOT = Path(__file__).parent.parent.parent
TRYING = """
import ctypes, time, torch
from pathlib import Path
from streamkv.segmentation import SIMILARITIES, cosine

def trying(a_ND, b_ND):
    if torch.allclose(a_ND, b_ND, atol=1e-4):  # as no two pictures of a noisy camera are
        ctypes.string_at(0)
    time.sleep(1.0 if Path(__file__).with_name("slow").exists() else 0.06)
    return cosine(a_ND, b_ND)

SIMILARITIES["trying"] = trying
"""
SETTINGS = (
    "source.sample_fps=1",
    "source.batch_frames=3",  # so that batches and segments end at different frames
    "method.segment.policy=semantic",
    "method.segment.theta=-2",
    "method.segment.max_seconds=4",
)
NAMES = ("a", "b", "c")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Iterator[LiveServer]:
    """A frame takes it a while, and a second where there is a file `slow`, so that actors can come and go before a film
    is over. Two pictures that are alike crash the process, as a file does on which the C decoder crashes."""
    folder = tmp_path_factory.mktemp("trying")
    (folder / "trying.py").write_text(TRYING)
    live = LiveServer(
        folder / "home",
        tiny_checkpoint,
        *SETTINGS,
        "source.queue_frames=4",
        "plugins=[trying]",
        "method.segment.similarity=trying",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(map(str, (folder, ROOT))))
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
        batches=FrameBatches.configured(config.source),
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
        slow = server.home.root.with_name("slow")
        slow.touch()
        server.kill("Prefill")
        wait_until(lambda: min(stream["restarts"] for stream in client.streams()) > 0)
        wait_until(lambda: {stream["state"] for stream in client.streams()} == {"ingesting"})
        told = server.run("scale", "--encode", "2", "--prefill", "2", "--wait", "--json")
        pools = {pool["name"]: pool for pool in json.loads(told.stdout)}
        assert {name: (pool["size"], pool["is_set"]) for name, pool in pools.items()} == {
            "encode": (2, True),
            "prefill": (2, True),
        }
        wait_until(lambda: client.stats().get("handovers", 0) >= 1)
        assert actors() == (2, 2)
        assert {stream["state"] for stream in client.streams()} == {"ingesting"}, (
            "the film is too short for this"
        )
        told = server.run("scale", "--encode", "1", "--prefill", "1", "--wait")
        assert "encode" in told.stdout
        wait_until(lambda: actors() == (1, 1))
        slow.unlink()
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


def test_a_stream_that_kills_its_decoder_is_set_aside_and_costs_the_others_nothing(
    server: LiveServer, tmp_path: Path
) -> None:
    poison = tmp_path / "poison.mkv"
    poison.write_bytes(still(40, 1.0))
    names = ("d", "e", "f")
    with server.client() as client:
        for name in names:
            client.add_stream(name, str(write_clip(tmp_path / f"{name}.mp4", steady(FEW_SECONDS, 4))))
        client.add_stream("poison", str(poison))
        ended = wait_for_end(client, "poison", *names)
    assert {name: ended[name]["state"] for name in ("poison", *names)} == {
        **dict.fromkeys(names, "done"),
        "poison": "failed",
    }
    assert "set aside after 3 restarts" in ended["poison"]["detail"]
    why = "its decoder ended while it had the stream in hand: by a crash (Segmentation fault)"
    assert why in ended["poison"]["detail"]
    log = server.home.log.read_text()
    lost = [log.count(f"stream {name}: its session is lost") for name in ("poison", *names)]
    assert lost == [3, 1, 1, 1], "they had the same decoder, once"
    with server.store() as store:
        for name in names:
            assert spans(store, name) == [(float(k), k + 4.0) for k in range(0, FEW_SECONDS, 4)]
            assert store.stream(name).num_source_frames == FEW_SECONDS
        assert [p for p in store.verify() if p.kind != "extra"] == []
