"""The service on Ray Serve over real HTTP, seen by the official client, with the fake decoder in its replicas."""

import asyncio
import json
import os
import signal
import socket
import threading
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import httpx
import openai
import pytest

from pasta_ray.actors.loading import LoadModels
from pasta_ray.client import Client, Report, Text
from pasta_ray.engine.messages import Delta
from pasta_ray.errors import ModelError
from pasta_ray.serve.config import ServeConfig
from tests.fakes import FakeTokenizer, MakeFakeDecoder, ask, fake_models
from tests.serve.hostile import withstands

with warnings.catch_warnings():  # Ray 2.60's own models use what Pydantic 2.14 deprecates
    warnings.simplefilter("ignore", DeprecationWarning)
    from ray import serve
    from ray.serve.config import HTTPOptions

    from pasta_ray.serve.app import build_app, make_app

MODEL = "smollm2-135m-instruct-pasta"
SLOW = "slow"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def url(ray_cluster: None) -> Iterator[str]:  # noqa: ARG001  a fixture that is used for what it starts
    port = free_port()
    serve.start(http_options=HTTPOptions(host="127.0.0.1", port=port, request_timeout_s=None))
    models = {MODEL: {"adapter": "pasta"}, "second": {"adapter": "pasta"}, SLOW: {"adapter": "pasta"}}
    config = ServeConfig(replicas=2, num_coordinators=2, cpus_per_replica=0, max_ongoing_requests=40, models=models)
    make_decoder = LoadModels(dict.fromkeys(models, MakeFakeDecoder()) | {SLOW: MakeFakeDecoder(step_s=0.01)})
    serve.run(make_app(config, fake_models(config), make_decoder, FakeTokenizer), name="pasta", route_prefix="/")
    url = f"http://127.0.0.1:{port}"
    for _ in range(300):
        if httpx.get(f"{url}/health").status_code == 200:
            break
        time.sleep(0.1)
    yield url
    serve.shutdown()


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


def live_branches(url: str) -> int:
    return sum(replica["num_branches"] for replica in httpx.get(f"{url}/health").json()["replicas"])


def serves_actor(part_of_name: str) -> Any:
    """The handle of the only one of Serve's actors that is named so, which Serve may be starting again."""
    import ray

    for _ in range(300):
        entries = ray.util.list_named_actors(all_namespaces=True)
        names = [each["name"] for each in entries if each["namespace"] == "serve" and part_of_name in each["name"]]
        if names:
            (name,) = names
            return ray.get_actor(name, namespace="serve")
        time.sleep(0.1)
    raise AssertionError(f"no {part_of_name} within 30 s")


def coordinator() -> Any:
    """The handle of the deployment's first one."""
    return serves_actor("coordinator-0")


def process(actor: Any) -> int:
    import ray

    return int(ray.get(actor.__ray_call__.remote(lambda _: os.getpid())))


def slots(url: str) -> int:
    """Slots in use on all replicas, asked of one of the deployment's coordinators."""
    from pasta_ray.actors.cluster import Cluster

    del url
    return sum(stats.num_slots for stats in asyncio.run(Cluster(coordinator).stats()))


def settles_at_zero(url: str) -> bool:
    for _ in range(100):
        if slots(url) == live_branches(url) == 0:
            return True
        time.sleep(0.05)
    return False


def test_the_official_client_gets_an_answer(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "hello fork world"}])
    assert answer.choices[0].message.content == "hello one two three world "
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 6
    assert answer.model_extra is not None
    assert answer.model_extra["pasta"]["parallel"]["num_promises"] == 1


def test_the_official_client_streams(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "hello fork a b fork c"}],
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"pasta": {"method": "pasta"}},
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == "hello one two three a b one two three c "
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage is not None


