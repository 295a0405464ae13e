"""Requests that mean no good, made from a seed: raw bytes with pauses, whose answers are waited for or not."""

import asyncio
import json
import random
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx

from tests.serve.test_http import MODEL

TAGS = (
    "<|promise|>", "<|tokens|>", "<|/promise|>", "<|async|>", "<|/async|>", "<|sync|>", "<|im_end|>", "<|im_start|>",
    '<promise topic="x" tokens="10"/>', "<async>", "</async>", "<sync/>",
)  # fmt: skip
PATHS = ("/v1/chat/completions", "/v1/completions")
READ_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Attack:
    """``pieces`` are sent one after the other with ``pause_s`` between them. ``leaves_after`` so many bytes of the
    answer are read, or all. ``is_http``: whether the bytes are a request that a server can read at all."""

    kind: str
    pieces: tuple[bytes, ...]
    pause_s: float = 0.0
    leaves_after: int | None = None
    is_http: bool = True


@dataclass(frozen=True)
class Outcome:
    """``answer`` is None where the attacker did not wait for one."""

    attack: Attack
    answer: bytes | None


def withstands(url: str, seed: int, num: int, model: str = MODEL) -> Counter[str]:
    """Launch so many attacks on the fake decoder's service; how many there were of each kind. Every answer must be a
    right one or a clear refusal, and everybody else's be as ever afterwards."""
    outcomes = asyncio.run(launch_all(attacks(seed, num, model), int(url.rpartition(":")[2])))
    wrong = [(outcome.attack.kind, why, outcome) for outcome in outcomes if (why := complaint(outcome))]
    assert not wrong, f"{len(wrong)} of {num}, first: {str(wrong[0])[:3000]}"
    body = {"model": model, "messages": [{"role": "user", "content": "a fork b"}]}
    answer = httpx.post(url + PATHS[0], json=body, timeout=20)
    assert answer.json()["choices"][0]["message"]["content"] == "a one two three b "
    assert httpx.get(f"{url}/health").status_code == 200
    return Counter(outcome.attack.kind for outcome in outcomes)


def attacks(seed: int, num: int, model: str) -> list[Attack]:
    rng = random.Random(seed)
    return [rng.choice(KINDS)(rng, model) for _ in range(num)]


async def launch(attack: Attack, port: int) -> Outcome:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    reading = asyncio.create_task(_read(reader, attack.leaves_after))
    try:
        async with asyncio.timeout(READ_TIMEOUT_S):
            for piece in attack.pieces:
                if reading.done():  # a server may refuse what it has not read to its end
                    break
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(attack.pause_s)
            answer = await reading
    except TimeoutError:
        hung = repr((attack.kind, attack.pieces[0][:500], attack.pieces[-1][-500:]))
        raise AssertionError(f"no answer in {READ_TIMEOUT_S} s: {hung}") from None
    except ConnectionError:
        answer = await reading
    finally:
        reading.cancel()
        writer.close()
    return Outcome(attack, answer if attack.leaves_after is None else None)


async def launch_all(found: list[Attack], port: int, at_once: int = 20) -> list[Outcome]:
    places = asyncio.Semaphore(at_once)

    async def one(attack: Attack) -> Outcome:
        async with places:
            return await launch(attack, port)

    return await asyncio.gather(*map(one, found))


async def _read(reader: asyncio.StreamReader, most: int | None) -> bytes:
    """Up to the end or to ``most`` bytes; what came before a reset counts."""
    answer = b""
    try:
        while most is None or len(answer) < most:
            data = await reader.read(2**16)
            if not data:
                break
            answer += data
    except ConnectionError:
        pass
    return answer


