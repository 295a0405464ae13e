"""The routes without Ray: a decode loop over the fake decoder stands behind them."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import httpx
import pytest

from pasta_ray.actors.decode_loop import DecodeLoop
from pasta_ray.actors.messages import ClusterHealth, ReplicaHealth
from pasta_ray.engine.messages import Events, Request
from pasta_ray.errors import OverloadedError, PastaError
from pasta_ray.logs import TextFormatter
from pasta_ray.serve.config import ServeConfig
from pasta_ray.serve.http import create_app
from pasta_ray.serve.service import Service
from tests.fakes import FakeDecoder, FakeTokenizer, fake_models

MODEL = "smollm2-135m-instruct-pasta"
TWO = {"quick": {"adapter": "pasta", "aliases": ["old"]}, "plain": {"adapter": None}}


class LocalBackend:
    """One decode loop in this process; ``error`` is raised instead of decoding."""

    def __init__(self, error: PastaError | None = None, state: Any = "ready") -> None:
        self.loop = DecodeLoop(FakeDecoder)
        self.error = error
        self.state = state
        self.requests: list[Request] = []

    async def decode(self, request: Request) -> AsyncGenerator[Events, None]:
        self.requests.append(request)
        if self.error is not None:
            raise self.error
        async for message in self.loop.decode(request):
            yield message

    async def health(self) -> ClusterHealth:
        return ClusterHealth((ReplicaHealth("r0", self.state, 0),))


def call(use: Callable[[httpx.AsyncClient], Awaitable[Any]], backend: LocalBackend | None = None, **config: Any) -> Any:
    """Run ``use`` with a client of the app."""

    async def scenario() -> Any:
        settings = ServeConfig(**config)
        service = Service(settings, fake_models(settings), backend or LocalBackend(), FakeTokenizer())
        transport = httpx.ASGITransport(create_app(service), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await use(client)

    return asyncio.run(scenario())


def post(
    body: dict[str, Any] | bytes, path: str = "/v1/chat/completions", backend: LocalBackend | None = None, **config: Any
) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    response: httpx.Response = call(lambda c: c.post(path, content=content, headers=headers), backend, **config)
    return response


def chat(words: str, **fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": words}], **fields}


def events(response: httpx.Response) -> list[Any]:
    """The JSON of every server-sent event; the stream must end with [DONE]."""
    lines = [line for line in response.text.split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def streamed_text(chunks: list[Any]) -> str:
    return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks if chunk["choices"])


def test_a_chat_is_answered_with_usage_and_report() -> None:
    response = post(chat("hello fork world"))
    answer = response.json()
    assert response.status_code == 200
    assert answer["object"] == "chat.completion"
    assert answer["choices"][0]["message"] == {
        "role": "assistant",
        "content": "hello one two three world ",
        "refusal": None,
    }
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"] == {
        "prompt_tokens": 16,
        "completion_tokens": 6,
        "total_tokens": 22,
        "completion_tokens_details": {"annotation_tokens": 7},
    }
    assert answer["pasta"]["id"] == answer["id"]
    assert answer["pasta"]["parallel"]["num_promises"] == 1


def test_a_stream_gives_role_text_in_document_order_reason_and_report() -> None:
    chunks = events(post(chat("hello fork a b c d fork end", stream=True)))
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert streamed_text(chunks) == "hello one two three a b c d one two three end "
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert chunks[-1]["pasta"]["text"] == streamed_text(chunks)
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}


def test_the_usage_chunk_comes_last_and_only_when_asked_for() -> None:
    chunks = events(post(chat("hello", stream=True, stream_options={"include_usage": True})))
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 2
    assert not any("usage" in chunk for chunk in events(post(chat("hello", stream=True))))


@pytest.mark.parametrize("stream", [False, True])
def test_completions_continue_the_text_itself(stream: bool) -> None:
    response = post({"model": MODEL, "prompt": "a fork b", "stream": stream}, "/v1/completions")
    if stream:
        text = "".join(chunk["choices"][0]["text"] for chunk in events(response))
    else:
        text = response.json()["choices"][0]["text"]
        assert response.json()["object"] == "text_completion"
    assert text == "a one two three b "


def test_length_is_reported_as_the_reason() -> None:
    assert post(chat("endless", max_tokens=3)).json()["choices"][0]["finish_reason"] == "length"


def test_options_reach_the_engine() -> None:
    backend = LocalBackend()
    options = {"temperature": 0.5, "top_p": 0.9, "seed": 7, "max_tokens": 5, "max_completion_tokens": 9}
    post(chat("hello", **options, pasta={"method": "sequential", "max_branches": 3}), backend=backend)
    (request,) = backend.requests
    assert (request.method, request.max_tokens, request.max_branches) == ("sequential", 9, 3)
    assert (request.sampling.temperature, request.sampling.top_p, request.sampling.seed) == (0.5, 0.9, 7)


def test_defaults_are_greedy_and_the_models_own_method() -> None:
    backend = LocalBackend()
    post(chat("hello"), backend=backend)
    post(chat("hello") | {"model": "smollm2-135m-instruct"}, backend=backend, adapter=None)
    assert [request.method for request in backend.requests] == ["pasta", "sequential"]
    assert {request.sampling.temperature for request in backend.requests} == {0.0}
    assert {request.max_tokens for request in backend.requests} == {512}


def test_a_chats_messages_reach_the_engine_with_its_router() -> None:
    """Guards methods that ask the model questions of their own: they need the chat, and a completion has none."""
    backend = LocalBackend()
    post(chat("hello", pasta={"method": "sot", "router": True}), backend=backend)
    post({"model": MODEL, "prompt": "hello"}, "/v1/completions", backend)
    asked, plain = backend.requests
    assert (asked.method, asked.router, asked.messages) == ("sot", True, (("user", "hello"),))
    assert (plain.router, plain.messages) == (False, ())


def test_an_answers_message_may_be_sent_back() -> None:
    """Guards against refusing what our own clients echo: null fields, a developer's message, text in parts."""
    parts = [{"type": "text", "text": "once "}, {"type": "text", "text": "more"}]
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hello", "refusal": None, "tool_calls": None, "annotations": []},
        {"role": "user", "content": parts},
    ]
    neutral = {"n": 1, "stop": None, "presence_penalty": 0, "logprobs": False, "response_format": {"type": "text"}}
    response = post({"model": MODEL, "messages": messages, **neutral})
    assert response.json()["choices"][0]["message"]["content"] == "once more "