def test_the_official_client_gets_several_answers_and_typed_events(client: openai.OpenAI, url: str) -> None:
    """Guards n, events and our own client over real HTTP, through Serve's proxy and its actors."""
    answer = client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "a fork"}], n=3)
    assert [choice.message.content for choice in answer.choices] == ["a one two three "] * 3
    completed = client.completions.create(model=MODEL, prompt=["a", "b"], echo=True)
    assert [choice.text for choice in completed.choices] == ["aa ", "bb "]
    with Client(url) as ours:
        events = list(ours.events("a fork b", MODEL, n=2))
    for choice in (0, 1):
        own = [event for event in events if event.choice == choice]
        assert "".join(event.text for event in own if isinstance(event, Text)) == "a one two three b "
        assert isinstance(own[-1], Report)
    assert settles_at_zero(url)


def test_serves_proxy_says_who_asks(url: str) -> None:
    """Guards services without keys, which answer this machine alone: the address must be that of the client."""
    assert httpx.get(f"{url}/v1/models").status_code == 200
    assert httpx.get(f"{url}/v1/models", headers={"Origin": "https://example.org"}).status_code == 403
    body = b"x" * (2**20 + 1)
    headers = {"Content-Type": "application/json"}
    assert httpx.post(f"{url}/v1/chat/completions", content=body, headers=headers).status_code == 413
    pieces = iter([body[:1000], body[1000:]])
    assert httpx.post(f"{url}/v1/chat/completions", content=pieces, headers=headers).status_code == 413


def test_the_official_client_chooses_a_model(client: openai.OpenAI) -> None:
    assert [card.id for card in client.models.list()] == [MODEL, "second", SLOW]
    answer = client.chat.completions.create(model="second", messages=[{"role": "user", "content": "hello fork"}])
    assert (answer.model, answer.choices[0].message.content) == ("second", "hello one two three ")


def test_text_is_sent_while_the_answer_is_still_being_decoded(url: str) -> None:
    """Guards against a stream that is collected first: an endless answer has no end to wait for."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": "endless"}], "stream": True, "max_tokens": 4000}
    started = time.monotonic()
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=30) as response:
        lines = (json.loads(line[6:]) for line in response.iter_lines() if line)
        words = [chunk["choices"][0]["delta"].get("content") for chunk, _ in zip(lines, range(5), strict=False)]
    assert time.monotonic() - started < 10
    assert words[0] == ""
    assert "word " in (words[1] or "")
    assert settles_at_zero(url)


def test_the_coordinators_deaths_leave_no_gap_in_a_stream(url: str) -> None:
    """Guards the way back: Serve starts other coordinators, which find the replicas, and the worker finds them."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": "endless"}], "stream": True, "max_tokens": 400}
    pids = [process(serves_actor(f"coordinator-{index}")) for index in range(2)]
    text = ""
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=60) as response:
        for line in response.iter_lines():
            if line and line != "data: [DONE]":
                text += json.loads(line[6:])["choices"][0]["delta"].get("content") or ""
            if len(text) > 100:
                while pids:
                    os.kill(pids.pop(), signal.SIGKILL)
    assert text == "word " * 400
    assert settles_at_zero(url)


def test_an_http_workers_death_frees_its_slots_and_disturbs_nobody_else(url: str) -> None:
    """Guards branches that go on for clients whose connection died with the worker, and a service that stays away."""
    message = {"role": "user", "content": "fork endless"}
    body = {"model": SLOW, "messages": [message], "stream": True, "max_tokens": 4000}
    pid = process(serves_actor("SERVE_REPLICA::pasta#pasta#"))
    lines: list[str] = []
    killed_at = 0.0

    async def other_reader() -> str:
        from pasta_ray.actors.cluster import Cluster

        events = []
        async for message in Cluster(coordinator).decode(ask("endless", "other", model=SLOW, max_tokens=500)):
            events += message.events
        return "".join(event.text for event in events if isinstance(event, Delta))

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(asyncio.run, other_reader())
        with (
            suppress(httpx.HTTPError),
            httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=30) as response,
        ):
            for line in response.iter_lines():
                lines.append(line)
                if len(lines) == 1:
                    assert slots(url) > 0
                    os.kill(pid, signal.SIGKILL)
                    killed_at = time.monotonic()
        assert lines
        assert "data: [DONE]" not in lines
        assert other.result(timeout=60) == "word " * 500
    while slots(url):
        assert time.monotonic() - killed_at < 20
        time.sleep(0.05)
    while httpx.get(f"{url}/health", timeout=30).status_code != 200:
        assert time.monotonic() - killed_at < 60
        time.sleep(0.2)
    again = httpx.post(f"{url}/v1/completions", json={"model": MODEL, "prompt": "hello again"}, timeout=30)
    assert again.json()["choices"][0]["text"] == "hello again "
    assert settles_at_zero(url)


