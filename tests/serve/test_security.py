"""Keys, limits and origins in front of the routes; and what a checkpoint may not do."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pasta_ray.cli import main
from pasta_ray.engine.config import EngineConfig
from pasta_ray.engine.tokenizer import Tokenizer
from pasta_ray.engine.weights import load_checkpoint
from pasta_ray.errors import InputError, ModelError
from pasta_ray.serve import security
from pasta_ray.serve.config import API_KEYS_VARIABLE, ServeConfig, read_config
from pasta_ray.serve.http import create_app
from pasta_ray.serve.schema import ChatBody, CompletionBody
from pasta_ray.serve.security import RateLimit, RateLimitError, check_exposure, is_loopback, key_digest, read_keys
from pasta_ray.serve.service import Service
from tests.engine.conftest import save_model
from tests.engine.test_tokenizer import save_tokenizer
from tests.fakes import FakeTokenizer, fake_models
from tests.serve.test_http import LocalBackend, chat

KEY = "a-key-that-is-long-enough"
KEYS = frozenset({key_digest(KEY)})
BEARER = {"Authorization": f"Bearer {KEY}"}
CHAT = "/v1/chat/completions"


def ask(
    *asked: dict[str, Any],
    keys: frozenset[str] = frozenset(),
    host: str = "127.0.0.1",
    backend: LocalBackend | None = None,
    **config: Any,
) -> list[httpx.Response]:
    """The responses to requests, given as httpx takes them, one after the other, from a client at ``host``."""

    async def scenario() -> list[httpx.Response]:
        served = ServeConfig(**config)
        service = Service(served, fake_models(served), backend or LocalBackend(), FakeTokenizer())
        app = create_app(service, keys)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False, client=(host, 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return [await client.request(**({"method": "POST", "url": CHAT} | each)) for each in asked]

    return asyncio.run(scenario())


def one(
    keys: frozenset[str] = frozenset(), host: str = "127.0.0.1", config: Any = None, **asked: Any
) -> httpx.Response:
    (response,) = ask(asked, keys=keys, host=host, **(config or {}))
    return response


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": KEY},
        {"Authorization": f"Basic {KEY}"},
        {"Authorization": "Bearer "},
        {"Authorization": b"Bearer \xff\xfe"},
        {"Authorization": f"Bearer {key_digest(KEY)}"},
    ],
)
def test_without_a_right_key_nothing_is_answered(headers: dict[str, Any]) -> None:
    """Guards every route but the one for load balancers, this machine too; a digest out of the file is no key."""
    for asked in ({"json": chat("x")}, {"method": "GET", "url": "/v1/models"}, {"method": "GET", "url": "/docs"}):
        response = one(KEYS, headers=headers, **asked)
        error = response.json()["error"]
        assert (response.status_code, error["code"]) == (401, "invalid_api_key")
        assert response.headers["WWW-Authenticate"] == "Bearer"
        assert KEY not in response.text
    assert one(KEYS, method="GET", url="/health", headers=headers).status_code == 200


def test_with_a_key_every_machine_is_answered() -> None:
    assert one(KEYS, "203.0.113.7", json=chat("x"), headers=BEARER).status_code == 200
    assert one(KEYS, "203.0.113.7", json=chat("x"), headers={"authorization": f"bearer  {KEY}"}).status_code == 200


def test_without_keys_only_this_machine_is_answered() -> None:
    """Guards a service that came to listen on another address, however it was deployed."""
    response = one(host="203.0.113.7", json=chat("x"))
    assert (response.status_code, response.json()["error"]["code"]) == (403, "keys_needed")
    assert one(host="::1", json=chat("x")).status_code == 200
    assert one(host="203.0.113.7", json=chat("x"), config={"allow_without_keys": True}).status_code == 200


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True), ("127.1.2.3", True), ("localhost", True), ("::1", True), ("::ffff:127.0.0.1", True),
        ("0.0.0.0", False), ("::", False), ("10.0.0.1", False), ("::ffff:10.0.0.1", False), ("", False),
        ("localhost.example.org", False),
    ],
)  # fmt: skip
def test_which_hosts_are_this_machine(host: str, loopback: bool) -> None:
    assert is_loopback(host) == loopback


def test_serving_other_machines_without_keys_is_refused_before_anything_starts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(API_KEYS_VARIABLE, raising=False)
    with pytest.raises(SystemExit) as raised:
        main(["serve", "--host", "0.0.0.0"])
    assert raised.value.code == 2
    assert "host 0.0.0.0 is not loopback, and there are no API keys; allowed: " in capsys.readouterr().err
    check_exposure("0.0.0.0", ServeConfig(), KEYS)
    check_exposure("0.0.0.0", ServeConfig(allow_without_keys=True), frozenset())
    check_exposure("127.0.0.1", ServeConfig(), frozenset())


def test_keys_come_hashed_from_a_file_and_plain_from_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    digest = hashlib.sha256(b"first").hexdigest()
    file.write_text(f"# who has one\n\n{digest}  the first team\n")
    assert read_keys(file, {}) == {digest}
    assert read_keys(file, {API_KEYS_VARIABLE: f"{KEY},"}) == {digest, key_digest(KEY)}
    assert read_keys(None, {}) == frozenset()
    file.write_text(f"{digest}\nplain-key\n")
    with pytest.raises(InputError, match=r"keys:2: not a sha256") as raised:
        read_keys(file, {})
    assert "plain-key" not in str(raised.value)
    file.write_text("# none\n")
    with pytest.raises(InputError, match="holds no key"):
        read_keys(file, {})
    with pytest.raises(InputError, match="api_keys_file: "):
        read_keys(tmp_path / "absent", {})
    with pytest.raises(InputError, match="key 2 has 5 characters; allowed: 16 or more"):
        read_keys(None, {API_KEYS_VARIABLE: f"{KEY},short"})


def test_one_request_too_many_hears_when_to_come_back() -> None:
    now = 0.0
    limit = RateLimit(3, lambda: now)
    for _ in range(3):
        limit.take("a")
    with pytest.raises(RateLimitError) as raised:
        limit.take("a")
    assert raised.value.retry_after_s == pytest.approx(20.0)
    limit.take("b")
    now = 19.0
    with pytest.raises(RateLimitError):
        limit.take("a")
    now = 20.5
    limit.take("a")
    with pytest.raises(RateLimitError):
        limit.take("a")


def test_callers_without_number_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(security, "MAX_CALLERS", 10)
    limit = RateLimit(1, lambda: 0.0)
    for caller in range(100):
        limit.take(str(caller))
    assert len(limit._levels) == 10


def test_the_rate_is_a_callers_own() -> None:
    """Guards one caller against another's haste; questions that cost nothing are not counted."""
    other = "another-key-long-enough"
    asked = [{"json": chat("x"), "headers": BEARER}] * 3
    asked += [{"method": "GET", "url": "/v1/models", "headers": BEARER}]
    asked += [{"json": chat("x"), "headers": {"Authorization": f"Bearer {other}"}}]
    responses = ask(*asked, keys=KEYS | {key_digest(other)}, requests_per_minute=2)
    assert [response.status_code for response in responses] == [200, 200, 429, 200, 200]
    error = responses[2].json()["error"]
    assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    assert 1 <= int(responses[2].headers["Retry-After"]) <= 30