REFUSED = [
    (chat("x", temperature=3), 400, "temperature", "less than or equal to 2"),
    (chat("x", max_tokens=0), 400, "max_tokens", "greater than or equal to 1"),
    (chat("x", max_tokens=100_000), 400, "max_tokens", "allowed: up to 4096"),
    (chat("x", n=17), 400, "n", "n is 17; allowed: up to 16 answers"),
    (chat("x", n=0), 400, "n", "greater than or equal to 1"),
    (chat("x", stop=["a"] * 5), 400, "stop", "at most 4"),
    (chat("x", stop=["a", ""]), 400, "stop.1", "at least 1 character"),
    (chat("x", seed=2**63), 400, "seed", "less than or equal to"),
    (chat("x", user="u" * 300), 400, "user", "at most 256"),
    (chat("x", top_logprobs=3), 400, "top_logprobs", "is 3 without logprobs: true"),
    (chat("x", top_logprobs=3, logprobs=False), 400, "top_logprobs", "is 3 without logprobs: true"),
    (chat("x", logprobs=True, top_logprobs=21), 400, "top_logprobs", "less than or equal to 20"),
    (chat("x", logprobs=True, pasta={"method": "sot"}), 400, None, "logprobs do not go with method 'sot'"),
    (chat("x", logit_bias={"1": 5}), 400, "logit_bias", "not supported"),
    (chat("x", frequency_penalty=0.5), 400, "frequency_penalty", "not supported"),
    (chat("x", presence_penalty=0.5), 400, "presence_penalty", "not supported"),
    (chat("x", response_format={"type": "json_object"}), 400, "response_format.type", "'text'"),
    (chat("x", modalities=["audio"]), 400, "modalities.0", "'text'"),
    (chat("x", metadata={"a": "b"}), 400, "metadata", "at most 0"),
    (chat("x", reasoning_effort="high"), 400, "reasoning_effort", "'none'"),
    (chat("x", service_tier="flex"), 400, "service_tier", "'auto'"),
    (chat("x", store=True), 400, "store", "False"),
    (chat("x", verbosity="low"), 400, "verbosity", "'medium'"),
    (chat("x", audio={"voice": "ash"}), 400, "audio", "not supported"),
    (chat("x", moderation={}), 400, "moderation", "not supported"),
    (chat("x", prediction={"type": "content"}), 400, "prediction", "not supported"),
    (chat("x", prompt_cache_key="k"), 400, "prompt_cache_key", "not supported"),
    (chat("x", prompt_cache_retention="24h"), 400, "prompt_cache_retention", "not supported"),
    *(
        (chat("x", **{name: value}), 400, name, f"unknown field '{name}'")
        for name, value in {
            "functions": [],
            "function_call": "none",
            "tool_choice": "none",
            "parallel_tool_calls": True,
            "web_search_options": {},
            "prompt_cache_options": {},
            "best_of": 1,
            "colour": 1,
        }.items()
    ),
    ({"model": MODEL, "messages": [{"role": "user", "content": "x", "name": "n"}]}, 400, "messages.0.name", "unknown"),
    (chat("x", tools=[]), 400, "tools", "unknown field 'tools'"),
    (chat("x", pasta={"max_branches": 99}), 400, "pasta.max_branches", "allowed: up to 16"),
    (chat("x", pasta={"colour": 1}), 400, "pasta.colour", "unknown field"),
    (chat("x", pasta={"method": "magic"}), 400, None, "method is 'magic'; allowed: sequential, pasta"),
    (chat("x", pasta={"router": True}), 400, None, "router goes with method 'sot', not with 'pasta'"),
    (chat("refuse"), 400, None, "refused"),
    (chat("x" * 8000), 400, "messages", "8000 tokens long; allowed: 7168"),
    (chat("x") | {"model": "gpt-4"}, 404, "model", "served: 'smollm2-pasta', "),
    ({"model": MODEL, "messages": []}, 400, "messages", "at least 1"),
    ({"model": MODEL}, 400, "messages", "required"),
    ({"model": MODEL, "messages": [{"role": "tool", "content": ""}]}, 400, "messages.0.role", "'system'"),
    (b"{not json", 400, None, "the body is not JSON"),
    (chat("crash"), 500, None, "ValueError: the kernel is out of luck"),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("body", "status", "param", "message"), REFUSED, ids=lambda value: str(value)[:40])
