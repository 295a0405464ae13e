"""Malformed and hostile requests over real sockets: each is refused clearly or answered rightly, and leaves nothing."""

import asyncio
import json
import time
from collections.abc import Iterator

import httpx
import pytest

from pasta_ray.serve import security
from tests.serve.hostile import Attack, Outcome, complaint, launch_all, request, withstands
from tests.serve.listening import Listening, listening
from tests.serve.test_http import MODEL, chat

JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def service() -> Iterator[Listening]:
    with listening() as service:
        yield service


def test_a_hundred_and_fifty_hostile_requests(service: Listening) -> None:
    assert len(withstands(service.url, seed=1, num=150)) == 13
    assert service.settles_at_zero()


@pytest.mark.slow
def test_a_thousand_hostile_requests(service: Listening) -> None:
    assert min(withstands(service.url, seed=2, num=1000).values()) > 30
    assert service.settles_at_zero()


def test_an_unread_stream_holds_no_slots_and_is_there_when_it_is_read(service: Listening) -> None:
    """Guards the engine against readers who are slow on purpose: text waits, slots do not."""
    text = "it " * 2200
    body = json.dumps(chat(text, stream=True, max_tokens=4096)).encode()

    async def scenario() -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
        try:
            writer.write(request(body=body))
            assert (await reader.read(100)).startswith(b"HTTP/1.1 200")
            assert await asyncio.to_thread(service.settles_at_zero)
            assert httpx.get(f"{service.url}/health").status_code == 200
            return await reader.read()
        finally:
            writer.close()

    rest = asyncio.run(scenario())
    assert rest.count(b'"content":"it ') > 100
    assert rest.count(b"it ") >= 2 * 2200  # in chunks, and in the report
    assert rest.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")


@pytest.mark.parametrize("stream", [False, True])
def test_who_leaves_frees_the_slots(service: Listening, stream: bool) -> None:
    """Guards answers that nobody waits for any more, on a server that does not cancel them itself, streamed or not."""

    async def scenario() -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", service.port)
        writer.write(request(body=json.dumps(chat("endless", stream=stream, max_tokens=4000)).encode()))
        while not service.backend.loop.stats().num_requests:
            await asyncio.sleep(0.01)
        writer.close()
        assert await asyncio.to_thread(service.settles_at_zero)

    asyncio.run(asyncio.wait_for(scenario(), 10))


def test_a_body_that_does_not_come_is_not_waited_for(service: Listening, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards workers against clients who promise a body, or send it byte by byte."""
    monkeypatch.setattr(security, "BODY_TIMEOUT_S", 0.3)
    raw = request(body=json.dumps(chat("x")).encode())

    async def scenario() -> list[Outcome]:
        step_by_step = tuple(raw[at : at + 10] for at in range(0, len(raw), 10))
        return await launch_all([Attack("slow", (raw[:-5],)), Attack("slow", step_by_step, 0.05)], service.port)

    started = time.monotonic()
    for outcome in asyncio.run(scenario()):
        assert outcome.answer is not None
        assert outcome.answer.startswith(b"HTTP/1.1 408")
        assert b"the body took longer than 0.3 s" in outcome.answer
        assert complaint(outcome) is None
    assert time.monotonic() - started < 5


def test_half_a_request_keeps_nobody_else_waiting(service: Listening) -> None:
    """Guards against a slow head: two hundred open connections that have sent half of one."""

    async def scenario() -> float:
        connections = [await asyncio.open_connection("127.0.0.1", service.port) for _ in range(200)]
        for _, writer in connections:
            writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nX-Slow: ")
        started = time.monotonic()
        async with httpx.AsyncClient() as client:
            answer = await client.post(f"{service.url}/v1/chat/completions", json=chat("hello"))
        assert answer.status_code == 200
        for _, writer in connections:
            writer.close()
        return time.monotonic() - started

    assert asyncio.run(scenario()) < 5


def test_a_wrong_method_says_which_is_right_and_head_is_answered(service: Listening) -> None:
    wrong = httpx.options(f"{service.url}/v1/chat/completions")
    assert (wrong.status_code, wrong.headers["Allow"]) == (405, "POST")
    assert wrong.json()["error"]["message"] == "OPTIONS /v1/chat/completions: Method Not Allowed"
    slash = httpx.post(f"{service.url}/v1/chat/completions/", json=chat("x"))
    assert (slash.status_code, slash.json()["error"]["type"]) == (404, "invalid_request_error")
    for path in ("/health", "/v1/models", f"/v1/models/{MODEL}"):
        head, whole = httpx.head(service.url + path), httpx.get(service.url + path)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["Content-Length"] == str(len(whole.content))
    assert httpx.head(f"{service.url}/v1/models/none").status_code == 404


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded"])
def test_a_body_that_does_not_say_it_is_json_is_told_so(service: Listening, kind: str | None) -> None:
    """Guards who forgets the header with curl, which then sends a form's; and against other sites' forms."""
    headers = {} if kind is None else {"Content-Type": kind}
    body = json.dumps(chat("x")).encode()
    answer = httpx.post(f"{service.url}/v1/chat/completions", content=body, headers=headers)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, None)
    assert answer.json()["error"]["message"] == f"Content-Type is {kind!r}; allowed: application/json"
    assert (
        "not JSON" in httpx.post(f"{service.url}/v1/completions", content=b"{", headers=JSON).json()["error"]["message"]
    )
    empty = httpx.post(f"{service.url}/v1/completions", headers=JSON).json()["error"]
    assert empty["message"] == "the body: Field required"


def test_who_asks_too_often_is_told_when_to_come_back() -> None:
    with listening(requests_per_minute=2) as service:
        answers = [httpx.post(f"{service.url}/v1/chat/completions", json=chat("x")) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert 1 <= int(answers[2].headers["Retry-After"]) <= 30
    assert answers[2].json()["error"]["code"] == "rate_limit_exceeded"
