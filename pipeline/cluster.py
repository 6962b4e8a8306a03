"""A Ray of our own on this machine, or a connection to one that runs. Ends exactly what it began.

Never `ray stop`: it ends every Ray of the machine.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from actors.roles import NAMESPACE, ROLES
from streamkv.config import PipelineConfig

log = logging.getLogger("streamkv.server")

OBJECT_STORE_BYTES = 256 * 1024 * 1024
"""Segments' features in flight; keys and values never pass through it."""
TOO_SLOW = "timed out during startup"
"""What Ray says of a node that a busy machine starts too slowly."""
PLENTY = 1_000
"""Of each role's resource, on a machine that plays all roles."""

PROXY_ENVIRONMENT = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "pipeline.proxy.middlewares"}
"""Has every proxy of a Ray that starts with it see to it that replies are whole."""


def cpus_needed(config: PipelineConfig) -> float:
    """What all actors ask for: a small machine then runs them side by side, only slower."""
    pools = sum(pool.most_actors * pool.cpus for pool in (config.encode, config.prefill))
    return pools + config.serve.most_replicas * config.serve.cpus + 1


@contextmanager
def local_ray(config: PipelineConfig, temp: Path) -> Iterator[None]:
    """A new Ray that only this machine reaches, with a token that only its processes know."""
    # Before ray is imported: it reads these once. A token, because an open port on loopback runs anybody's
    # code.
    os.environ.update(
        RAY_AUTH_MODE="token",
        RAY_AUTH_TOKEN=secrets.token_hex(32),
        RAY_USAGE_STATS_ENABLED="0",
        RAY_worker_niceness="0",  # Ray's own is 15, so that anything else on the machine would come first
        RAY_task_events_report_interval_ms="0",  # a history of calls that only a dashboard shows, and there is none
        RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S="30",  # of 5 s, three too few on a busy machine have a proxy killed
    )
    os.environ.update(haproxy_environment(temp) if config.serve.proxy == "haproxy" else PROXY_ENVIRONMENT)
    import ray

    try:
        try:
            _start(config, temp)
        except Exception as exc:  # Ray has no class for it
            if TOO_SLOW not in str(exc):
                raise
            log.warning("Ray did not start within its 30 s; once more")
            ray.shutdown()
            _start(config, temp)
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(temp, ignore_errors=True)


def _start(config: PipelineConfig, temp: Path) -> None:
    import ray

    ray.init(
        address="local",
        namespace=NAMESPACE,
        num_cpus=max(os.cpu_count() or 1, round(cpus_needed(config) + 0.5)),
        resources=dict.fromkeys(ROLES, PLENTY),
        object_store_memory=OBJECT_STORE_BYTES,
        include_dashboard=False,
        log_to_driver=True,
        logging_level=logging.WARNING,
        _node_ip_address="127.0.0.1",
        _temp_dir=str(temp),
    )


def haproxy_environment(temp: Path) -> dict[str, str]:
    """Makes Serve put HAProxy before its replicas, apart from any other one of this machine."""
    folder = temp / "haproxy"
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def joined_ray(address: str) -> Iterator[None]:
    """A connection to a Ray that runs already; it is left running."""
    import ray

    ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.WARNING)
    try:
        yield
    finally:
        ray.shutdown()


NeedRay = Callable[[], None]
"""Called before Ray is used; starts it, or joins it, unless that is done."""


@contextmanager
def when_needed(begin: Callable[[], AbstractContextManager[None]]) -> Iterator[NeedRay]:
    """For who may find that there is nothing to do: a Ray takes ten seconds to start."""
    with ExitStack() as stack:
        is_up = False

        def need() -> None:
            nonlocal is_up
            if not is_up:
                stack.enter_context(begin())
                is_up = True

        yield need


def make_temp() -> Path:
    """A folder for Ray's sockets, whose paths must stay below 107 characters."""
    base = tempfile.gettempdir()
    return Path(tempfile.mkdtemp(prefix="skv-", dir=base if len(base) < 30 else "/tmp"))
