"""A thousand streams on a cluster of this machine: placed, balanced, and recovered after a node is lost.

    python -m bench.cluster --streams 1000 --nodes 8 --json

Ray's nodes, the supervisor, its schedulers, the workers, the store and every call between them are real; only
pictures, model and cache are numbers (`bench.fakes`). Each node has a decoder and a prefiller; the head, which is
not lost, has the supervisor. A stream closes a segment every `--segment-s` seconds.
"""

from __future__ import annotations

import argparse
import logging
import os
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from actors.front import SupervisorFront
from actors.roles import DECODE_ENCODE, NAMESPACE, PREFILL
from actors.views import PlaneState, PoolView, StreamView
from bench.fakes import SEGMENT_FRAMES, EndlessFootage, endless_decode_parts, plane_prefill_parts
from bench.machine import Figure, machine, report
from pipeline.cluster import OBJECT_STORE_BYTES, PLENTY
from streamkv.config import PipelineConfig, PoolConfig, StoreConfig
from streamkv.store import SegmentStore

ACTOR_CPUS = 0.1
NODE_CPUS = 1
"""Logical: a node has places for the actors of those that are lost."""
HEAD = "head"
REGISTERED_AT_ONCE = 8
START_S, WAIT_S = 600.0, 900.0
POLL_S = 0.5
EVERY = 1_000_000
HELD_S = 10.0
"""How long the plane runs before and after the loss while its calls are counted."""


class PlaneFront(SupervisorFront):
    """A supervisor whose workers have nothing to decode and no model."""

    def __init__(self, config: PipelineConfig, footage: EndlessFootage) -> None:
        from actors.spawn import RayWorkers
        from actors.supervisor import Supervisor

        workers = RayWorkers(config, partial(endless_decode_parts, footage), plane_prefill_parts)
        self._supervisor = Supervisor(config, workers)

    def memory_bytes(self) -> int:
        return int(psutil.Process().memory_info().rss)


