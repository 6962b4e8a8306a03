"""The Serve application: `build_app` is its one builder, here and in a cluster's Serve config.

Api (FastAPI, stateless) -> by stream -> Answer (model, engine, warm streams)      both read the same
store
    |-> the detached supervisor, which Api starts if there is none                 which ingest writes
"""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import ray
from pydantic import BaseModel, ConfigDict
from ray import serve
from ray.exceptions import RayActorError, RayError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from actors.failures import WorkerLostError
from actors.remote import plain_error
from actors.roles import ANSWER, ROLE_SHARE
from actors.spawn import ensure_supervisor, find_supervisor
from actors.views import PlaneState, StreamView
from pipeline import schemas
from pipeline.http_errors import DeadlineError, OverloadedError
from pipeline.settings import load_settings
from streamkv.config import PipelineConfig, ServeConfig

if TYPE_CHECKING:
    from fastapi import FastAPI
    from ray.serve import Application
    from ray.serve.handle import DeploymentHandle

APP_NAME = "streamkv"
ANSWER_TRIES = 3
"""Replicas that are asked for one answer before the asker hears that there is none."""
RETRY_PAUSE_S = 0.2
CONTROL_S = 60.0
"""Adding a stream opens its source, removing one waits for the segment at hand."""


class AppArgs(BaseModel):
    """Arguments of the application in a Serve config."""

    model_config = ConfigDict(extra="forbid")

    config: str = "local"
    """A shipped configuration's name, or a path that every node can read."""
    overrides: list[str] = []
    """`a.b=c`, over the configuration."""


def build_app(args: AppArgs) -> Application:
    """The whole application from a configuration."""
    config = load_settings(args.config, args.overrides)
    return Api.options(**api_options(config.serve)).bind(  # type: ignore[attr-defined]
        config,
        Answer.options(**answer_options(config.serve)).bind(config),  # type: ignore[attr-defined]
    )


def api_options(config: ServeConfig) -> dict[str, Any]:
    """It only waits: many requests at once, little CPU."""
    return {
        "num_replicas": 1,
        "max_ongoing_requests": 4 * config.max_queued,
        "max_queued_requests": 4 * config.max_queued,
        "health_check_period_s": 10,
        "health_check_timeout_s": 30,
        "graceful_shutdown_timeout_s": config.timeout_s,
        "ray_actor_options": {"num_cpus": 0.1, "resources": {ANSWER: ROLE_SHARE}},
    }


def answer_options(config: ServeConfig) -> dict[str, Any]:
    """One question is worked on, one waits beside it; the queue behind is bounded."""
    return {
        "num_replicas": config.replicas,
        "max_ongoing_requests": 2,
        "max_queued_requests": config.max_queued,
        "health_check_period_s": 10,
        "health_check_timeout_s": 30,
        "graceful_shutdown_timeout_s": config.timeout_s,
        "ray_actor_options": {
            "num_cpus": config.cpus,
            "num_gpus": config.gpus,
            "resources": {ANSWER: ROLE_SHARE},
        },
        **stream_affinity(),
    }


def stream_affinity() -> dict[str, Any]:
    """Sends a stream's questions to the replica that has it warm, where Ray can (experimental there).

    A hint only: any replica answers for any stream.
    """
    try:
        from ray.serve.config import RequestRouterConfig
        from ray.serve.experimental.consistent_hash_router import ConsistentHashRouter
    except ImportError:
        return {}
    return {"request_router_config": RequestRouterConfig(request_router_class=ConsistentHashRouter)}


@serve.deployment
class Answer:
    """A replica that answers. The model loads before it counts as ready."""

    def __init__(self, config: PipelineConfig) -> None:
        from pipeline.answering import Answerer  # brings torch, which only this process needs

        self._answerer = Answerer(config)
        self._thread = ThreadPoolExecutor(1, "answer")

    def check_health(self) -> None:
        self._answerer.check_health()

    async def answer(self, stream_id: str, question: str, max_new_tokens: int | None) -> schemas.Answer:
        """See `Answerer.answer`. Ends early when the asker has gone."""
        cancelled = threading.Event()
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(
                self._thread, self._answerer.answer, stream_id, question, max_new_tokens, cancelled
            )
        except asyncio.CancelledError:
            cancelled.set()
            raise


