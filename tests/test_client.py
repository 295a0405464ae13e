"""The client against the routes without Ray, async over ASGI, and sync over what those answered."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from pasta_ray.client import AsyncClient, Client, ClientError, Close, Delta, Event, Promise, Report, Sync, Text
from pasta_ray.errors import OverloadedError
from pasta_ray.serve.config import ServeConfig
from pasta_ray.serve.http import create_app
from pasta_ray.serve.service import Service
from tests.fakes import FakeTokenizer, fake_models
from tests.serve.test_http import MODEL, LocalBackend, post


def collect(messages: Any, backend: LocalBackend | None = None, **fields: Any) -> list[Event]:
    """All events of an answer, by the asynchronous client."""

    async def scenario() -> list[Event]:
        settings = ServeConfig()
        service = Service(settings, fake_models(settings), backend or LocalBackend(), FakeTokenizer())
        async with AsyncClient("http://test/v1/", transport=httpx.ASGITransport(create_app(service))) as client:
            return [event async for event in client.events(messages, MODEL, **fields)]

    return asyncio.run(scenario())


def replayed(request: httpx.Request) -> httpx.Response:
    """What the service answers to ``request``, in pieces of three bytes where it is a stream."""
    response = post(request.content, request.url.path)
    content = response.content
    pieces = (content[at : at + 3] for at in range(0, len(content), 3))
    return httpx.Response(response.status_code, headers={"Retry-After": "7"}, content=pieces)


def sync_client(answer: Callable[[httpx.Request], httpx.Response] = replayed) -> Client:
    return Client("http://test", "secret", transport=httpx.MockTransport(answer))


def check(events: list[Event]) -> None:
    """The events of "hello fork end": by branch and in document order they say the same."""
    assert [event for event in events if isinstance(event, Promise)] == [Promise(0, "0.1", "0", "topic 0.1", 10)]
    assert "".join(event.text for event in events if isinstance(event, Text)) == "hello one two three end "
    bodies = "".join(event.text for event in events if isinstance(event, Delta) and event.branch == "0.1")
    assert bodies == "one two three "
    assert [event for event in events if isinstance(event, Close)] == [Close(0, "0.1", "stop")]
    *rest, last = events
    assert not any(isinstance(event, Report) for event in rest)
    assert isinstance(last, Report)
    assert (last.text, last.finish_reason) == ("hello one two three end ", "stop")
    assert last.body["parallel"]["num_promises"] == 1


def test_events_are_objects_in_both_clients() -> None:
    check(collect("hello fork end", pasta={"method": "pasta"}))
    with sync_client() as client:
        check(list(client.events("hello fork end", MODEL)))


def test_a_body_is_seen_growing_before_its_text_is_readable() -> None:
    """Guards what the events are for: the second body writes while the first is still being read."""
    events = collect([{"role": "user", "content": "fork fork end"}])
    second = next(i for i, event in enumerate(events) if isinstance(event, Delta) and event.branch == "0.2")
    shown = "".join(event.text for event in events[:second] if isinstance(event, Text))
    assert shown.count("one") < 2


def test_whole_answers_are_reports() -> None:
    with sync_client() as client:
        (one,) = client.answer("hello fork", MODEL)
        two = client.answer("hello fork", MODEL, n=2)
    assert one.text == "hello one two three "
    assert [(report.choice, report.text) for report in two] == [(0, one.text), (1, one.text)]


def test_choices_are_told_apart() -> None:
    events = collect("a b", n=2)
    assert {event.choice for event in events} == {0, 1}
    assert sorted(event.choice for event in events if isinstance(event, Report)) == [0, 1]


@pytest.mark.parametrize("fields", [{"temperature": 9}, {"tools": []}])
def test_a_refusal_names_its_field(fields: dict[str, Any]) -> None:
    (param,) = fields
    with pytest.raises(ClientError, match=param) as raised:
        collect("x", **fields)
    assert (raised.value.status, raised.value.param) == (400, param)
    with sync_client() as client, pytest.raises(ClientError, match=param) as raised:
        client.answer("x", MODEL, **fields)
    assert raised.value.status == 400


def test_errors_say_when_to_try_again() -> None:
    with pytest.raises(ClientError, match="full") as raised:
        collect("x", LocalBackend(OverloadedError("full")))
    assert (raised.value.status, raised.value.retry_after_s) == (429, 1.0)
    with pytest.raises(ClientError, match="out of luck") as raised:
        collect("one two crash")
    assert raised.value.status is None, "the stream had begun"


def test_an_answer_that_breaks_off_is_no_answer() -> None:
    """Guards against half an answer that looks whole, and against a proxy's error page."""
    chunk = {"choices": [{"index": 0, "delta": {"content": "half\u2028\x85line"}}], "pasta": {"events": []}}
    unknown = {"choices": [{"index": 0, "delta": {}}], "pasta": {"events": [{"type": "later"}, {"type": "sync"}]}}
    lines = "".join(f"data: {json.dumps(each, ensure_ascii=False)}\n\n" for each in (chunk, unknown))
    seen: list[Event] = []
    client = sync_client(lambda _: httpx.Response(200, content=lines.encode()))
    with client, pytest.raises(ClientError, match="broke off"):
        seen.extend(client.events("x", MODEL))
    assert seen == [Text(0, "half\u2028\x85line"), Sync(0)]

    def refuse(_: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("no route")

    with sync_client(lambda _: httpx.Response(502, text="Bad Gateway")) as client:
        with pytest.raises(ClientError, match="Bad Gateway") as raised:
            client.answer("x", MODEL)
        assert raised.value.status == 502
    with sync_client(refuse) as client, pytest.raises(ClientError, match="cannot be reached: ConnectError: no route"):
        client.answer("x", MODEL)


def test_the_key_is_sent_as_openais_clients_send_it() -> None:
    sent: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(request.headers["Authorization"])
        return replayed(request)

    with sync_client(answer) as client:
        client.answer("x", MODEL)
    assert sent == ["Bearer secret"]