def test_errors_have_openais_shape(body: Any, status: int, param: str | None, message: str, stream: bool) -> None:
    """A refusal comes with its own status, streaming or not: never a 200 with an error inside."""
    if stream and isinstance(body, dict):
        body = body | {"stream": True}
    response = post(body)
    error = response.json()["error"]
    assert response.status_code == status
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param
    assert message in error["message"]


@pytest.mark.parametrize(("path", "method", "status"), [("/v2/chat", "GET", 404), ("/v1/chat/completions", "GET", 405)])
def test_unknown_routes_and_methods_too(path: str, method: str, status: int) -> None:
    response = call(lambda client: client.request(method, path))
    assert (response.status_code, response.json()["error"]["type"]) == (status, "invalid_request_error")


def test_overload_may_be_tried_again_and_a_fault_not() -> None:
    response = post(chat("x"), backend=LocalBackend(OverloadedError("full")))
    assert (response.status_code, response.headers["Retry-After"]) == (429, "1")
    assert response.json()["error"]["type"] == "rate_limit_error"
    assert post(chat("crash")).headers["x-should-retry"] == "false"


def test_an_error_in_mid_stream_is_an_event_and_the_stream_is_closed() -> None:
    chunks = events(post(chat("one two crash", stream=True)))
    assert "out of luck" in chunks[-1]["error"]["message"]


