"""The client of chat endpoints, against a real HTTP server on a free port."""

import asyncio
import json
from typing import Any

import pytest
from fastapi import Response

from pasta_ray.errors import InputError
from pasta_ray.train.endpoint import Completion, Endpoint, EndpointConfig, EndpointError, Usage
from tests.train.endpoints import Chat, Reply, completion, free_port, serving


def ask(base_url: str, *words: str, top_logprobs: int = 0, **config: Any) -> list[Completion]:
    """Replies to all words, asked at the same time."""

    async def scenario() -> list[Completion]:
        settings = EndpointConfig(base_url, "m", **({"max_retries": 0, "timeout_s": 5} | config))
        async with Endpoint(settings) as endpoint:
            chats = [[{"role": "user", "content": word}] for word in words]
            calls = [endpoint.complete(chat, max_tokens=9, top_logprobs=top_logprobs) for chat in chats]
            replies = await asyncio.gather(*calls)
            assert endpoint.usage == sum((reply.usage for reply in replies), Usage())
            return list(replies)

    return asyncio.run(scenario())


def test_replies_and_what_they_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards the whole way there and back: body, key, text, tokens, price."""
    monkeypatch.setenv("STUB_KEY", "secret")
    with serving(lambda chat: chat[0]["content"].upper()) as stub:
        config = EndpointConfig(stub.base_url, "m", price_in=2.0, price_out=10.0)
        replies = ask(stub.base_url, "a", "b", "c", api_key_env="STUB_KEY", concurrency=2)
    assert [reply.text for reply in replies] == ["A", "B", "C"]
    assert replies[0].usage == Usage(1, 100, 20)
    assert Usage(3, 1_000_000, 500_000).cost(config) == pytest.approx(7.0)
    assert stub.keys == ["Bearer secret"] * 3
    expected = {"model": "m", "max_tokens": 9, "temperature": 0.0}
    assert all(expected.items() <= body.items() for body in stub.requests)
    assert "logprobs" not in stub.requests[0], "our own server refuses it"


def test_top_logprobs() -> None:
    """Guards the judge, which weighs its verdict by them."""
    top = [{"token": "m", "logprob": -0.1, "bytes": None}, {"token": "M", "logprob": -2.4, "bytes": None}]
    logprobs = {"content": [{"token": "m", "logprob": -0.1, "bytes": None, "top_logprobs": top}]}
    with serving(lambda _: completion("m", logprobs=logprobs)) as stub:
        (reply,) = ask(stub.base_url, "a", top_logprobs=2)
    assert reply.top_logprobs == ({"m": -0.1, "M": -2.4},)
    assert stub.requests[0]["top_logprobs"] == 2


def test_a_passing_failure_is_tried_again() -> None:
    """Guards against one overloaded moment that costs an answer."""
    seen: list[Chat] = []

    def answer(chat: Chat) -> Reply:
        seen.append(chat)
        return "fine" if len(seen) > 1 else Response("busy", status_code=503, headers={"retry-after": "0.01"})

    with serving(answer) as stub:
        (reply,) = ask(stub.base_url, "a", max_retries=1)
    assert (reply.text, len(seen)) == ("fine", 2)


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (Response("no", status_code=404), "the endpoint answered with status 404"),
        (Response("<html>", media_type="text/html"), "the endpoint's reply cannot be read"),
        (Response("{", media_type="application/json"), "the endpoint's reply cannot be read"),
        (Response("[]", media_type="application/json"), "the endpoint's reply cannot be read"),
        (Response(json.dumps({"choices": []}), media_type="application/json"), "the endpoint's reply cannot be read"),
        (Response('{"choices": [{"message": null}]}', media_type="x/y"), "the endpoint's reply cannot be read"),
    ],
)
def test_every_failure_is_one_kind_of_error(reply: Response, reason: str) -> None:
    """Guards against a server's nonsense that ends a run of hours with a stack trace."""
    with serving(lambda _: reply) as stub, pytest.raises(EndpointError) as caught:
        ask(stub.base_url, "a")
    assert caught.value.reason == reason
    assert caught.value.detail


def test_nobody_there_and_too_slow() -> None:
    """Guards the two failures without any reply, and that they are told apart."""
    with pytest.raises(EndpointError, match=r"cannot be reached: http://127\.0\.0\.1"):
        ask(f"http://127.0.0.1:{free_port()}/v1", "a")

    def slow(_: Chat) -> Reply:
        import time

        time.sleep(0.5)
        return "late"

    with serving(slow) as stub, pytest.raises(EndpointError, match=r"timed out: no reply within 0\.1 s"):
        ask(stub.base_url, "a", timeout_s=0.1)


def test_what_cannot_work_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against hours of requests without a key, or to a name that is no address."""
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    for fields in (
        {"base_url": "localhost:8000"},
        {"concurrency": 0},
        {"max_retries": -1},
        {"timeout_s": 0.0},
        {"price_in": -1.0},
        {"model": ""},
    ):
        with pytest.raises(InputError, match="allowed"):
            EndpointConfig(**({"base_url": "http://x/v1", "model": "m"} | fields))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="NO_SUCH_KEY is not set"):
        Endpoint(EndpointConfig("http://x/v1", "m", api_key_env="NO_SUCH_KEY"))
