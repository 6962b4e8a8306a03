"""Damaged videos of every kind at once through a real Ray: none takes an actor or a neighbour with it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from damage import CORPUS, Damaged
from live import SAMPLE_FPS, LiveServer, wait_for_end

from pipeline.client import Client, ServerError

pytestmark = pytest.mark.ray

ONE_OF_EACH = {one.kind: one for one in CORPUS}
LONG = ("ten-hours", "clock-far-mp4", "durations-huge", "timescale-zero", "timescale-one", "timescale-all")
"""Thousands of frames: they go on beside the others and are taken away in the middle."""
ACTORS = ("DecodeEncode", "Prefill", "StoreActor", "SupervisorFront")


@pytest.fixture
def client(server: LiveServer) -> Iterator[Client]:
    """Takes away all streams that a test leaves."""
    with server.client() as client:
        before = {stream["id"] for stream in client.streams()}
        yield client
        for stream in client.streams():
            if stream["id"] not in before:
                client.remove_stream(stream["id"])


def kept(server: LiveServer, stream_id: str) -> list[tuple[object, ...]]:
    """All that is stored of a stream but its writer's epoch, bit by bit."""
    with server.store() as store:
        memory = store.reader(stream_id).refresh()
        numbers = np.array([segment.segment_no for segment in memory.segments])
        tables = [memory.table(layer, numbers) for layer in range(memory.geometry.num_layers)]
        blocks = [memory.gather(layer, t.segment_nos, t.slots) for layer, t in enumerate(tables)]
    return [
        (b.frame_ids, b.spans_s, b.keys_bNGd.numpy().tobytes(), b.values_bNGd.numpy().tobytes())
        for b in blocks
    ]


def register(client: Client, folder: Path, one: Damaged) -> str:
    """What the server said when it refused the stream; empty: it took it."""
    path = folder / one.name
    path.write_bytes(one.make())
    try:
        client.add_stream(one.kind, str(path))
    except ServerError as exc:
        if exc.kind != "SourceError":
            raise
        return str(exc)
    return ""


def test_every_kind_of_damage_ends_alone_and_keeps_what_decodes(
    server: LiveServer, client: Client, films: Path, tmp_path: Path
) -> None:
    client.add_stream("healthy", str(films / "short.mp4"))
    wait_for_end(client, "healthy")
    alone = kept(server, "healthy")
    client.remove_stream("healthy")
    pids = {name: [p.pid for p in server.processes(f"ray::{name}")] for name in ACTORS}

    with ThreadPoolExecutor(8) as together:
        refusals = together.map(lambda one: (one.kind, register(client, tmp_path, one)), ONE_OF_EACH.values())
        client.add_stream("healthy", str(films / "short.mp4"))
        refused = {kind: why for kind, why in refusals if why}

    taken = sorted(set(ONE_OF_EACH) - set(refused) - set(LONG))
    assert len(ONE_OF_EACH) >= 30
    assert {"empty", "text", "sound", "noise"} <= set(refused)
    assert {"flip_bits", "splice", "resized", "rotation", "clock-restarts"} <= set(taken)
    streams = wait_for_end(client, "healthy", *taken)
    assert kept(server, "healthy") == alone
    for kind, stream in streams.items():
        assert stream["restarts"] == 0, kind
        assert stream["state"] == "done" or stream["detail"], kind
        assert (stream["source_frames"] > 0) == (stream["segments"] > 0), kind
        assert stream["source_frames"] / SAMPLE_FPS <= stream["as_of_s"] + 1e-6, kind
    with server.store() as store:
        assert [p for p in store.verify() if p.kind != "extra"] == []
    still_on = {kind: client.stream(kind) for kind in LONG}
    assert {(s["state"], s["restarts"]) for s in still_on.values()} <= {("ingesting", 0), ("done", 0)}
    assert still_on["ten-hours"]["state"] == "ingesting"
    assert {name: [p.pid for p in server.processes(f"ray::{name}")] for name in ACTORS} == pids