def test_the_official_client_raises_the_right_errors(client: openai.OpenAI) -> None:
    messages: list[openai.types.chat.ChatCompletionMessageParam] = [{"role": "user", "content": "hello"}]
    with pytest.raises(openai.NotFoundError, match="served"):
        client.chat.completions.create(model="gpt-4", messages=messages)
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.chat.completions.create(model=MODEL, messages=messages, temperature=9)
    with pytest.raises(openai.InternalServerError, match="out of luck"):
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "crash"}])


def test_a_client_that_leaves_frees_every_slot_of_every_choice(url: str) -> None:
    with Client(url) as client:
        events = client.events("fork fork endless", MODEL, n=3, max_tokens=4000)
        assert next(events)
        assert slots(url) > 0
        events.close()
    assert settles_at_zero(url)


@pytest.mark.parametrize(("stream", "model"), [(True, MODEL), (True, "second"), (False, "second")])
def test_a_client_that_leaves_frees_every_slot(url: str, stream: bool, model: str) -> None:
    """Guards against branches that go on decoding for nobody, after an open stream or an unanswered request."""
    message = {"role": "user", "content": "fork fork endless"}
    body = {"model": model, "messages": [message], "stream": stream, "max_tokens": 4000}
    if stream:
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=30) as response:
            lines = response.iter_lines()  # dropping it would close the stream
            assert "assistant" in next(lines)
            assert slots(url) > 0
    else:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/v1/chat/completions", json=body, timeout=1.0)
    assert settles_at_zero(url)


def test_hostile_requests_through_serves_proxy(url: str) -> None:
    assert len(withstands(url, seed=3, num=100)) == 13
    assert settles_at_zero(url)


@pytest.mark.slow
def test_a_thousand_hostile_requests_through_serves_proxy(url: str) -> None:
    assert min(withstands(url, seed=4, num=1000).values()) > 30
    assert settles_at_zero(url)


def test_log_probabilities_cross_the_actors(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "a fork b"}], logprobs=True, top_logprobs=1
    )
    assert answer.choices[0].logprobs is not None
    tokens = answer.choices[0].logprobs.content or []
    assert [token.token for token in tokens] == ["a ", "one ", "two ", "three ", "b "]
    assert [top.bytes for top in tokens[0].top_logprobs] == [[0xE2]]


def test_many_clients_at_once_wait_their_turn(url: str) -> None:
    """More than `max_ongoing_requests`, and health is answered meanwhile."""
    answers: list[str] = []

    def ask(number: int) -> None:
        body = {"model": MODEL, "messages": [{"role": "user", "content": f"fork number {number}"}]}
        response = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60)
        answers.append(response.json()["choices"][0]["message"]["content"])

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(60)]
    for thread in threads:
        thread.start()
    assert httpx.get(f"{url}/health", timeout=20).status_code == 200
    for thread in threads:
        thread.join()
    assert sorted(answers) == sorted(f"one two three number {number} " for number in range(60))


def test_an_adapter_that_is_missing_is_named_before_anything_starts() -> None:
    with pytest.raises(ModelError, match="no-such-adapter"):
        build_app(ServeConfig(adapter="no-such-adapter"))
    with pytest.raises(ModelError, match="no-such-adapter"):
        build_app(ServeConfig(models={"good": {"adapter": "pasta"}, "bad": {"adapter": "no-such-adapter"}}))