def test_the_services_own_time_limit_closes_the_stream_and_frees_the_slots() -> None:
    backend = LocalBackend()
    chunks = events(post(chat("endless", stream=True), backend=backend, request_timeout_s=0.3))
    assert streamed_text(chunks[:-1]).startswith("word word ")
    assert chunks[-1]["error"]["type"] == "timeout_error"
    for _ in range(50):
        time.sleep(0.01)
        if backend.loop.stats().num_slots == 0:
            break
    assert backend.loop.stats().num_slots == 0
    assert post(chat("endless"), request_timeout_s=0.1).status_code == 504


def test_health_is_503_until_a_replica_is_ready() -> None:
    starting = call(lambda client: client.get("/health"), LocalBackend(state="starting"))
    assert (starting.status_code, starting.json()["error"]["code"]) == (503, "starting")
    ready = call(lambda client: client.get("/health"))
    assert (ready.status_code, ready.json()["status"]) == (200, "ok")


def test_models_are_listed_with_their_aliases() -> None:
    listed = call(lambda c: c.get("/v1/models"), models=TWO).json()["data"]
    assert [(card["id"], card["root"]) for card in listed] == [("quick", "quick"), ("plain", "plain"), ("old", "quick")]
    assert call(lambda c: c.get("/v1/models/plain"), models=TWO).json()["id"] == "plain"
    assert call(lambda c: c.get("/v1/models/other"), models=TWO).status_code == 404


def test_the_request_chooses_the_model() -> None:
    """Guards against the wrong adapter's answer; an alias is answered under the name that was asked for."""
    backend = LocalBackend()
    for name in ("quick", "plain", "old"):
        assert post(chat("hello") | {"model": name}, backend=backend, models=TWO).json()["model"] == name
        streamed = events(post(chat("hello", stream=True) | {"model": name}, backend=backend, models=TWO))
        assert {chunk["model"] for chunk in streamed} == {name}
    asked = [(request.model, request.method) for request in backend.requests[::2]]
    assert asked == [("quick", "pasta"), ("plain", "sequential"), ("quick", "pasta")]
    response = post(chat("hello"), models=TWO)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (404, "model_not_found", "model")
    assert error["message"] == f"model {MODEL!r} does not exist here; served: 'quick', 'plain', 'old'"


def test_scripts_that_know_the_default_model_by_its_old_name_go_on() -> None:
    backend = LocalBackend()
    assert post(chat("hello"), backend=backend).json()["model"] == MODEL
    assert post(chat("hello"), backend=backend, adapter="pasta").json()["model"] == MODEL
    assert [request.model for request in backend.requests] == ["smollm2-pasta", MODEL]


def test_health_shows_the_models() -> None:
    (quick, plain) = call(lambda client: client.get("/health"), models=TWO).json()["models"]
    assert quick == {"name": "quick", "method": "pasta", "adapter": "pasta", "aliases": ["old"]}
    assert (plain["name"], plain["method"], plain["adapter"]) == ("plain", "sequential", None)


def test_the_log_has_a_line_an_answer_with_the_models_name(caplog: pytest.LogCaptureFixture) -> None:
    """Guards who must find out which model was slow, or failed."""
    with caplog.at_level("INFO", "pasta_ray.serve.service"):
        post(chat("hello fork") | {"model": "quick"}, models=TWO)
        post(chat("crash") | {"model": "plain"}, models=TWO)
        post(chat("one two crash", stream=True) | {"model": "plain"}, models=TWO)
    lines = [record for record in caplog.records if record.message == "answered"]
    good, bad, late = [TextFormatter().format(line) for line in lines]
    assert " model=quick method=pasta outcome=stop " in good
    assert good.endswith(" tokens=5 promises=1 critical_path=6 speedup=1.0")
    for line in (bad, late):
        assert " model=plain method=sequential outcome=StepError " in line