@contextmanager
def simulated_cluster(num_nodes: int, base: Path) -> Iterator[tuple[Any, list[Any]]]:
    """Ray's own cluster for tests: as many real nodes as are asked for, and a head without workers."""
    temp = base / "ray"
    temp.mkdir(parents=True)
    os.environ.update(
        RAY_TMPDIR=str(base),  # it notes its address there, too, and not for every Ray of the machine
        RAY_AUTH_MODE="token",
        RAY_AUTH_TOKEN=secrets.token_hex(32),
        RAY_USAGE_STATS_ENABLED="0",
        RAY_worker_niceness="0",
        OMP_NUM_THREADS="1",
    )
    import ray
    from ray.cluster_utils import Cluster

    shared = {"object_store_memory": OBJECT_STORE_BYTES // 2, "include_dashboard": False}
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            **shared,
            "num_cpus": 1,
            "resources": {HEAD: 1},
            "temp_dir": str(temp),
        },
    )
    try:
        roles = dict.fromkeys((DECODE_ENCODE, PREFILL), PLENTY)
        nodes = []
        for _ in range(num_nodes):
            nodes.append(cluster.add_node(**shared, num_cpus=NODE_CPUS, resources=roles))
            tell(f"node {len(nodes)} is up")
        ray.init(
            address=cluster.address,
            namespace=NAMESPACE,
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
        yield cluster, nodes
    finally:
        ray.shutdown()
        cluster.shutdown()
        shutil.rmtree(temp, ignore_errors=True)


def committed(root: Path) -> dict[str, int]:
    """Segments of each stream."""
    with SegmentStore.open(root, read_only=True) as store:
        return {record.stream_id: record.next_segment_no for record in store.records()}


def committed_files(root: Path) -> set[str]:
    with SegmentStore.open(root, read_only=True) as store:
        names = [record.stream_id for record in store.records()]
        return {place.path for name in names for place in store.segments(name, 0, EVERY)}


def faults(root: Path) -> dict[str, int]:
    """Frames that are missing between a stream's first and last, those that are there twice, and unsound files."""
    lost = doubled = 0
    with SegmentStore.open(root, read_only=True) as store:
        for record in store.records():
            places = store.segments(record.stream_id, 0, EVERY)
            frames = [k for p in places for k in range(round(p.start_s), round(p.end_s))]
            doubled += len(frames) - len(set(frames))
            lost += len(set(range(SEGMENT_FRAMES * len(places))) - set(frames))
        corrupt = sum(problem.kind != "extra" for problem in store.verify())
    return {"lost": lost, "doubled": doubled, "corrupt": corrupt}


class Plane:
    """The supervisor on the head, as its users see it."""

    def __init__(self, config: PipelineConfig, footage: EndlessFootage) -> None:
        import ray

        self._ray = ray
        options = {"num_cpus": 0, "resources": {HEAD: 0.1}, "max_concurrency": 16}
        self._front = ray.remote(**options)(PlaneFront).remote(config, footage)

    def call(self, method: str, *args: Any) -> Any:
        return self._ray.get(getattr(self._front, method).remote(*args), timeout=300)

    def wait_ready(self) -> None:
        def is_ready() -> bool:
            state: PlaneState = self.call("state")
            assert state.phase != "failed", state.detail
            return state.phase == "ready"

        wait_until(is_ready, START_S)

    def register(self, names: Sequence[str]) -> None:
        with ThreadPoolExecutor(REGISTERED_AT_ONCE) as together:
            list(together.map(lambda name: self.call("add_stream", name, f"fake://{name}"), names))

    def balance(self, pool: str) -> list[int]:
        """Streams of each worker that is up, the fewest first."""
        (view,) = [view for view in self.call("pools") if view.name == pool]
        assert isinstance(view, PoolView)
        return sorted(worker.streams for worker in view.workers if worker.state == "up")


def wait_until(condition: Callable[[], bool], timeout_s: float = WAIT_S) -> float:
    """Returns after how many seconds it was true."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > timeout_s:
            raise TimeoutError(f"waited {timeout_s:g} s in vain")
        time.sleep(POLL_S)
    return time.monotonic() - began


def measure(num_streams: int, num_nodes: int, segment_s: float) -> dict[str, tuple[float, str]]:
    """Figures by name, each with its unit."""
    base = Path(tempfile.mkdtemp(prefix="skv-", dir="/tmp"))
    root = base / "store"
    config = PipelineConfig(
        store=StoreConfig(root=str(root)),
        encode=PoolConfig(actors=num_nodes, cpus=ACTOR_CPUS),
        prefill=PoolConfig(actors=num_nodes, cpus=ACTOR_CPUS),
    )
    footage = EndlessFootage(segment_s / SEGMENT_FRAMES)
    names = [f"cam-{i:04d}" for i in range(num_streams)]
    try:
        with simulated_cluster(num_nodes, base) as (cluster, nodes):
            plane = Plane(config, footage)
            plane.wait_ready()
            tell("all workers are up")
            found = _run(plane, root, names, cluster, nodes)
        found |= {f"segments_{name}": (count, "frames") for name, count in faults(root).items()}
        return found
    finally:
        shutil.rmtree(base, ignore_errors=True)


def _run(
    plane: Plane, root: Path, names: Sequence[str], cluster: Any, nodes: Sequence[Any]
) -> dict[str, tuple[float, str]]:
    found: dict[str, tuple[float, str]] = {}
    began = time.monotonic()
    plane.register(names)
    found["register_s"] = (time.monotonic() - began, "s")
    tell(f"registered after {found['register_s'][0]:.1f} s")
    wait_until(lambda: plane.call("stats").get("sessions", 0) >= len(names))
    found["placed_s"] = (time.monotonic() - began, "s")
    wait_until(lambda: min(committed(root).values()) > 0)
    found["committed_s"] = (time.monotonic() - began, "s")
    tell(f"all placed after {found['placed_s'][0]:.1f} s, committed after {found['committed_s'][0]:.1f} s")
    found |= _balance(plane, "before")
    found |= _traffic(plane)
    found |= _memory(plane)

    victim = next(node for node in reversed(nodes) if not _has(node, "StoreActor"))
    files = committed_files(root)
    tell("a node is lost")
    began = time.monotonic()
    cluster.remove_node(victim, allow_graceful=False)
    at_loss = committed(root)
    restarts = partial(_restarts, plane)
    wait_until(lambda: restarts()[0] > 0)
    found["noticed_s"] = (time.monotonic() - began, "s")

    def all_go_on() -> bool:
        now = committed(root)
        return all(now[name] > at_loss[name] for name in names)

    wait_until(all_go_on)
    found["recovered_s"] = (time.monotonic() - began, "s")
    tell(f"every stream has committed again after {found['recovered_s'][0]:.1f} s")
    lost, most = restarts()
    found |= {"streams_lost_their_session": (lost, "streams"), "sessions_lost_at_most": (most, "sessions")}
    found["committed_rows_lost"] = (len(files - committed_files(root)), "segments")
    return found | _balance(plane, "after") | _traffic(plane, "_after")


def _balance(plane: Plane, when: str) -> dict[str, tuple[float, str]]:
    found: dict[str, tuple[float, str]] = {}
    for pool in ("encode", "prefill"):
        loads = plane.balance(pool)
        found[f"{pool}_workers_{when}"] = (len(loads), "actors")
        found[f"{pool}_streams_max_{when}"] = (loads[-1], "streams")
        found[f"{pool}_streams_min_{when}"] = (loads[0], "streams")
    return found


def _traffic(plane: Plane, suffix: str = "") -> dict[str, tuple[float, str]]:
    """Of a few seconds in which nothing happens but ingest."""
    first, began = plane.call("stats"), time.monotonic()
    time.sleep(HELD_S)
    last, seconds = plane.call("stats"), time.monotonic() - began
    change = {name: last[name] - first.get(name, 0.0) for name in last}
    segments = max(change["segments"], 1.0)
    calls = change["segments"] + change["committed_segments"]
    return {
        f"segments_per_s{suffix}": (change["segments"] / seconds, "segments/s"),
        f"rpcs_per_segment{suffix}": (calls / segments, "calls"),
        f"polls_per_s{suffix}": (change["polls"] / seconds, "calls/s"),
        f"shipped_bytes_per_segment{suffix}": (change["shipped_bytes"] / segments, "bytes"),
        f"supervising_share{suffix}": (change["supervise_s"] / seconds, "share"),
        f"supervising_cpu_share{suffix}": (change["supervise_cpu_s"] / seconds, "share"),
    }


def _memory(plane: Plane) -> dict[str, tuple[float, str]]:
    began = time.monotonic()
    plane.call("streams")
    listing_s = time.monotonic() - began
    below = psutil.Process().children(recursive=True)
    return {
        "list_streams_s": (listing_s, "s"),
        "supervisor_mb": (plane.call("memory_bytes") / 1e6, "MB"),
        "all_processes_gb": (sum(_private_bytes(p) for p in below) / 1e9, "GB"),
    }


def _private_bytes(process: Any) -> int:
    try:
        return int(process.memory_full_info().uss)
    except psutil.Error:
        return 0


def _restarts(plane: Plane) -> tuple[int, int]:
    """Streams that lost a session, and how many the unluckiest lost."""
    views: list[StreamView] = plane.call("streams")
    lost = [view.restarts for view in views if view.restarts]
    return len(lost), max(lost, default=0)


def _has(node: Any, actor: str) -> bool:
    """Whether an actor of that class runs on the node."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    return any(actor in " ".join(p.cmdline()) for p in raylet.children(recursive=True))


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.cluster", description=__doc__.partition("\n")[0])
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--segment-s", type=float, default=60.0, help="how often a stream closes a segment")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    about = machine()
    with redirect_stdout(sys.stderr):  # Ray tells of the lost node there
        found = measure(given.streams, given.nodes, given.segment_s)
    figures = [Figure(name, unit, (value,)) for name, (value, unit) in found.items()]
    report(figures, about, as_json=given.json)


if __name__ == "__main__":
    main()
