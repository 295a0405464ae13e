"""Every error leaves the service in OpenAI's shape: {"error": {"message", "type", "param", "code"}}."""

import logging
import math
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from pasta_ray.errors import InputError, NotFoundError, PastaError, ReplicaError

logger = logging.getLogger(__name__)

_TYPES = {
    400: "invalid_request_error",
    404: "invalid_request_error",
    405: "invalid_request_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}


class ParameterError(InputError):
    """A field of the request's body cannot be used; ``param`` is its path."""

    def __init__(self, message: str, param: str, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class ModelNotFoundError(NotFoundError):
    """The request names a model that is not served here."""

    param = "model"
    code = "model_not_found"


class DeadlineError(PastaError):
    """The answer took longer than the service allows."""

    http_status = 504


class NotReadyError(ReplicaError):
    """No replica can decode; ``code`` is ``starting`` where that will change by itself, else ``failed``."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


def error_body(error: PastaError) -> dict[str, Any]:
    """The body of the answer, and of an error in the middle of a stream."""
    return _body(str(error), error.http_status, getattr(error, "param", None), getattr(error, "code", None))


def _body(message: str, status: int, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    param = None if param is None else _sayable(param)
    return {"error": {"message": _sayable(message), "type": kind, "param": param, "code": code}}


def _sayable(text: str) -> str:
    """A field's name may hold half of a surrogate pair, which JSON can carry and UTF-8 cannot."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def error_headers(error: PastaError) -> dict[str, str]:
    """When to try again, or that this is of no use; and how to show who one is."""
    retry_after_s = getattr(error, "retry_after_s", 1.0)
    challenge = {"WWW-Authenticate": "Bearer"} if error.http_status == 401 else {}
    return _headers(error.http_status, retry_after_s) | challenge


def _headers(status: int, retry_after_s: float = 1.0) -> dict[str, str]:
    """Full or starting: worth trying again. A fault or a deadline: not, and OpenAI's clients would."""
    if status in (429, 503):
        return {"Retry-After": str(max(1, math.ceil(retry_after_s)))}
    return {"x-should-retry": "false"} if status >= 500 else {}


def add_error_handlers(app: FastAPI) -> None:
    """Make ``app`` answer every exception in OpenAI's shape."""

    @app.exception_handler(PastaError)
    async def pasta_error(_: Request, error: PastaError) -> JSONResponse:
        if error.http_status >= 500 and not isinstance(error, NotReadyError):
            logger.error("%s: %s", type(error).__name__, error)
        return JSONResponse(error_body(error), error.http_status, error_headers(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        message, param = _explain(error.errors()[0])
        if isinstance(error.body, bytes):  # which FastAPI has not even tried to read
            kind = request.headers.get("content-type")
            message, param = f"Content-Type is {kind!r}; allowed: application/json", None
        return JSONResponse(_body(message, 400, param), 400)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        message = f"{request.method} {request.url.path}: {error.detail}"
        return JSONResponse(_body(message, error.status_code), error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def fault(_: Request, error: Exception) -> JSONResponse:
        logger.error("unexpected error", exc_info=error)
        return JSONResponse(_body(f"internal error: {type(error).__name__}", 500), 500, _headers(500))


def _explain(error: Mapping[str, Any]) -> tuple[str, str | None]:
    """Pydantic's first complaint as one sentence, and the field that it is about."""
    if error["type"] == "json_invalid":
        return f"the body is not JSON: {error.get('ctx', {}).get('error', error['msg'])}", None
    param = ".".join(str(part) for part in error["loc"][1:]) or None
    if error["type"] == "extra_forbidden":
        return f"unknown field {param!r}: this service does not know it", param
    message = error["msg"].removeprefix("Value error, ")
    return (f"{param}: {message}" if param else f"the body: {message}"), param
