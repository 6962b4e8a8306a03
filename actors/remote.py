"""Calls of Ray actors with our own errors. Imports nothing heavy but Ray."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

from actors.failures import SilentError, WorkerLostError


def plain_error(exc: BaseException) -> BaseException:
    """What was raised in the other process, or that the process is lost."""
    if isinstance(exc, RayTaskError):
        return exc.cause if isinstance(exc.cause, BaseException) else WorkerLostError(str(exc))
    if isinstance(exc, GetTimeoutError):
        return SilentError("no answer in time")
    if isinstance(exc, RayActorError):
        return WorkerLostError("the actor died or is being restarted")
    return WorkerLostError(str(exc))


def wait_for(ref: Any, timeout_s: float) -> Any:
    """The call's result, or its own error."""
    try:
        return ray.get(ref, timeout=timeout_s)
    except RayError as exc:
        raise plain_error(exc) from None


def as_future(ref: Any) -> Future[Any]:
    """The call's outcome, with its own error, for a callback."""
    outcome: Future[Any] = Future()

    def settle(done: Future[Any]) -> None:
        exc = done.exception()
        if exc is None:
            outcome.set_result(done.result())
        else:
            outcome.set_exception(plain_error(exc))

    ref.future().add_done_callback(settle)
    return outcome
