"""The two planes on a Ray that is connected: the detached supervisor, and the Serve application."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError

from actors.spawn import ensure_supervisor, find_supervisor
from actors.views import PlaneState
from pipeline.app import APP_NAME, AppArgs, build_app
from streamkv.config import PipelineConfig
from streamkv.errors import ConfigError

PLANE_START_S = 900.0
POLL_S = 0.2
STOP_S = 20.0

Tell = Callable[[str], None]


class Deployment:
    """Starts the planes side by side, and takes down what it started."""

    def __init__(self, config: PipelineConfig, config_name: str, overrides: Sequence[str]) -> None:
        self._config = config
        self._app = serve_config(config, config_name, overrides)

    def start(self, tell: Tell) -> None:
        """Returns when streams and questions are taken.

        Raises:
            ConfigError: the ingest plane does not start; the message is its own.
        """
        ensure_supervisor(self._config)  # loads its models while Serve starts
        application = self._app["applications"][0]
        try:
            serve.start(
                proxy_location=self._app["proxy_location"],
                http_options=self._app["http_options"],
                logging_config={"enable_access_log": False, "log_level": "WARNING"},
            )
            tell("starting the answers' replicas")
            built = build_app(AppArgs(**application["args"]))
            serve.run(built, name=application["name"], route_prefix=application["route_prefix"])
        except Exception:
            self._check(ray.get(find_supervisor().state.remote(), timeout=STOP_S))
            raise
        tell("waiting for the ingest plane")
        self._wait_for_plane()

    def stop(self, *, is_our_ray: bool) -> None:
        """Ends ingest after the segments at hand, then the application."""
        with suppress(ValueError, RayError):
            supervisor = find_supervisor()
            with suppress(RayError):
                ray.get(supervisor.shutdown.remote(), timeout=STOP_S)
            ray.kill(supervisor, no_restart=True)
        with suppress(Exception):  # whatever Serve thinks of it: what it runs on goes next
            if is_our_ray:
                serve.shutdown()
            else:
                serve.delete(APP_NAME)

    def _wait_for_plane(self) -> None:
        end = time.monotonic() + PLANE_START_S
        while time.monotonic() < end:
            state: PlaneState = ray.get(find_supervisor().state.remote(), timeout=STOP_S)
            self._check(state)
            if state.phase == "ready":
                return
            time.sleep(POLL_S)
        raise ConfigError(f"the ingest plane was not ready within {PLANE_START_S:g} s; its log says more")

    def _check(self, state: PlaneState) -> None:
        if state.phase == "failed":
            raise ConfigError(state.detail)


def serve_config(config: PipelineConfig, config_name: str, overrides: Sequence[str]) -> dict[str, Any]:
    """The Serve config of the application, in Ray's schema; the cluster's manifest holds the same."""
    return {
        "proxy_location": "HeadOnly" if config.serve.host == "127.0.0.1" else "EveryNode",
        "http_options": {"host": config.serve.host, "port": config.serve.port},
        "applications": [
            {
                "name": APP_NAME,
                "route_prefix": "/",
                "import_path": "pipeline.app:build_app",
                "args": {"config": config_name, "overrides": list(overrides)},
            }
        ],
    }


logging.getLogger("ray.serve").setLevel(logging.WARNING)
