"""Errors as HTTP: one form for all, a clear status for each, Retry-After where trying again may help."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from actors.failures import NotReadyError, WorkerLostError
from streamkv.errors import (
    CapacityError,
    CorruptSegmentError,
    ModelError,
    ObjectStoreError,
    SegmentGoneError,
    SourceError,
    SourceGoneError,
    StoreError,
    StoreFullError,
    StreamExistsError,
    StreamIdError,
    StreamKVError,
    UnknownStreamError,
    UnknownWatchError,
)

RETRY_AFTER_S = 2
UNEXPECTED = "something went wrong here; the server's log says what"
"""Of what is none of our errors: its own words might tell too much."""


class OverloadedError(RuntimeError):
    """All places in the queue are taken."""


class DeadlineError(RuntimeError):
    """The answer was not ready in time."""


STATUS: dict[type[Exception], int] = {
    UnknownStreamError: 404,
    UnknownWatchError: 404,
    StreamExistsError: 409,
    StreamIdError: 422,
    SourceError: 422,
    SourceGoneError: 410,
    CorruptSegmentError: 500,  # ours, not the asker's
    ModelError: 500,
    SegmentGoneError: 503,  # asked again, it is answered from what is left
    StoreFullError: 503,
    CapacityError: 503,  # streams end, and pools grow
    ObjectStoreError: 503,
    StoreError: 409,  # nothing committed yet, another model's store, a legal hold, or too many watches
    StreamKVError: 422,  # a question, a watch or a setting
    OverloadedError: 429,
    NotReadyError: 503,
    WorkerLostError: 503,
    DeadlineError: 504,
}
"""The first that fits along an error's own line of classes."""


def status_of(exc: Exception) -> int:
    """The nearest class's status; 500 for what is none of ours."""
    return next((STATUS[kind] for kind in type(exc).__mro__ if kind in STATUS), 500)


def response(status: int, body: dict[str, Any]) -> JSONResponse:
    """With Retry-After where trying again may help."""
    headers = {"Retry-After": str(RETRY_AFTER_S)} if status in (429, 503) else None
    return JSONResponse(body, status, headers)


def error_response(status: int, kind: str, message: str) -> JSONResponse:
    return response(status, {"error": {"type": kind, "message": message}})


def response_to(exc: Exception) -> JSONResponse:
    """To one of our errors."""
    return error_response(status_of(exc), type(exc).__name__, str(exc))


def problems_of(exc: RequestValidationError) -> list[str]:
    """`where: what` of each."""
    return [f"{'.'.join(str(p) for p in e['loc'])}: {e['msg']}" for e in exc.errors()]


def install(app: FastAPI) -> None:
    """Gives every error of the application the one form."""

    async def ours(request: Request, exc: Exception) -> JSONResponse:
        return response_to(exc)

    async def invalid(request: Request, exc: Exception) -> JSONResponse:
        assert isinstance(exc, RequestValidationError)
        return error_response(422, "RequestError", "; ".join(problems_of(exc)))

    async def http(request: Request, exc: Exception) -> JSONResponse:
        assert isinstance(exc, HTTPException)
        return error_response(exc.status_code, "RequestError", str(exc.detail))

    async def unexpected(request: Request, exc: Exception) -> JSONResponse:
        return error_response(500, "InternalError", UNEXPECTED)

    for kind in STATUS:
        app.add_exception_handler(kind, ours)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, unexpected)
