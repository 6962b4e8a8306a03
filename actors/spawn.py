"""The one place that makes Ray actors: what each costs, where it may run, and what happens when it dies.

| actor        | on nodes with | when it dies                                                  |
| ---          | ---           | ---                                                           |
| Supervisor   | anything      | detached; Ray starts it again, and it resumes every stream    |
| DecodeEncode | decode_encode | Ray starts it again, the supervisor resumes its streams there |
| Prefill      | prefill       | the same; windows are rebuilt from the store                  |
| StoreActor   | prefill       | Ray starts it again; it holds nothing but the open catalog    |

All are detached and have names: while the supervisor is away its workers go on, and the next one finds them, with their
models loaded. It takes new epochs, so that whoever it does not find commits nothing any more.

Importing this is cheap; the classes are imported where they are made actors of.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.failures import WorkerLostError
from actors.front import SupervisorFront
from actors.in_hand import LastWords, Place, last_words
from actors.remote import wait_for
from actors.roles import (
    DECODE_ENCODE,
    ENCODE_POOL,
    NAMESPACE,
    PREFILL,
    PREFILL_POOL,
    ROLE_SHARE,
    STORE,
    SUPERVISOR,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from actors.decode_encode import DecodeParts
    from actors.handles import (
        CommitThroughStore,
        DecodeHandle,
        HearOpenThroughStore,
        PrefillHandle,
        RaySink,
        StoreHandle,
    )
    from actors.prefill import PrefillParts
    from streamkv.config import PipelineConfig, PoolConfig
    from streamkv.store import ModelIdentity

FOREVER = -1
EVIDENCE_S = 2.0
"""How long another node is asked what a worker had in hand that ended there."""
CONTROL = "control"
"""The concurrency group that answers beside the work."""


def find_supervisor() -> Any:
    """The running supervisor's handle; ValueError when there is none."""
    return ray.get_actor(SUPERVISOR, namespace=NAMESPACE)


def ensure_supervisor(config: PipelineConfig) -> Any:
    """The cluster's supervisor; started if there is none. Whoever comes second gets the first one's.

    The caller must live until it has answered once: Ray may lose one whose maker leaves (#24890).
    """
    options = {"num_cpus": 0, "max_task_retries": 0, "max_concurrency": 16, **_known_as(SUPERVISOR)}
    return ray.remote(**options)(SupervisorFront).remote(config)


def end_workers() -> None:
    """Ends all workers for good, after their supervisor."""
    for name in [STORE, *worker_names(ENCODE_POOL), *worker_names(PREFILL_POOL)]:
        with suppress(ValueError):  # it is not there
            ray.kill(ray.get_actor(name, namespace=NAMESPACE), no_restart=True)


def worker_names(pool: str) -> list[str]:
    """Of a pool's actors that are there."""
    named = ray.util.list_named_actors(all_namespaces=True)
    ours = [actor["name"] for actor in named if actor["namespace"] == NAMESPACE]
    return [name for name in ours if name.startswith(f"{pool}-")]


def _known_as(name: str) -> dict[str, Any]:
    """Options of an actor that outlives who makes it; who makes it again gets the one that is there."""
    return {
        "name": name,
        "namespace": NAMESPACE,
        "lifetime": "detached",
        "get_if_exists": True,
        "max_restarts": FOREVER,
    }


class RayWorkers:
    """Makes the supervisor's workers as actors of the cluster, or finds those that are there by their names.

    `load_...` is what each loads when it starts.
    """

    def __init__(
        self,
        config: PipelineConfig,
        load_decode: Callable[[PipelineConfig], DecodeParts] | None = None,
        load_prefill: Callable[[PipelineConfig], PrefillParts] | None = None,
    ) -> None:
        from actors.parts import load_decode_parts, load_prefill_parts

        self._config = config
        self._load_decode = load_decode or load_decode_parts
        self._load_prefill = load_prefill or load_prefill_parts

    def found(self, pool: str) -> list[str]:
        return worker_names(pool)

    def last_words(self, place: Place) -> LastWords:
        return last_words(place) if place.is_here else _read_elsewhere(place)

    def decoder(self, name: str) -> DecodeHandle:
        from actors.decode_encode import DecodeEncode
        from actors.handles import DecodeHandle

        config = self._config
        actor = _worker(DecodeEncode, name, config.encode, DECODE_ENCODE, control_threads=4)
        load = partial(self._load_decode, config)
        return DecodeHandle(
            actor.remote(load, config.source, in_flight=config.prefill.in_flight, hears_crashes=True)
        )

    def prefiller(self, name: str) -> PrefillHandle:
        from actors.handles import PrefillHandle
        from actors.prefill import Prefill

        actor = _worker(Prefill, name, self._config.prefill, PREFILL, control_threads=1)
        return PrefillHandle(actor.remote(partial(self._load_prefill, self._config), hears_crashes=True))

    def store(self, identity: ModelIdentity) -> StoreHandle:
        from actors.handles import StoreHandle
        from actors.store_actor import StoreActor

        options = {"num_cpus": 0, "resources": {PREFILL: ROLE_SHARE}, **_known_as(STORE)}
        actor = ray.remote(max_concurrency=8, **options)(StoreActor)
        return StoreHandle(actor.remote(self._config.store, identity, self._config.watch))

    def sink(self, prefill: PrefillHandle, store: StoreHandle) -> RaySink:
        from actors.handles import RaySink

        return RaySink(prefill, store)

    def commit(self, store: StoreHandle) -> CommitThroughStore:
        from actors.handles import CommitThroughStore

        return CommitThroughStore(store)

    def hear_open(self, store: StoreHandle) -> HearOpenThroughStore:
        from actors.handles import HearOpenThroughStore

        return HearOpenThroughStore(store)


def _read_elsewhere(place: Place) -> LastWords:
    """By a task on the page's node, which may be lost as well."""
    nodes = [n["NodeID"] for n in ray.nodes() if n["Alive"] and n["NodeManagerHostname"] == place.host]
    if not nodes:
        return LastWords()
    there = NodeAffinitySchedulingStrategy(nodes[0], soft=False)
    task = ray.remote(num_cpus=0, scheduling_strategy=there, max_retries=0)(last_words)
    with suppress(WorkerLostError):
        found: LastWords = wait_for(task.remote(place), EVIDENCE_S)
        return found
    return LastWords()


def _worker(cls: type, name: str, pool: PoolConfig, role: str, *, control_threads: int) -> Any:
    """Work is done one call at a time; `control` answers beside it."""
    return ray.remote(
        num_cpus=pool.cpus,
        num_gpus=pool.gpus,
        resources={role: ROLE_SHARE},
        max_task_retries=0,  # a segment that may have been ingested is not sent again: the stream resumes
        concurrency_groups={CONTROL: control_threads},
        scheduling_strategy="SPREAD",  # over the nodes of that role, so that a lost one takes few with it
        **_known_as(name),
    )(cls)
