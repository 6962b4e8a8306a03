"""A segment's features on their way to another process, by a real Ray: one reference, and one copy."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.ray

SCRIPT = """
import json, tracemalloc
from pipeline.cluster import local_ray, make_temp
from streamkv.config import PipelineConfig

with local_ray(PipelineConfig(), make_temp()):
    import numpy as np, ray, torch
    from actors.handles import RaySink
    from actors.messages import SegmentMessage, StreamSpec
    from streamkv.types import Segment

    class Receiver:
        def ingest(self, message):
            segment = message.to_segment(torch.device("cpu"))
            at = segment.features_nND.data_ptr()
            maps = [line.split() for line in open("/proc/self/maps")]
            spans = [([int(x, 16) for x in line[0].split("-")], line[5:]) for line in maps]
            (path,) = [" ".join(path) for (begin, end), path in spans if begin <= at < end]
            return {"path": path, "sum": int(segment.features_nND.double().sum())}

    class Prefill:
        actor = ray.remote(num_cpus=0)(Receiver).remote()

    features = torch.ones(64, 196, 896)
    spans = tuple((float(k), k + 1.0) for k in range(64))
    segment = Segment(0, features, spans, (1.0,) * 64, 64, 64.0)
    spec, sink = StreamSpec("s", "uri", epoch=1), RaySink(Prefill, None)
    sink.ship(SegmentMessage.of(spec, segment)).result(60)  # imports and connections are made
    tracemalloc.start()
    message = SegmentMessage.of(spec, segment)
    is_view = np.shares_memory(message.features, features.numpy())
    found = sink.ship(message).result(60)
    heap = tracemalloc.get_traced_memory()[1]
    stored = ray.put(message)
    size = ray.experimental.get_local_object_locations([stored])[stored]["object_size"]
    print("FOUND", json.dumps({"view": is_view, "heap": heap, "bytes": features.nbytes, "size": size, **found}))
"""


def test_features_are_copied_into_shared_memory_and_not_again() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=300, check=False
    )
    assert "FOUND" in ran.stdout, ran.stdout + ran.stderr
    found = json.loads(ran.stdout.rpartition("FOUND")[2])
    assert found["view"], "the message holds the features themselves"
    assert found["heap"] < 0.1 * found["bytes"], "no copy on the sender's heap"
    assert found["bytes"] <= found["size"] < 1.1 * found["bytes"], "one in the object store"
    assert "plasma" in found["path"], "which the receiver reads where it lies"
    assert found["sum"] == found["bytes"] // 4
