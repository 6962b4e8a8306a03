"""What a dead actor had in hand is read where it ran, by a real Ray."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.ray

SCRIPT = """
import json
from dataclasses import replace
from pipeline.cluster import local_ray, make_temp
from streamkv.config import PipelineConfig

with local_ray(PipelineConfig(), make_temp()):
    import os, ray
    from actors.in_hand import InHand
    from actors.spawn import RayWorkers

    class Worker:
        def __init__(self):
            self.page = InHand(hears_crashes=True)
            self.mark = self.page.slot().of("gate", 17.0)
            self.other = self.page.slot().of("lobby", 60.0)

        def place(self):
            return self.page.place

        def work(self, then):
            import ctypes, threading
            beside = threading.Thread(target=self.other.__enter__)
            beside.start()
            beside.join()
            with self.mark:
                {"crash": lambda: ctypes.string_at(0), "kill": lambda: os.kill(os.getpid(), 9)}[then]()

    def end_by(what):
        worker = ray.remote(num_cpus=0)(Worker).remote()
        place = ray.get(worker.place.remote())
        try:
            ray.get(worker.work.remote(what))
        except ray.exceptions.RayActorError:
            return place

    crashed, place = end_by("crash"), end_by("kill")
    node = ray.nodes()[0]["NodeManagerHostname"]
    workers = RayWorkers(PipelineConfig())
    import actors.in_hand, actors.spawn
    actors.spawn.EVIDENCE_S = 60  # a machine that is busy starts a task late
    found = [workers.last_words(crashed), workers.last_words(place)]
    actors.in_hand.socket.gethostname = lambda: "another-node"  # so it is read by a task, from there
    found += [workers.last_words(replace(place, host=host)) for host in (node, "a-node-that-is-gone")]
    found.append(workers.last_words(replace(place, host=node, path=place.path + "-that-is-gone")))
    for each in (crashed, place):
        os.unlink(each.path)
    print("FOUND", json.dumps([*((words.in_hand, words.cause) for words in found), place.host == node]))
"""


def test_the_page_of_a_dead_actor_is_read_on_its_node() -> None:
    ended = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=240)
    assert ended.returncode == 0, ended.stderr
    both, nothing = {"gate": [17.0], "lobby": [60.0]}, [{}, ""]
    (found,) = (
        line.removeprefix("FOUND ") for line in ended.stdout.splitlines() if line.startswith("FOUND ")
    )
    assert json.loads(found) == [
        [{"gate": [17.0]}, "a crash (Segmentation fault)"],
        [both, ""],
        [both, ""],
        nothing,
        nothing,
        True,
    ]
