"""Programs as OpenAI's documentation and ours have them, run as they stand: only the address comes from outside."""

import asyncio
import gc
import json
import re
import subprocess
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.serve.listening import Listening, listening

ROOT = Path(__file__).parents[2]
OURS = "http://127.0.0.1:8000"
MODELS = {
    "smollm2-pasta": {"adapter": "pasta", "aliases": ["gpt-4o", "gpt-4o-mini", "gpt-3.5-turbo-instruct"]},
    "plain": {"adapter": None},
}


@pytest.fixture(scope="module")
def service() -> Iterator[Listening]:
    with listening(models=MODELS, requests_per_minute=1000) as service:
        yield service


@pytest.fixture(autouse=True)
def _surroundings(service: Listening, monkeypatch: pytest.MonkeyPatch) -> None:
    """What OpenAI's clients read from the environment."""
    monkeypatch.setenv("OPENAI_BASE_URL", f"{service.url}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-none")


CHAT = """
from openai import OpenAI

client = OpenAI()
completion = client.chat.completions.create(
    model="gpt-4o",
    messages=[
        {"role": "developer", "content": "You are a helpful assistant."},
        {"role": "user", "content": "Hello!"},
    ],
)
print(completion.choices[0].message.content)
print(completion.usage.total_tokens, completion.choices[0].finish_reason)
"""

PARTS = """
from openai import OpenAI

answer = OpenAI().chat.completions.create(
    model="gpt-4o-mini",
    messages=[
        {"role": "user", "content": [{"type": "text", "text": "Say this"}, {"type": "text", "text": " is a test"}]}
    ],
    max_completion_tokens=100,
    store=False,
)
print(answer.choices[0].message.content)
"""

STREAM = """
from openai import OpenAI

stream = OpenAI().chat.completions.create(
    model="gpt-4o", messages=[{"role": "user", "content": "Say fork this"}], stream=True
)
for chunk in stream:
    if chunk.choices[0].delta.content is not None:
        print(chunk.choices[0].delta.content, end="")
print()
"""

STREAM_EVENTS = """
from openai import OpenAI

with OpenAI().chat.completions.stream(
    model="gpt-4o", messages=[{"role": "user", "content": "Say fork this"}], logprobs=True
) as stream:
    for event in stream:
        if event.type == "content.delta":
            print(event.delta, end="")
        elif event.type == "content.done":
            print("|", event.content)
print(stream.get_final_completion().choices[0].finish_reason)
"""

ASYNCHRONOUS = """
import asyncio
from openai import AsyncOpenAI

client = AsyncOpenAI()

async def main() -> None:
    chat = await client.chat.completions.create(
        messages=[{"role": "user", "content": "Say this is a test"}], model="gpt-4o"
    )
    print(chat.choices[0].message.content)
    stream = await client.chat.completions.create(
        model="gpt-4o", messages=[{"role": "user", "content": "Say this"}], stream=True
    )
    async for chunk in stream:
        print(chunk.choices[0].delta.content or "", end="")
    print()

asyncio.run(main())
"""

LOGPROBS = """
from openai import OpenAI

answer = OpenAI().chat.completions.create(
    model="gpt-4o", messages=[{"role": "user", "content": "one word"}], logprobs=True, top_logprobs=2
)
for token in answer.choices[0].logprobs.content:
    print(token.token, token.logprob, [top.token for top in token.top_logprobs])
"""

COMPLETION = """
from openai import OpenAI

answer = OpenAI().completions.create(
    model="gpt-3.5-turbo-instruct", prompt="Say this is a test", max_tokens=7, temperature=0, logprobs=1
)
print(answer.choices[0].text, answer.choices[0].logprobs.token_logprobs[0])
"""

