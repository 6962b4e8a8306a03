"""Every error of these routes in OpenAI's form."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from pipeline.http_errors import OverloadedError, problems_of, response, status_of

log = logging.getLogger("streamkv.openai")


class RefusedError(Exception):
    """A request that cannot be served as it is."""

    def __init__(self, message: str, *, param: str | None = None, code: str = "invalid_value") -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class OpenAIRoute(APIRoute):
    """Gives every error OpenAI's form."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            try:
                return await handler(request)
            except Exception as exc:
                return response_to(exc)

        return handle


def error_body(
    message: str, kind: str, *, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """`{"error": ...}` as OpenAI's clients read it."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def response_to(exc: Exception) -> JSONResponse:
    """That tells of it."""
    return response(*status_and_body(exc))


def status_and_body(exc: Exception) -> tuple[int, dict[str, Any]]:
    """The status and the body that tell of it."""
    if isinstance(exc, RefusedError):
        return 400, error_body(str(exc), "invalid_request_error", param=exc.param, code=exc.code)
    if isinstance(exc, RequestValidationError):
        param = next((str(e["loc"][1]) for e in exc.errors() if len(e["loc"]) > 1), None)
        message = "; ".join(problems_of(exc)).replace("body.", "")
        return 400, error_body(message, "invalid_request_error", param=param, code="invalid_value")
    if isinstance(exc, HTTPException):
        return exc.status_code, error_body(str(exc.detail), "invalid_request_error")
    if isinstance(exc, OverloadedError):
        return 429, error_body(str(exc), "rate_limit_error", code="rate_limit_exceeded")
    status, name = status_of(exc), type(exc).__name__
    if status == 500:
        log.error("a question failed", exc_info=exc)
        return 500, error_body("something went wrong here; the server's log says what", "server_error")
    if status == 404:
        return 404, error_body(str(exc), "invalid_request_error", param="stream_id", code="stream_not_found")
    if status < 500:
        return 409 if status == 409 else 400, error_body(str(exc), "invalid_request_error", code=name)
    return status, error_body(str(exc), "server_error", code=name)
