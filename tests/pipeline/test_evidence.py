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
        def work(self):
            self.page = InHand()
            self.slot = self.page.slot()
            self.mark = self.slot.of("gate", 17.0)
            self.mark.__enter__()
            return self.page.place, os.getpid()

    worker = ray.remote(num_cpus=0)(Worker).remote()
    place, pid = ray.get(worker.work.remote())
    ray.kill(worker)
    node = ray.nodes()[0]["NodeManagerHostname"]
    workers = RayWorkers(PipelineConfig())
    import actors.in_hand
    found = [workers.in_hand(place)]
    actors.in_hand.socket.gethostname = lambda: "another-node"  # so it is read by a task, from there
    found += [workers.in_hand(replace(place, host=host)) for host in (node, "a-node-that-is-gone")]
    found.append(workers.in_hand(replace(place, host=node, path=place.path + "-that-is-gone")))
    InHand.remove(type("Page", (), {"place": place}))
    print(json.dumps([*found, place.host == node]))
"""


def test_the_page_of_a_dead_actor_is_read_on_its_node() -> None:
    ended = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=240)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout.splitlines()[-1]) == [{"gate": [17.0]}, {"gate": [17.0]}, {}, {}, True]
