"""One id from HTTP to each branch, and what the service counts of its clients."""

import json
import logging
from collections import Counter
from typing import Any

import httpx
import pytest

from pasta_ray.errors import OverloadedError
from pasta_ray.logs import JsonFormatter
from pasta_ray.serve.config import ServeConfig
from pasta_ray.serve.http import create_app
from pasta_ray.serve.metrics import Served, merged_pages
from pasta_ray.serve.service import Service
from tests.fakes import FakeTokenizer, fake_models
from tests.serve.test_http import LocalBackend, chat


class Counting:
    def __init__(self) -> None:
        self.responses: Counter[tuple[str, int]] = Counter()
        self.answers: list[tuple[str, str, str, Served]] = []

    def response(self, path: str, status: int) -> None:
        self.responses[path, status] += 1

    def answer(self, model: str, method: str, outcome: str, served: Served) -> None:
        self.answers.append((model, method, outcome, served))


async def metrics_page() -> str:
    return "ray_pasta_x 1\n"


def client(meter: Counting, backend: LocalBackend | None = None, **options: Any) -> httpx.AsyncClient:
    settings = ServeConfig(adapter="pasta")
    service = Service(settings, fake_models(settings), backend or LocalBackend(), FakeTokenizer(), meter)
    app = create_app(service, metrics=metrics_page, **options)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://test")


CHAT = "/v1/chat/completions"


async def test_one_id_from_the_clients_header_to_each_branchs_line(caplog: pytest.LogCaptureFixture) -> None:
    """Guards who follows one request through processes: every line that it causes names it, as JSON."""
    with caplog.at_level(logging.DEBUG, "pasta_ray"):
        async with client(Counting()) as http:
            response = await http.post(CHAT, json=chat("hello fork end"), headers={"x-request-id": "mine-1"})
            await http.post(CHAT, json=chat("other"))
    assert response.headers["x-request-id"] == "mine-1"
    lines = [json.loads(JsonFormatter().format(each)) for each in caplog.records if each.name.startswith("pasta_ray.")]
    mine = [line for line in lines if line.get("trace") == "mine-1"]
    messages = [line["message"] for line in mine]
    assert messages == ["asked", "branch opened", "branch closed", "decoded", "answered", "response"]
    assert mine[1] | {"branch": "0.1", "topic": "topic 0.1", "tokens": 10, "replica": "local"} == mine[1]
    assert {line["request"] for line in mine if "request" in line} == {response.json()["id"]}
    assert mine[4]["outcome"] == "stop"
    others = {line["trace"] for line in lines} - {"mine-1"}
    assert len(others) == 1


@pytest.mark.parametrize("told", ["", "a b", "x" * 129, "é".encode(), '{"a":1}'])
async def test_an_id_that_could_mislead_is_replaced(told: str | bytes) -> None:
    async with client(Counting()) as http:
        given = (await http.get("/v1/models", headers=[(b"x-request-id", told)])).headers["x-request-id"]  # type: ignore[list-item]
    assert given != told
    assert len(given) == 32


async def test_behind_serve_its_proxy_returns_the_id() -> None:
    """Guards against the header twice in an answer, which clients join to one value."""
    async with client(Counting(), behind_serve=True) as http:
        assert "x-request-id" not in (await http.get("/v1/models")).headers


async def test_responses_and_answers_are_counted_as_they_ended() -> None:
    meter = Counting()
    async with client(meter) as http:
        assert (await http.post(CHAT, json=chat("hello fork end"))).status_code == 200
        assert (await http.post(CHAT, json=chat("crash"))).status_code == 500
        assert (await http.post(CHAT, json={})).status_code == 400
        assert (await http.get("/nowhere")).status_code == 404
        assert (await http.get("/elsewhere")).status_code == 404
    async with client(meter, LocalBackend(OverloadedError("full"))) as http:
        assert (await http.post(CHAT, json=chat("a"))).status_code == 429
    assert meter.responses == {(CHAT, 200): 1, (CHAT, 500): 1, (CHAT, 400): 1, ("other", 404): 2, (CHAT, 429): 1}
    assert [outcome for _, _, outcome, _ in meter.answers] == ["stop", "StepError", "OverloadedError"]
    served = meter.answers[0][3]
    assert served.ttft_s is not None
    assert 0 < served.ttft_s <= served.wall_s
    assert served.num_tokens == 6


def test_the_time_of_a_token_leaves_the_first_one_out() -> None:
    assert Served(0.5, 2.5, 5).token_s == 0.5
    assert Served(None, 2.5, 0).token_s is None
    assert Served(0.5, 0.5, 1).token_s is None


async def test_the_metrics_page_is_text_for_prometheus() -> None:
    async with client(Counting()) as http:
        response = await http.get("/metrics")
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert response.text == "ray_pasta_x 1\n"


def test_pages_of_several_nodes_are_one_valid_page() -> None:
    """Guards Prometheus against a family in two places, which it refuses, and others' metrics on our page."""
    head = "# HELP ray_pasta_ttft_seconds Seconds.\n# TYPE ray_pasta_ttft_seconds histogram\n"
    other = "# HELP ray_tasks t\n# TYPE ray_tasks gauge\nray_tasks 5\n"
    one = f'{other}{head}ray_pasta_ttft_seconds_bucket{{le="1"}} 2\nray_pasta_ttft_seconds_count 2\n'
    two = f'{head}ray_pasta_ttft_seconds_bucket{{le="1",n="2"}} 3\nray_pasta_ttft_seconds_count{{n="2"}} 3\n{other}'
    assert merged_pages([one, "# 10.0.0.9:1: ConnectError: no", two]).splitlines() == [
        "# 10.0.0.9:1: ConnectError: no",
        "# HELP ray_pasta_ttft_seconds Seconds.",
        "# TYPE ray_pasta_ttft_seconds histogram",
        'ray_pasta_ttft_seconds_bucket{le="1"} 2',
        "ray_pasta_ttft_seconds_count 2",
        'ray_pasta_ttft_seconds_bucket{le="1",n="2"} 3',
        'ray_pasta_ttft_seconds_count{n="2"} 3',
    ]
