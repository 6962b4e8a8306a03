"""The control plane loads nothing that it does not use: its processes start and restart seconds sooner."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

from stage import IDENTITY
from tiny import random_segment_kv

from streamkv.config import RetentionConfig, StoreConfig
from streamkv.store import SegmentStore, write_segment
from streamkv.types import Evidence
from streamkv.watches import Watch, WatchAnswer

HEAVY = ("torch", "transformers", "faiss")
WITHOUT = f"""
import pickle, sys

def check(when):
    assert not (loaded := {{*{HEAVY}}} & set(sys.modules)), f"{{when}}: {{loaded}}"
"""
WORKERS = f"""{WITHOUT}
import ray
import actors.front, actors.handles, actors.parts, actors.supervisor
from actors.decode_encode import DecodeEncode
from actors.prefill import Prefill
from actors.store_actor import StoreActor

for cls in (DecodeEncode, Prefill, StoreActor):
    ray.remote(cls)
check("making actors")
"""
ROUTES = f"""{WITHOUT}
import pipeline.api, pipeline.app, pipeline.server, pipeline.deployment
check("routes")
assert "av" not in sys.modules
"""
KEEPING = f"""{WITHOUT}
from actors.store_actor import StoreActor

config, identity, watch, place, answers = pickle.load(sys.stdin.buffer)
actor = StoreActor(config, identity)
actor.start()
actor.add_watch(watch, 100)
beginning = actor.begin_session("cam")
assert (beginning.record.epoch, len(beginning.watches)) == (place.epoch, 1), beginning
assert actor.commit(place, answers)
assert len(actor.watch_events([(watch.id, -1)], 100)[0]) == 1
assert actor.streams()[0].num_segments == 1
actor.set_state("cam", "done", "")
actor.add_stream("other", "file:other.mp4", {{}})
check("commits")
assert actor._store().retain()["cam"].num_segments == 1
check("retention")
actor.shutdown()
"""


def run(code: str, given: object = None) -> None:
    done = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(given), capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


def test_the_supervisor_makes_its_workers_without_torch() -> None:
    run(WORKERS)


def test_the_store_keeps_streams_without_torch(tmp_path: Path) -> None:
    """One that another process has written, and watches and retention: all that goes on while nothing is aged."""
    with SegmentStore.open(tmp_path, identity=IDENTITY) as store:
        store.add_stream("cam", "file:cam.mp4")
        epoch = store.begin_writing("cam") + 1  # of the session that the actor will begin
    place = write_segment(tmp_path, IDENTITY, "cam", epoch, random_segment_kv(IDENTITY.geometry, 0), "int4")
    answer = WatchAnswer("w", "red", 0.9, (Evidence(0, place.start_s, place.end_s, 1.0, 2),))
    config = StoreConfig(root=str(tmp_path), upkeep_s=0, retention=RetentionConfig(max_age_s=1e-3))
    run(KEEPING, (config, IDENTITY, Watch("w", "cam", "what colour?"), place, (answer,)))


def test_the_routes_load_nothing_that_answers() -> None:
    """Api only waits."""
    run(ROUTES)