ERRORS = """
import openai
from openai import OpenAI

client = OpenAI(max_retries=0)
for ask in (
    lambda: client.fine_tuning.jobs.create(model="gpt-4o", training_file="file-abc123"),
    lambda: client.embeddings.create(model="text-embedding-3-small", input="hello"),
    lambda: client.chat.completions.create(model="gpt-9", messages=[{"role": "user", "content": "x"}]),
    lambda: client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "x"}], temperature=9),
):
    try:
        ask()
    except openai.APIConnectionError:
        print("the server could not be reached")
    except openai.RateLimitError:
        print("a 429 status code was received; back off a bit")
    except openai.APIStatusError as error:
        print(type(error).__name__, error.status_code, error.body["type"], error.param, error.code)
"""

RAW = """
from openai import OpenAI

client = OpenAI().with_options(timeout=20.0, max_retries=5)
response = client.chat.completions.with_raw_response.create(
    model="gpt-4o", messages=[{"role": "user", "content": "Say this"}]
)
print(response.status_code, response.headers["content-type"], response.parse().choices[0].message.content)
print([model.id for model in client.models.list()], client.models.retrieve("gpt-4o").id)
"""

PRINTED = {
    CHAT: ["Hello! ", "37 stop"],
    PARTS: ["Say this is a test "],
    STREAM: ["Say one two three this "],
    STREAM_EVENTS: ["Say one two three this | Say one two three this ", "stop"],
    ASYNCHRONOUS: ["Say this is a test ", "Say this "],
    LOGPROBS: [r"one  -1.0 ['\\xe2', 'the ']", r"word  -1.0 ['\\xe2', 'the ']"],
    COMPLETION: ["Say this is a test  -1.0"],
    ERRORS: [
        "NotFoundError 404 invalid_request_error None None",
        "NotFoundError 404 invalid_request_error None None",
        "NotFoundError 404 invalid_request_error model model_not_found",
        "BadRequestError 400 invalid_request_error temperature None",
    ],
    RAW: [
        "200 application/json Say this ",
        "['smollm2-pasta', 'plain', 'gpt-4o', 'gpt-4o-mini', 'gpt-3.5-turbo-instruct'] gpt-4o",
    ],
}


def run(program: str) -> None:
    """Programs in documentation do not close their clients."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        exec(compile(program, "example", "exec"), {})
        gc.collect()


@pytest.mark.parametrize("program", PRINTED, ids=range(len(PRINTED)))
def test_openais_programs(program: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Guards who only changes the base URL."""
    run(program)
    assert capsys.readouterr().out.splitlines() == PRINTED[program]


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / page).read_text()
    return [block for block in re.findall(rf"```{language}\n(.*?)```", text, re.S) if OURS in block]


@pytest.mark.parametrize("page", ["README.md", "docs/http.md"])
def test_our_own_python(page: str, service: Listening, capsys: pytest.CaptureFixture[str]) -> None:
    """Guards what stands on the pages against a service that has moved on."""
    found = blocks(page, "python")
    assert found
    for block in found:
        run(block.replace(OURS, service.url))
        assert capsys.readouterr().out


@pytest.mark.parametrize("page", ["README.md", "docs/http.md"])
def test_our_own_curl(page: str, service: Listening) -> None:
    commands = [block for block in blocks(page, "") if block.startswith("curl")]
    assert commands
    for command in commands:
        told = subprocess.run(
            ["bash", "-c", command.replace(OURS, service.url)], check=True, capture_output=True, text=True, timeout=30
        ).stdout
        chunks: list[Any] = [json.loads(line[6:]) for line in told.splitlines() if line and line != "data: [DONE]"]
        text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
        assert text == "Give me five tips for sleeping well. "
        assert told.endswith("data: [DONE]\n\n")


def test_the_client_comes_back_when_it_is_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards Retry-After: OpenAI's client waits so long by itself, and gets its answer."""
    with listening(requests_per_minute=60) as service:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{service.url}/v1")
        messages: Any = [{"role": "user", "content": "x"}]

        async def ask() -> list[Any]:
            async with openai.AsyncOpenAI(max_retries=3) as client:
                asked = [client.chat.completions.create(model="smollm2-pasta", messages=messages) for _ in range(62)]
                return await asyncio.gather(*asked)

        assert len(asyncio.run(ask())) == 62