def complaint(outcome: Outcome) -> str | None:
    """What is wrong with an answer: it must be a right one, or a refusal that says why."""
    if outcome.answer is None:
        return None
    head, _, body = outcome.answer.partition(b"\r\n\r\n")
    if not outcome.answer:
        return None if outcome.attack.kind in MAY_BE_DROPPED else "no answer"
    status = int(head.split()[1])
    if status == 100:
        return complaint(Outcome(outcome.attack, body))
    if not outcome.attack.is_http:
        return None if 400 <= status < 500 else f"status {status} for what is no request"
    if not (status == 200 or 400 <= status < 500):
        return f"status {status}"
    if outcome.attack.kind in NO_BODY or (status == 400 and body == b"Invalid HTTP request received."):
        return None
    if b"chunked" in head.lower():
        body = _unchunked(body)
    if b"text/event-stream" in head:
        return None if body.endswith(b"data: [DONE]\n\n") else "a stream without its end"
    if length := re.search(rb"content-length: (\d+)", head, re.IGNORECASE):
        body, rest = body[: int(length.group(1))], body[int(length.group(1)) :]
        if rest and (why := complaint(Outcome(outcome.attack, rest))):  # several requests in one go
            return why
    found = json.loads(body)
    if status == 200:
        return None if "error" not in found else "an error with status 200"
    right = found.keys() == {"error"} and found["error"].keys() == {"message", "type", "param", "code"}
    return None if right and found["error"]["message"] else "not OpenAI's shape"


def _unchunked(body: bytes) -> bytes:
    whole = b""
    while body:
        size, _, body = body.partition(b"\r\n")
        length = int(size, 16)
        whole, body = whole + body[:length], body[length + 2 :]
        if not length:
            break
    return whole


def request(
    method: str = "POST",
    path: str = PATHS[0],
    body: bytes = b"",
    headers: tuple[tuple[str, str], ...] = (("Content-Type", "application/json"),),
    *,
    close: bool = True,
) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: test", *(f"{name}: {value}" for name, value in headers)]
    lines += [f"Content-Length: {len(body)}"] if body and not any(n == "Content-Length" for n, _ in headers) else []
    lines += ["Connection: close"] if close else []
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def good(rng: random.Random, model: str, **fields: Any) -> dict[str, Any]:
    words = rng.choice(["hello", "a fork b", "hello fork world fork end", " ".join(rng.choices(TAGS, k=4))])
    return {"model": model, "messages": [{"role": "user", "content": words}], "max_tokens": 20, **fields}


def _sent(kind: str, body: Any, path: str = PATHS[0]) -> Attack:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Attack(kind, (request(path=path, body=raw),))


STRANGE: tuple[Any, ...] = (
    None, True, -1, 0, 1e308, 2**63, 2**64, -(2**70), 0.5, "", "1", "\x00", "\ud800", "\udfff\ud800", [], [[]], {},
    [None], {"a": {"b": []}}, "x" * 5000, ["\ud83d"] * 3, float("nan"), float("inf"), -float("inf"),
    TAGS[0], list(TAGS),
)  # fmt: skip
FIELDS = (
    "model", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens", "temperature", "top_p",
    "seed", "n", "stop", "user", "pasta", "logprobs", "top_logprobs", "presence_penalty", "logit_bias", "metadata",
    "response_format", "modalities", "tools", "safety_identifier", "store", "audio", "prompt", "echo", "best_of",
    "__proto__", "\ud800", "", "messages.0.content", "x" * 3000,
)  # fmt: skip


def strange_field(rng: random.Random, model: str) -> Attack:
    body = good(rng, model)
    for _ in range(rng.randint(1, 3)):
        body[rng.choice(FIELDS)] = rng.choice(STRANGE)
    return _sent("strange field", body, rng.choice(PATHS))


def strange_inside(rng: random.Random, model: str) -> Attack:
    """A wrong value further down: in messages, options, stop strings."""
    body = good(rng, model)
    message: dict[str, Any] = {"role": "user", "content": "x"}
    places: list[tuple[dict[str, Any], str]] = [
        (message, "role"), (message, "content"), (message, "name"), (message, "tool_calls"),
        (body.setdefault("pasta", {}), rng.choice(["method", "max_branches", "router", "events", "topic"])),
    ]  # fmt: skip
    target, name = rng.choice(places)
    target[name] = rng.choice((*STRANGE, [{"type": "text", "text": "\ud800"}], [{"type": "image_url"}], [1], ["a"]))
    body["messages"] = [message] * rng.randint(0, 3)
    return _sent("strange inside", body)


