"""Answers of an endpoint, over real HTTP: our own server, one of another make, and ones that fail."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import uvicorn
from fastapi import FastAPI, Response
from fastapi.responses import StreamingResponse

from pasta_ray.engine.messages import Report, Sampling
from pasta_ray.errors import InputError
from pasta_ray.eval.local import LocalAnswerer
from pasta_ray.eval.plan import EvalPlan, System
from pasta_ray.eval.prompts import Prompt
from pasta_ray.eval.run import Task
from pasta_ray.eval.served import Everywhere, ServedAnswerer
from pasta_ray.serve.config import ServeConfig
from pasta_ray.serve.http import create_app
from pasta_ray.serve.service import Service
from pasta_ray.train.endpoint import EndpointError
from tests.fakes import FakeTokenizer, fake_models
from tests.serve.test_http import MODEL, LocalBackend
from tests.train.endpoints import Chat, free_port, serving


@contextmanager
def hosted(app: FastAPI) -> Iterator[str]:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
        thread = threading.Thread(target=server.run, args=([bound],), daemon=True)
        bound.listen()
        thread.start()
        try:
            yield f"http://127.0.0.1:{bound.getsockname()[1]}/v1"
        finally:
            server.should_exit = True
            thread.join(timeout=10)


def ask(system: System, instruction: str, sampling: Sampling = Sampling(), max_tokens: int = 50) -> Report:  # noqa: B008
    plan = EvalPlan(prompts="p.jsonl", systems=[system])
    answerer = Everywhere(LocalAnswerer(plan), ServedAnswerer(plan))
    return answerer.answer(Task(Prompt(id="p", instruction=instruction), system, 0), sampling, max_tokens)


def test_our_servers_report_comes_with_the_readers_clock() -> None:
    """Guards seconds that are the engine's own, without the way to the reader, and a method that nobody passes on."""
    settings, backend = ServeConfig(), LocalBackend()
    with hosted(create_app(Service(settings, fake_models(settings), backend, FakeTokenizer()))) as url:
        system = System(name="ours", method="pasta", model=MODEL, base_url=url, max_branches=3)
        report = ask(system, "a fork b", Sampling(0.5, 0.9, 7))
        with pytest.raises(InputError, match="refused"):
            ask(system, "refuse")
        with pytest.raises(EndpointError, match="answered with status 404"):
            ask(system.model_copy(update={"model": "unknown"}), "a")
    assert (report.id, report.method, report.finish_reason) == ("p#ours#0", "pasta", "stop")
    assert "one two three" in report.text
    assert report.parallel.num_promises == 1
    assert 0 < report.timing.ttft_s <= report.timing.wall_s
    (request, *_) = backend.requests
    assert (request.method, request.max_branches, request.max_tokens) == ("pasta", 3, 50)
    assert (request.sampling.temperature, request.sampling.seed) == (0.5, 7)


def events(*chunks: object) -> StreamingResponse:
    lines = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks]
    return StreamingResponse(iter([*lines, "data: [DONE]\n\n"]), media_type="text/event-stream")


def chunk(text: str | None = None, reason: str | None = None, **more: object) -> dict[str, object]:
    delta = {} if text is None else {"content": text}
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    envelope = {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "m", "choices": [choice]}
    return envelope | more


USAGE = chunk(choices=[], usage={"prompt_tokens": 4, "completion_tokens": 3, "total_tokens": 7})


def test_a_server_of_another_make_is_timed_and_counted() -> None:
    with serving(lambda _: events(chunk("two "), chunk("words"), chunk(None, "length"), USAGE)) as stub:
        system = System(name="x", method="sequential", model="m", base_url=stub.base_url, own_server=False)
        report = ask(system, "i")
    assert (report.text, report.finish_reason) == ("two words", "length")
    assert (report.usage.completion_tokens, report.parallel.critical_path) == (3, 3)
    assert report.parallel.theoretical_speedup == 1.0
    assert 0 < report.timing.ttft_s <= report.timing.wall_s
    assert "pasta" not in stub.requests[0]
    assert stub.requests[0]["stream_options"] == {"include_usage": True}
    assert "seed" not in stub.requests[0], "a greedy answer has none"


def test_an_answer_that_breaks_off_is_none() -> None:
    """Guards half an answer, or one without its tokens, in the figures."""
    replies = {
        "stop early": (events(chunk("two ")), "broke an answer off"),
        "no usage": (events(chunk("two "), chunk(None, "stop")), "counts no tokens"),
        "bad report": (events(chunk("two "), chunk(None, "stop", pasta={"id": 1})), "report cannot be read"),
        "error": (events(chunk("two "), {"error": {"message": "gone"}}), "broke an answer off: gone"),
        "broken": (Response("no", status_code=500), "answered with status 500"),
    }

    def reply(chat: Chat) -> Response:
        return replies[chat[-1]["content"]][0]

    with serving(reply) as stub:
        system = System(name="x", method="sequential", model="m", base_url=stub.base_url, own_server=False)
        for name, (_, message) in replies.items():
            with pytest.raises(EndpointError, match=message):
                ask(system, name)
    system = system.model_copy(update={"base_url": f"http://127.0.0.1:{free_port()}/v1"})
    with pytest.raises(EndpointError, match="cannot be reached"):
        ask(system, "i")


def test_what_is_the_servers_matter_is_refused() -> None:
    for changes, message in (
        ({"base_url": "http://x/v1", "adapter": "pasta"}, "do not go with base_url"),
        ({"own_server": False}, "go with base_url"),
        ({"base_url": "http://x/v1", "own_server": False, "method": "pasta"}, "another make"),
    ):
        with pytest.raises(ValueError, match=message):
            System.model_validate({"name": "x", "method": "sequential"} | changes)