@serve.deployment
@serve.ingress()
class Api:
    """The ingress."""

    def __init__(self, config: PipelineConfig, answer: DeploymentHandle) -> None:
        ensure_supervisor(config)
        self._backend = ServeBackend(config, answer)

    def __serve_build_asgi_app__(self) -> FastAPI:
        from pipeline.api import make_api

        return make_api(self._backend)


class ServeBackend:
    """What the routes call: the supervisor for streams, an `Answer` replica for questions."""

    def __init__(self, config: PipelineConfig, answer: DeploymentHandle) -> None:
        self._config = config
        self._answer = answer

    async def state(self) -> PlaneState:
        try:
            state: PlaneState = await self._supervise("state")
        except WorkerLostError as exc:
            return PlaneState("starting", str(exc))
        return state

    async def streams(self) -> list[StreamView]:
        views: list[StreamView] = await self._supervise("streams")
        return views

    async def stream(self, stream_id: str) -> StreamView:
        view: StreamView = await self._supervise("stream", stream_id)
        return view

    async def add_stream(self, stream_id: str, uri: str) -> StreamView:
        view: StreamView = await self._supervise("add_stream", stream_id, uri)
        return view

    async def remove_stream(self, stream_id: str) -> None:
        await self._supervise("remove_stream", stream_id)

    async def stats(self) -> dict[str, float]:
        stats: dict[str, float] = await self._supervise("stats")
        return stats

    async def ask(self, stream_id: str, question: str, max_new_tokens: int | None) -> schemas.Answer:
        """Asks the stream's replica; another one when it dies, as long as there is time."""
        deadline = time.monotonic() + self._config.serve.timeout_s
        for attempt in range(1, ANSWER_TRIES + 1):
            try:
                return await self._ask_once(stream_id, question, max_new_tokens, deadline - time.monotonic())
            except (RayActorError, DeploymentUnavailableError) as exc:
                if attempt == ANSWER_TRIES:
                    raise WorkerLostError("no replica could finish the answer; ask again") from exc
                await asyncio.sleep(RETRY_PAUSE_S * attempt)
        raise AssertionError("unreachable")

    async def _ask_once(
        self, stream_id: str, question: str, max_new_tokens: int | None, rest_s: float
    ) -> schemas.Answer:
        replica = self._answer.options(session_id=stream_id)
        try:
            reply = replica.answer.remote(stream_id, question, max_new_tokens)
            answer: schemas.Answer = await asyncio.wait_for(reply, max(rest_s, 0.001))
        except BackPressureError as exc:
            limit = self._config.serve.max_queued
            raise OverloadedError(f"{limit} questions wait already; ask again a little later") from exc
        except TimeoutError as exc:
            limit_s = self._config.serve.timeout_s
            raise DeadlineError(f"no answer within {limit_s:g} s; ask again or ask for less") from exc
        except (RayActorError, DeploymentUnavailableError):
            raise
        except RayError as exc:
            raise plain_error(exc) from None
        return answer

    async def _supervise(self, method: str, *args: Any) -> Any:
        # Looked up each time: the supervisor may have been started anew, and the look-up is cheap and local.
        try:
            supervisor = await asyncio.to_thread(find_supervisor)
            return await asyncio.wait_for(getattr(supervisor, method).remote(*args), CONTROL_S)
        except ValueError as exc:
            if isinstance(exc, RayError):
                raise plain_error(exc) from None
            raise WorkerLostError("there is no supervisor; it is being started") from exc
        except TimeoutError as exc:
            raise WorkerLostError("the supervisor does not answer in time") from exc
        except ray.exceptions.RayError as exc:
            raise plain_error(exc) from None
