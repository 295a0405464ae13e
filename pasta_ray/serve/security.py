"""Who may ask, how often, and with how much: what stands in front of the routes, as plain ASGI."""

import asyncio
import hashlib
import ipaddress
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pasta_ray.errors import InputError, OverloadedError, PastaError
from pasta_ray.serve.config import API_KEYS_VARIABLE, ServeConfig
from pasta_ray.serve.errors import error_body, error_headers
from pasta_ray.serve.page import is_page

OPEN_PATHS = frozenset({"/health"})
"""Answered without a key: load balancers have none."""

MIN_KEY_LENGTH = 16
MAX_CALLERS = 10_000
BODY_TIMEOUT_S = 30.0


class ApiKeyError(PastaError):
    """No API key, or a wrong one."""

    http_status = 401
    code = "invalid_api_key"


class ForbiddenError(PastaError):
    """A service without keys answers this machine alone."""

    http_status = 403
    code = "keys_needed"


class RateLimitError(OverloadedError):
    """The caller has asked too often; ``retry_after_s`` from now it may again."""

    code = "rate_limit_exceeded"

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


def key_digest(key: str) -> str:
    """Hex sha256. Keys are random and long, so a slow hash would protect nothing more."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def read_keys(file: Path | None, environment: Mapping[str, str]) -> frozenset[str]:
    """The digests of all keys: of ``file``, one hex sha256 a line with anything behind it, and of the keys themselves
    in the environment, separated by commas. Raises InputError, naming file and line, without repeating a key."""
    digests = set()
    for number, key in enumerate(filter(None, environment.get(API_KEYS_VARIABLE, "").split(",")), 1):
        if len(key) < MIN_KEY_LENGTH:
            raise InputError(
                f"{API_KEYS_VARIABLE}: key {number} has {len(key)} characters; allowed: {MIN_KEY_LENGTH} or more"
            )
        digests.add(key_digest(key))
    if file is None:
        return frozenset(digests)
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"api_keys_file: {file}: {error}") from error
    found = {number: line.split()[0] for number, line in enumerate(lines, 1) if line.strip() and line[0] != "#"}
    for number, digest in found.items():
        if not re.fullmatch("[0-9a-f]{64}", digest):
            raise InputError(f"{file}:{number}: not a sha256 in 64 lower-case hex digits; keys stand there hashed")
    if not found:
        raise InputError(f"{file}: holds no key")
    return frozenset(digests | set(found.values()))


def check_exposure(host: str, config: ServeConfig, keys: frozenset[str]) -> None:
    """Refuse to serve beyond this machine without keys, unless that was asked for."""
    if not keys and not config.allow_without_keys and not is_loopback(host):
        raise InputError(
            f"host {host} is not loopback, and there are no API keys; allowed: api_keys_file, {API_KEYS_VARIABLE}, or"
            " allow_without_keys where something else keeps strangers out"
        )


def is_loopback(host: str) -> bool:
    """Whether ``host`` is this machine as it sees itself."""
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


class RateLimit:
    """A token bucket a caller: ``per_minute`` at once at most, and as many a minute in the long run."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_minute = per_minute
        self._clock = clock
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()  # what was left, and when

    def take(self, caller: str) -> None:
        """Count one request. Raises RateLimitError for one too many."""
        now, per_second = self._clock(), self._per_minute / 60
        left, then = self._levels.pop(caller, (float(self._per_minute), now))
        left = min(float(self._per_minute), left + (now - then) * per_second)
        self._levels[caller] = (left - 1 if left >= 1 else left, now)
        if len(self._levels) > MAX_CALLERS:
            self._levels.popitem(last=False)
        if left < 1:
            raise RateLimitError(
                f"more than {self._per_minute} requests a minute, which is the limit", (1 - left) / per_second
            )


class Guard:
    """Keys, origins, rates and sizes. Without keys only this machine is answered, and of its browsers only pages that
    it served itself or that are allowed: another site's page could else use the service through its visitor."""

    def __init__(self, app: ASGIApp, config: ServeConfig, keys: frozenset[str]) -> None:
        self._app = app
        self._config = config
        self._keys = keys
        self._rate = RateLimit(config.requests_per_minute) if config.requests_per_minute else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            self._admit(scope)
        except PastaError as error:
            await JSONResponse(error_body(error), error.http_status, error_headers(error))(scope, receive, send)
            return
        await self._app(scope, _Body(receive, self._config.max_body_bytes), send)

    def _admit(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        client = scope["client"][0] if scope.get("client") else "localhost"  # none: a Unix socket
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if path in OPEN_PATHS or (self._keys and is_page(path)):
            return
        caller = self._check_key(headers) if self._keys else self._check_local(client, headers)
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > self._config.max_body_bytes:
            raise _TooLargeError(_too_large(self._config.max_body_bytes))
        if self._rate is not None and scope["method"] == "POST":
            self._rate.take(caller)

    def _check_key(self, headers: Headers) -> str:
        """The key's digest. Only digests are compared, so how long that takes says nothing about a key."""
        scheme, _, key = headers.get("authorization", "").partition(" ")
        digest = key_digest(key.strip())
        if scheme.lower() != "bearer" or digest not in self._keys:
            what = "the API key is wrong" if key else "an API key is needed, as 'Authorization: Bearer KEY'"
            raise ApiKeyError(what)
        return digest

    def _check_local(self, client: str, headers: Headers) -> str:
        if self._config.allow_without_keys:
            return client
        if not is_loopback(client):
            raise ForbiddenError("this service has no API keys, so it answers its own machine alone")
        origin, allowed = headers.get("origin"), self._config.cors_origins
        own = origin is None or is_loopback(_host(origin))
        if not own and not {origin, "*"} & set(allowed):
            raise ForbiddenError(f"pages of {origin!r} may not use this service; cors_origins would allow them")
        return client


def _host(origin: str) -> str:
    """Of a page's origin; empty for what is none, such as "null"."""
    try:
        return urlsplit(origin).hostname or ""
    except ValueError:
        return ""


class _TooLargeError(PastaError):
    """The body has more bytes than allowed."""

    http_status = 413


def _too_large(most: int) -> str:
    return f"the body is too large; allowed: up to {most} bytes"


class _Body:
    """A request's body as it comes in: no longer than ``most`` bytes, and within a time, whatever its client does.

    What it raises is what FastAPI lets through while it reads a body.
    """

    def __init__(self, receive: Receive, most: int) -> None:
        self._receive = receive
        self._most = most
        self._num_bytes = 0
        self._deadline = asyncio.get_running_loop().time() + BODY_TIMEOUT_S
        self._complete = False

    async def __call__(self) -> Message:
        if self._complete:
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            raise HTTPException(408, f"the body took longer than {BODY_TIMEOUT_S:g} s, which is the limit") from None
        self._num_bytes += len(message.get("body", b""))
        self._complete = not message.get("more_body", False)
        if self._num_bytes > self._most:
            raise HTTPException(413, _too_large(self._most))
        return message
