"""One id from a call to each branch's line in the log: the client's `x-request-id`, or one of ours that it is told."""

import logging
import re
import secrets
import time
from contextvars import ContextVar

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pasta_ray.logs import fields
from pasta_ray.serve.metrics import Meter

HEADER = "x-request-id"
ALLOWED = re.compile(r"[A-Za-z0-9._:-]{1,128}")
QUIET_PATHS = frozenset({"/health", "/metrics"})

logger = logging.getLogger(__name__)
_trace: ContextVar[str] = ContextVar("trace", default="")


def current_trace() -> str:
    """The id of the HTTP request that is being answered here; empty outside of one."""
    return _trace.get()


def read_trace(told: str | None) -> str:
    """What the client calls its request, if that can stand in a log and a header as it is; else a new id."""
    return told if told is not None and ALLOWED.fullmatch(told) else secrets.token_hex(16)


class Tracing:
    """Outermost: names a request, returns the name unless a proxy does, and counts and logs what became of it."""

    def __init__(self, app: ASGIApp, meter: Meter, returns_id: bool = True) -> None:
        self._app = app
        self._meter = meter
        self._returns_id = returns_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        trace = read_trace(Headers(scope=scope).get(HEADER))
        token = _trace.set(trace)
        path, began = _path(scope), time.perf_counter()
        status = 0

        async def traced(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if self._returns_id:
                    MutableHeaders(scope=message)[HEADER] = trace
            await send(message)

        try:
            await self._app(scope, receive, traced)
        except Exception:
            status = status or 500  # which is answered outside of us
            raise
        finally:
            _trace.reset(token)
            self._meter.response(path if status not in (404, 405) else "other", status)
            if path not in QUIET_PATHS:
                took = round(time.perf_counter() - began, 3)
                told = fields(trace=trace, method=scope["method"], path=path, status=status, seconds=took)
                logger.info("response", extra=told)


def _path(scope: Scope) -> str:
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))
