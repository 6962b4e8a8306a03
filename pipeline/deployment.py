"""The two planes on a Ray that is connected: the detached supervisor, and the Serve application."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import httpx
import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.schema import ApplicationStatus

from actors.spawn import end_workers, ensure_supervisor, find_supervisor
from actors.views import PlaneState
from pipeline.app import APP_NAME, AppArgs, build_app
from streamkv.config import PipelineConfig

START_S = 900.0
POLL_S = 0.2
STOP_S, CALL_S = 20.0, 120.0

QUIET = {"enable_access_log": False, "log_level": "WARNING"}
FAILED = (ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY)

Tell = Callable[[str], None]


class DeployError(Exception):
    """One of the planes does not start."""


class Deployment:
    """Starts the planes side by side, and takes down what it started."""

    def __init__(self, config: PipelineConfig, config_name: str, overrides: Sequence[str]) -> None:
        self._config = config
        self._app = serve_config(config, config_name, overrides)

    def start(self, tell: Tell, url: str) -> None:
        """Returns when streams and questions are taken at `url`.

        Raises:
            DeployError: one of the planes does not start; the message is its own.
        """
        ensure_supervisor(self._config)  # loads its models while Serve starts
        application = self._app["applications"][0]
        serve.start(
            proxy_location=self._app["proxy_location"],
            http_options=self._app["http_options"],
            logging_config=QUIET,
        )
        built = build_app(AppArgs(**application["args"]))
        target = serve.RunTarget(built, application["name"], application["route_prefix"], QUIET)
        # Serve's own wait would try a replica that cannot start again and again before it says why.
        serve.run_many(
            [target], wait_for_ingress_deployment_creation=False, wait_for_applications_running=False
        )
        tell("starting ingest and answers")
        self._wait(url)

    def stop(self, *, is_our_ray: bool) -> None:
        """Ends ingest after the segments at hand, then the application."""
        with suppress(ValueError, RayError):
            supervisor = find_supervisor()
            with suppress(RayError):
                ray.get(supervisor.shutdown.remote(), timeout=STOP_S)
            ray.kill(supervisor, no_restart=True)
        with suppress(RayError):
            end_workers()
        with suppress(Exception):  # whatever Serve thinks of it: what it runs on goes next
            if is_our_ray:
                serve.shutdown()
            else:
                serve.delete(APP_NAME)

    def _wait(self, url: str) -> None:
        end = time.monotonic() + START_S
        while time.monotonic() < end:
            state: PlaneState = ray.get(find_supervisor().state.remote(), timeout=CALL_S)
            if state.phase == "failed":
                raise DeployError(state.detail)
            application = serve.status().applications.get(APP_NAME)
            if application is not None and application.status in FAILED:
                raise DeployError(f"the answering plane: {application.message}")
            if _is_healthy(url):
                return
            time.sleep(POLL_S)
        raise DeployError(f"not ready within {START_S:g} s; the log says more")


def _is_healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz", timeout=STOP_S).is_success
    except httpx.TransportError:
        return False


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


for chatty in ("ray.serve", "httpx"):
    logging.getLogger(chatty).setLevel(logging.WARNING)