async def in_pieces(content: bytes, pause_s: float = 0.0) -> AsyncIterator[bytes]:
    for at in range(0, len(content), 500):
        await asyncio.sleep(pause_s)
        yield content[at : at + 500]


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_beyond_the_limit_is_not_read(chunked: bool) -> None:
    """Guards memory, also against a client that does not say how much is coming."""
    content = json.dumps(chat("x" * 5000)).encode()
    sent: Any = in_pieces(content) if chunked else content
    headers = {"Content-Type": "application/json"}
    response = one(content=sent, headers=headers, config={"max_body_bytes": 2000})
    assert response.status_code == 413
    assert "the body is too large; allowed: up to 2000 bytes" in response.json()["error"]["message"]
    fits = json.dumps(chat("x" * 1000)).encode()
    assert one(content=fits, headers=headers, config={"max_body_bytes": 2000}).status_code == 200


def test_a_body_that_takes_for_ever_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against clients that hold a connection by a byte at a time."""
    monkeypatch.setattr(security, "BODY_TIMEOUT_S", 0.2)
    content = json.dumps(chat("x" * 5000)).encode()
    response = one(content=in_pieces(content, 0.1), headers={"Content-Type": "application/json"})
    assert response.status_code == 408
    assert "longer than 0.2 s" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 100_000,
        b"\xff\xfe\x00",
        b'{"model": "\\ud800"}',
        b"null",
        b"NaN",
        b'{"\\ud800": 1}',
        b'{"a":' * 5000,
        b"",
        b"1e999",
    ],
    ids=lambda content: repr(content[:12]),
)
def test_hostile_bodies_are_refused_with_a_clear_error(content: bytes) -> None:
    response = one(content=content, headers={"Content-Type": "application/json"})
    assert response.status_code in (400, 404)
    assert response.json()["error"]["message"]


def test_random_bodies_never_bring_the_service_down() -> None:
    """Guards against a 500, or an answer that is no JSON, for any value of any field."""
    values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
        max_leaves=4,
    )
    names = sorted(ChatBody.model_fields | CompletionBody.model_fields)
    bodies = st.dictionaries(st.sampled_from(names) | st.text(max_size=5), values, max_size=3)
    seen: set[int] = set()
    backend = LocalBackend()

    @settings(max_examples=12, deadline=None, derandomize=True, database=None)
    @given(st.lists(bodies, min_size=5, max_size=5))
    def attack(bodies: list[dict[str, Any]]) -> None:
        sound = [chat("x") | body for body in bodies] + [{"model": "smollm2-pasta", "prompt": "x"} | b for b in bodies]
        urls = [CHAT] * 5 + ["/v1/completions"] * 5
        headers = {"Content-Type": "application/json"}
        asked = [{"url": u, "content": json.dumps(b), "headers": headers} for u, b in zip(urls, sound, strict=True)]
        for response in ask(*asked, backend=backend):
            seen.add(response.status_code)
            if not response.headers["content-type"].startswith("text/event-stream"):
                assert response.json()
            assert response.status_code in (200, 400, 404)

    attack()
    assert {200, 400} <= seen
    assert backend.loop.stats().num_slots == 0


@pytest.mark.parametrize("text", ["\ud800", "tag <|promise|>\udfff"])
def test_a_lone_surrogate_is_no_character(text: str) -> None:
    """Guards what JSON can carry and UTF-8 cannot: in prompts, stop strings and names."""
    for body in (chat("x", stop=text), chat("x", user=text), chat("x") | {"model": text}, chat("x", colour=text)):
        response = one(content=json.dumps(body).encode(), headers={"Content-Type": "application/json"})
        assert response.status_code in (200, 400, 404)
        assert response.json()


def test_pages_of_other_sites_are_kept_out_unless_they_are_allowed() -> None:
    """Guards the user of a local service from a site that he visits: neither read nor used."""
    site = {"Origin": "https://example.org"}
    closed = one(json=chat("x"), headers=site)
    assert closed.status_code == 403
    assert "access-control-allow-origin" not in closed.headers
    assert one(json=chat("x"), headers={"Origin": "http://127.0.0.1:8000"}).status_code == 200
    for origin in ("null", "http://[", "", "http://localhost.example.org"):
        assert one(json=chat("x"), headers={"Origin": origin}).status_code == 403
    preflight = {**site, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    assert "access-control-allow-origin" not in one(method="OPTIONS", headers=preflight).headers
    allowed = {"cors_origins": ["https://example.org"]}
    for keys in (frozenset(), KEYS):
        answer = one(keys, json=chat("x"), headers=site | BEARER, config=allowed)
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, "https://example.org")
        asked = one(keys, method="OPTIONS", headers=preflight, config=allowed)
        assert (asked.status_code, asked.headers["access-control-allow-origin"]) == (200, "https://example.org")
    refused = one(KEYS, json=chat("x"), headers=site, config=allowed)
    assert refused.headers["access-control-allow-origin"] == "https://example.org", "so that the page can read why"
    with pytest.raises(InputError, match=r"cors_origins\.0"):
        read_config(None, {"cors_origins": ["example.org/path"]})


CODE = "from pathlib import Path\nPath(__file__).with_name('executed').touch()\n"


@pytest.mark.parametrize("which", ["model", "tokenizer"])
def test_code_in_a_checkpoint_is_never_run(which: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a checkpoint that brings its own Python: it is refused, at once and without a question."""
    monkeypatch.setattr("builtins.input", None)
    folder = save_tokenizer(save_model(tmp_path / "model"))
    (folder / "code.py").write_text(CODE)
    name, auto_map = {
        "model": ("config.json", {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}),
        "tokenizer": ("tokenizer_config.json", {"AutoTokenizer": ["code.Tokenizer", "code.Tokenizer"]}),
    }[which]
    content = json.loads((folder / name).read_text()) | {"auto_map": auto_map}
    content |= {"model_type": "homemade"} if which == "model" else {"tokenizer_class": "Homemade"}
    (folder / name).write_text(json.dumps(content))
    with pytest.raises(ModelError, match=r"custom code|homemade|Homemade"):
        load_checkpoint(EngineConfig(model=str(folder))) if which == "model" else Tokenizer.load(folder, None)
    assert not list(tmp_path.rglob("executed"))


def test_weights_are_never_unpickled(tmp_path: Path) -> None:
    """Guards against a checkpoint whose weights are a program."""
    folder = save_model(tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"no \*.safetensors file"):
        load_checkpoint(EngineConfig(model=str(folder)))