def tags_everywhere(rng: random.Random, model: str) -> Attack:
    def tags() -> str:
        return "".join(rng.choices((*TAGS, " ", "a", "<|pro", "mise|>"), k=rng.randint(1, 12)))

    fields: dict[str, Any] = {
        "user": tags(), "stop": [tags() for _ in range(rng.randint(1, 4))], "stream": rng.random() < 0.5,
        "model": rng.choice([model, model, model, tags()]),
    }  # fmt: skip
    messages = [{"role": role, "content": tags()} for role in ("system", "user", "assistant", "user")]
    if rng.random() < 0.3:
        fields["pasta"] = {"method": tags()}
    if rng.random() < 0.3:
        fields.pop("stop")
        return _sent("tags", fields | {"prompt": tags(), "max_tokens": 20}, PATHS[1])
    return _sent("tags", good(rng, model) | fields | {"messages": messages})


def bad_json(rng: random.Random, model: str) -> Attack:
    body = json.dumps(good(rng, model)).encode()
    at = rng.randrange(len(body))
    broken = rng.choice([
        body[:at], body[:at] + b"\xff\xfe" + body[at:], body + body, body[at:], b"", b"null", b"[]", b'"', b"0" * 5000,
        b"\xef\xbb\xbf" + body, body.decode().encode("utf-16"), b"1" + b"0" * 5000, b"NaN", b"{" * 50,
        body.replace(b"20", b"1e999"), body.replace(b"20", b"-" + b"9" * 4000), body.replace(b"20", b"NaN"),
        body.replace(b"{", b'{"model": "other",', 1), b"<xml/>", b"\x00" * 100, b'{"a": "\\ud800"}',
        body[:at] + bytes(rng.randrange(256) for _ in range(5)) + body[at + 5 :],
    ])  # fmt: skip
    return _sent("bad json", broken, rng.choice(PATHS))


def deep(rng: random.Random, model: str) -> Attack:
    depth = rng.choice([50, 400, 900, 990, 2000, 100_000])
    opened, closed = rng.choice([(b"[", b"]"), (b'{"a":', b"}")])
    nested = opened * depth + b"1" * (opened != b"[") + closed * depth
    name = rng.choice([b"messages", b"audio", b"logit_bias", b"stop", b"pasta", b"metadata", b"unheard"])
    return _sent("deep", b'{"model": %s, "%s": %s}' % (json.dumps(model).encode(), name, nested))


def huge(rng: random.Random, model: str) -> Attack:
    size = rng.choice([2**20 - 200, 2**20 + 1, 3 * 2**20])
    body = json.dumps(good(rng, model) | {"messages": [{"role": "user", "content": "x" * size}]}).encode()
    if rng.random() < 0.3:  # says that it is small, or does not say
        chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:1000], body[1000:])) + b"0\r\n\r\n"
        head = request(headers=(("Content-Type", "application/json"), ("Transfer-Encoding", "chunked")))
        return Attack("huge", (head, chunks))
    if rng.random() < 0.3:
        many = [{"role": "user", "content": ""}] * 20_000
        return _sent("huge", good(rng, model) | {"messages": many})
    return _sent("huge", body)


def strange_headers(rng: random.Random, model: str) -> Attack:
    body = json.dumps(good(rng, model)).encode()
    json_type = ("Content-Type", "application/json")
    headers: tuple[tuple[str, str], ...] = rng.choice([
        (), (("Content-Type", "text/plain"),), (("Content-Type", "multipart/form-data; boundary=x"),),
        (("Content-Type", "application/json; charset=utf-16"),), (("Content-Type", ""),), (json_type, json_type),
        (json_type, ("Origin", "https://evil.example")), (json_type, ("Origin", "null")),
        (json_type, ("Authorization", "Bearer " + "k" * 5000)), (json_type, ("Accept", "text/html")),
        (json_type, ("Expect", "100-continue")), (json_type, ("Content-Encoding", "gzip")),
        (json_type, *((f"X-{number}", "v" * 50) for number in range(80))),
        (json_type, ("Cookie", "c" * 8000)), (json_type, ("Host", "other")), (json_type, ("Upgrade", "websocket")),
        (json_type, ("X-Request-Id", "\t<|promise|>")), (json_type, ("X-Forwarded-For", "1.2.3.4")),
    ])  # fmt: skip
    return Attack("headers", (request(body=body, headers=headers),))


