"""Log-probabilities over HTTP, with the official client: the fake decoder's, whose figures are known, and a model's."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionChunk

from pasta_ray.actors.loading import LoadTokenizer
from pasta_ray.engine import EngineConfig
from pasta_ray.serve.config import ServeConfig
from pasta_ray.serve.http import create_app
from pasta_ray.serve.logprobs import readable
from pasta_ray.serve.models import read_models
from pasta_ray.serve.service import Service
from tests.fakes import FakeTokenizer, fake_models
from tests.serve.test_http import MODEL, LocalBackend, chat, events, post
from tests.serve.test_whole import InProcess, backend, engine_config, user

__all__ = ["backend", "engine_config"]
HALF = {"token": r"\xe2", "logprob": -0.25, "bytes": [0xE2]}
THE = {"token": "the ", "logprob": -0.5, "bytes": list(b"the ")}


def by_client(use: Callable[[openai.AsyncOpenAI], Awaitable[Any]], service: Service | None = None) -> Any:
    """Run ``use`` with the official client of the app."""

    async def scenario() -> Any:
        settings = ServeConfig()
        app = create_app(service or Service(settings, fake_models(settings), LocalBackend(), FakeTokenizer()))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app)) as http:
            return await use(openai.AsyncOpenAI(base_url="http://t/v1", api_key="k", http_client=http, max_retries=0))

    return asyncio.run(scenario())


def test_a_chats_tokens_come_in_document_order_with_the_likeliest_beside_them() -> None:
    async def ask(client: openai.AsyncOpenAI) -> Any:
        return await client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "a fork b"}], logprobs=True, top_logprobs=2, n=2
        )

    answer = by_client(ask)
    for choice in answer.choices:
        content = choice.logprobs.content
        assert [token.token for token in content] == ["a ", "one ", "two ", "three ", "b "]
        assert [token.logprob for token in content] == [-1.0] * 5
        assert b"".join(bytes(token.bytes) for token in content).decode() == choice.message.content
        assert [top.model_dump() for top in content[0].top_logprobs] == [HALF, THE]
        assert choice.logprobs.refusal is None


def test_a_streams_chunks_bring_their_texts_own_tokens() -> None:
    """Guards tokens that come before their text, or never."""

    async def ask(client: openai.AsyncOpenAI) -> list[ChatCompletionChunk]:
        stream = await client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "a fork b c d e"}], logprobs=True, stream=True
        )
        return [chunk async for chunk in stream]

    chunks = by_client(ask)
    for chunk in chunks[1:-1]:
        logprobs = chunk.choices[0].logprobs
        assert logprobs is not None
        tokens = logprobs.content or []
        assert "".join(token.token for token in tokens) == chunk.choices[0].delta.content
        assert all(token.top_logprobs == [] for token in tokens)
    assert chunks[0].choices[0].logprobs is None
    assert chunks[-1].choices[0].logprobs is None


@pytest.mark.parametrize("stream", [False, True])
def test_a_completions_tokens_come_in_lists(stream: bool) -> None:
    body = {"model": MODEL, "prompt": "a fork b", "logprobs": 1, "stream": stream}
    response = post(body, "/v1/completions")
    choices = [chunk["choices"][0] for chunk in events(response)[:-1]] if stream else response.json()["choices"]
    lists: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for choice in choices:
        for name, values in lists.items():
            values += choice["logprobs"][name]
    assert lists["tokens"] == ["a ", "one ", "two ", "three ", "b "]
    assert lists["token_logprobs"] == [-1.0] * 5
    assert lists["top_logprobs"][0] == {r"\xe2": -0.25, "a ": -1.0}
    assert lists["text_offset"] == [0, 2, 6, 10, 16]


def test_who_does_not_ask_gets_null_and_costs_nothing() -> None:
    backend = LocalBackend()
    for fields in ({}, {"logprobs": False}, {"logprobs": None, "top_logprobs": None}):
        assert post(chat("hello", **fields), backend=backend).json()["choices"][0]["logprobs"] is None
    assert {request.sampling.logprobs for request in backend.requests} == {None}
    assert post(chat("hello", logprobs=True), backend=backend).json()["choices"][0]["logprobs"]["content"]
    assert backend.requests[-1].sampling.logprobs == 0


def test_typed_events_and_reports_stay_as_they_are() -> None:
    """Guards bytes, which are no JSON, in the events of a request that asks for both."""
    chunks = events(post(chat("a fork b", stream=True, logprobs=True, pasta={"events": True})))
    deltas = [event for chunk in chunks[1:] for event in chunk["pasta"]["events"] if event["type"] == "delta"]
    assert {tuple(event) for event in deltas} == {("type", "branch", "text", "num_tokens")}


def test_a_real_models_answer_is_the_same_with_them(backend: InProcess, engine_config: EngineConfig) -> None:
    """Guards the way through tokenizer and branches; an answer of half characters is JSON too."""
    settings = ServeConfig(model=engine_config.model, adapter=None, served_model_name="small")
    service = Service(settings, read_models(settings), backend, LoadTokenizer(engine_config)())
    num_promises = num_broken = 0
    for seed in range(6):
        fields: dict[str, Any] = {"model": "small", "messages": user(f"question {seed}"), "max_tokens": 40}
        fields |= {"seed": seed, "temperature": 1.0, "stop": ["~"]}

        async def ask(client: openai.AsyncOpenAI, fields: dict[str, Any] = fields) -> Any:
            plain = await client.chat.completions.create(**fields)
            whole = await client.chat.completions.create(**fields, logprobs=True, top_logprobs=20)
            stream = await client.chat.completions.create(**fields, logprobs=True, top_logprobs=20, stream=True)
            return plain, whole, [chunk async for chunk in stream]

        plain, whole, chunks = by_client(ask, service)
        assert plain.choices[0].message == whole.choices[0].message
        content = whole.choices[0].logprobs.content
        streamed = [
            token for chunk in chunks if chunk.choices[0].logprobs for token in chunk.choices[0].logprobs.content
        ]
        assert streamed == content
        text = b"".join(bytes(token.bytes) for token in content).decode(errors="replace")
        num_broken += "\ufffd" in text
        if "\ufffd" not in text + plain.choices[0].message.content:
            assert text.startswith(plain.choices[0].message.content)
        assert all(len(token.top_logprobs) == 20 for token in content)
        assert all("<|" not in top.token for token in content for top in token.top_logprobs)
        num_promises += whole.pasta["parallel"]["num_promises"]
    assert num_promises > 5
    assert num_broken
    assert backend.loop.stats().num_slots == 0


def test_pieces_of_characters_are_readable() -> None:
    assert (readable(b"caf\xc3\xa9"), readable(b"\xc3"), readable(b"")) == ("café", r"\xc3", "")
