"""A client of the service whose answers are typed events: what every branch writes, while it writes it.

    from pasta_ray.client import Client, Promise, Text

    with Client("http://127.0.0.1:8000") as client:
        for event in client.events("Give me five tips for sleeping well.", model="smollm2-pasta"):
            if isinstance(event, Text):
                print(event.text, end="")

`AsyncClient` is the same with ``async``. Who wants text alone needs neither: any client of the OpenAI API will do.
"""

import json
from collections.abc import AsyncGenerator, Generator, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import Any, Self, cast

import httpx

from pasta_ray.errors import PastaError

Messages = str | Sequence[Mapping[str, Any]]
"""A conversation as OpenAI's API has it, or a single user's message."""

CHAT = "/v1/chat/completions"
MODELS = "/v1/models"
CONNECT_TIMEOUT_S = 10.0


class ClientError(PastaError):
    """The service refused, or its answer broke off. ``status`` is that of HTTP, None in the middle of a stream or where
    there was no answer; ``param`` the field that is to blame; ``retry_after_s`` when to try again, where that helps."""

    def __init__(
        self,
        message: str,
        status: int | None = None,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s


@dataclass(frozen=True)
class Text:
    """Text of the answer that is readable now, in document order and without what a stop string cut off."""

    choice: int
    text: str


@dataclass(frozen=True)
class Promise:
    """A body has been forked. A fork of APAR names no topic and no length."""

    choice: int
    branch: str
    parent: str
    topic: str | None
    tokens_predicted: int | None


@dataclass(frozen=True)
class Delta:
    """What a branch has written, as soon as it has."""

    choice: int
    branch: str
    text: str
    num_tokens: int


@dataclass(frozen=True)
class Close:
    """A body has ended; ``length`` where it ran into its budget."""

    choice: int
    branch: str
    finish_reason: str


@dataclass(frozen=True)
class Sync:
    """The main branch has joined every body opened so far."""

    choice: int


@dataclass(frozen=True)
class Report:
    """The end of a choice: its whole text, and ``body``, the report as docs/http.md describes it."""

    choice: int
    text: str
    finish_reason: str
    body: Mapping[str, Any]


Event = Text | Promise | Delta | Close | Sync | Report


class Client:
    """Close it, or use it in a ``with``. ``transport`` is httpx's, for tests and proxies."""

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        timeout_s: float = 600.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._http = httpx.Client(transport=transport, **_settings(base_url, api_key, timeout_s))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def models(self) -> list[str]:
        """The names that requests may send, aliases too. Raises ClientError."""
        with _translated():
            response = self._http.get(MODELS)
        return _names(response)

    def answer(self, messages: Messages, model: str, **fields: Any) -> list[Report]:
        """The whole answer, one report a choice. ``fields`` are those of the request. Raises ClientError."""
        with _translated():
            response = self._http.post(CHAT, json=_body(messages, model, fields))
        return _reports(response)

    def events(self, messages: Messages, model: str, **fields: Any) -> Generator[Event, None, None]:
        """The answer's events as they happen. Leaving the iteration ends the answer. Raises ClientError."""
        decoder = _Decoder()
        body = _streamed(messages, model, fields)
        with _translated(), self._http.stream("POST", CHAT, json=body) as response:
            if response.status_code != httpx.codes.OK:
                response.read()
            _check(response)
            for data in response.iter_bytes():
                yield from decoder.feed(data)
        decoder.end()


class AsyncClient:
    """`Client` for asyncio: ``async with``, ``async for``."""

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        timeout_s: float = 600.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._http = httpx.AsyncClient(transport=transport, **_settings(base_url, api_key, timeout_s))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    async def models(self) -> list[str]:
        """The names that requests may send, aliases too. Raises ClientError."""
        with _translated():
            response = await self._http.get(MODELS)
        return _names(response)

    async def answer(self, messages: Messages, model: str, **fields: Any) -> list[Report]:
        """The whole answer, one report a choice. ``fields`` are those of the request. Raises ClientError."""
        with _translated():
            response = await self._http.post(CHAT, json=_body(messages, model, fields))
        return _reports(response)

    async def events(self, messages: Messages, model: str, **fields: Any) -> AsyncGenerator[Event, None]:
        """The answer's events as they happen. Closing the iterator ends the answer. Raises ClientError."""
        decoder = _Decoder()
        body = _streamed(messages, model, fields)
        with _translated():
            async with self._http.stream("POST", CHAT, json=body) as response:
                if response.status_code != httpx.codes.OK:
                    await response.aread()
                _check(response)
                async with aclosing(cast(AsyncGenerator[bytes, None], response.aiter_bytes())) as chunks:
                    async for data in chunks:
                        for event in decoder.feed(data):
                            yield event
        decoder.end()


@contextmanager
def _translated() -> Iterator[None]:
    """Errors of the connection as ours."""
    try:
        yield
    except httpx.HTTPError as error:
        raise ClientError(f"the service cannot be reached: {type(error).__name__}: {error}") from error


class _Decoder:
    """Server-sent events to typed ones. Lines end at line feeds alone: JSON may hold any other separator as it is."""

    def __init__(self) -> None:
        self._unread = b""
        self._done = False

    def feed(self, data: bytes) -> Iterator[Event]:
        *lines, self._unread = (self._unread + data).split(b"\n")
        for line in lines:
            if not line.startswith(b"data:"):
                continue
            text = line.removeprefix(b"data:").strip()
            if text == b"[DONE]":
                self._done = True
                return
            yield from _events(json.loads(text))

    def end(self) -> None:
        if not self._done:
            raise ClientError("the stream broke off before its end")


def _events(chunk: Mapping[str, Any]) -> Iterator[Event]:
    if "error" in chunk:
        raise _error(chunk["error"])
    for choice in chunk["choices"]:
        index = choice["index"]
        told = chunk.get("pasta", {}).get("events", [])
        events = [event for each in told if (event := _event(index, each)) is not None]
        yield from (event for event in events if not isinstance(event, Report))
        if text := choice["delta"].get("content"):
            yield Text(index, text)
        yield from (event for event in events if isinstance(event, Report))


def _event(choice: int, event: Mapping[str, Any]) -> Event | None:
    """None for a type that a newer service has and this client does not know."""
    match event["type"]:
        case "promise":
            return Promise(choice, event["branch"], event["parent"], event["topic"], event["tokens_predicted"])
        case "delta":
            return Delta(choice, event["branch"], event["text"], event["num_tokens"])
        case "close":
            return Close(choice, event["branch"], event["finish_reason"])
        case "sync":
            return Sync(choice)
        case "report":
            report = event["report"]
            return Report(choice, report["text"], report["finish_reason"], report)
    return None


def _names(response: httpx.Response) -> list[str]:
    _check(response)
    return [card["id"] for card in response.json()["data"]]


def _reports(response: httpx.Response) -> list[Report]:
    _check(response)
    answer = response.json()
    bodies = [choice.get("pasta") or answer["pasta"] for choice in answer["choices"]]
    return [Report(index, body["text"], body["finish_reason"], body) for index, body in enumerate(bodies)]


def _settings(base_url: str, api_key: str | None, timeout_s: float) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    base_url = base_url.rstrip("/").removesuffix("/v1")
    return {"base_url": base_url, "headers": headers, "timeout": httpx.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S)}


def _body(messages: Messages, model: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    told = [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
    return {"model": model, "messages": told, **fields}


def _streamed(messages: Messages, model: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    pasta = {**fields.get("pasta", {}), "events": True}
    return _body(messages, model, fields) | {"stream": True, "pasta": pasta}


def _check(response: httpx.Response) -> None:
    """Raise the ClientError of a refusal, whose body has been read."""
    if response.status_code == httpx.codes.OK:
        return
    try:
        error = response.json()["error"]
    except (ValueError, KeyError, TypeError):
        error = {"message": response.text[:200] or response.reason_phrase}  # a proxy's, perhaps
    raise _error(error, response)


def _error(error: Mapping[str, Any], response: httpx.Response | None = None) -> ClientError:
    retry = response.headers.get("Retry-After") if response is not None else None
    return ClientError(
        error.get("message", "unknown error"),
        response.status_code if response is not None else None,
        error.get("param"),
        error.get("code"),
        float(retry) if retry and retry.isdigit() else None,
    )