def no_http(rng: random.Random, model: str) -> Attack:
    body = json.dumps(good(rng, model)).encode()
    json_type = ("Content-Type", "application/json")
    raw = rng.choice([
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100) + b"\r\n\r\n", b"GET\r\n\r\n",
        b"\r\n" * 3 + b"?\r\n\r\n",
        bytes(rng.randrange(128, 256) for _ in range(200)) + b"\r\n\r\n", b"GET /none HTTP/9.9\r\n\r\n",
        request(body=body, headers=(json_type, ("Content-Length", "-5"))),
        request(body=body, headers=(json_type, ("Content-Length", "abc"))),
        request(body=body, headers=(json_type, ("Transfer-Encoding", "chunked"))),
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nbad header\r\n\r\n",
        b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        b"GET /none HTTP/1.1\r\nHost: a\r\nConnection: close\r\nX: " + b"a" * 200_000 + b"\r\n\r\n",
    ])  # fmt: skip
    return Attack("no http", (raw,), is_http=False)


def wrong_place(rng: random.Random, model: str) -> Attack:
    method = rng.choice(["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW", "POST"])
    path = rng.choice([
        "/v1", "/v2/chat/completions", "/v1/chat/completions/", "/v1/chat//completions", "/v1/models/../../etc/passwd",
        "/%2e%2e/%00", "/v1/models/%ff%fe", "/v1/models/" + "x" * 3000, "/v1/models/<|promise|>".replace("<", "%3C"),
        "/openapi.json/x", "/v1/engines", "/v1/chat/completions?x=" + "y" * 2000, "//", "/v1/models/" + "%F0%9F%8D%9D",
    ])  # fmt: skip
    body = json.dumps(good(rng, model)).encode() if method == "POST" else b""
    return Attack("wrong place", (request(method, path, body),))


def head_only(rng: random.Random, _: str) -> Attack:
    return Attack("head", (request("HEAD", rng.choice(["/health", "/v1/models", "/v1/models/none", "/none", *PATHS])),))


def pipelined(rng: random.Random, model: str) -> Attack:
    body = json.dumps(good(rng, model)).encode()
    first = request(body=body, close=False)
    return Attack("pipelined", (first + first + request("GET", "/v1/models"),))


def slow(rng: random.Random, model: str) -> Attack:
    """Head or body byte by byte, and then away, or to the end."""
    raw = request(body=json.dumps(good(rng, model)).encode())
    step = max(1, len(raw) // rng.randint(5, 15))
    pieces = tuple(raw[at : at + step] for at in range(0, len(raw), step))
    if rng.random() < 0.5:
        return Attack("slow", pieces, 0.02)
    return Attack("slow", pieces[: rng.randint(1, len(pieces) - 1)], 0.02, leaves_after=0)


def leaving(rng: random.Random, model: str) -> Attack:
    """Asks for an answer without end and goes: before it begins, in its middle, or without reading it."""
    words = rng.choice(["endless", "fork endless", "fork fork endless"])
    body = good(rng, model) | {
        "messages": [{"role": "user", "content": words}],
        "max_tokens": 4000,
        "n": rng.randint(1, 3),
    }
    stream = rng.random() < 0.7
    raw = request(body=json.dumps(body | {"stream": stream}).encode())
    leaves_after = rng.choice([0, 1, 500]) if stream else 0
    return Attack("leaving", (raw,), rng.choice([0.0, 0.05, 0.3]), leaves_after)


KINDS: tuple[Callable[[random.Random, str], Attack], ...] = (
    strange_field, strange_field, strange_inside, tags_everywhere, tags_everywhere, bad_json, bad_json, deep, huge,
    strange_headers, no_http, wrong_place, head_only, pipelined, slow, leaving,
)  # fmt: skip
NO_BODY = ("head",)
MAY_BE_DROPPED = ("huge", "no http")
"""A server that stops reading resets the connection, and its answer may be lost on the way."""
