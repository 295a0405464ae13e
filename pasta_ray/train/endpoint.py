"""An OpenAI-compatible chat endpoint, as the ``llm`` annotator and the ``llm`` judge use it.

Retries (with backoff), time limits and connections are the official client's; here are the bound on concurrency, one
kind of error, and a count of what was used and what it cost.
"""

import asyncio
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from pydantic import BaseModel, Field, ValidationError

from pasta_ray.errors import InputError, PastaError
from pasta_ray.train.jsonl import explain

MILLION = 1_000_000
EXCERPT = 200  # characters of a reply that are shown in an error
UNREACHABLE = "the endpoint cannot be reached"
STATUS = "the endpoint answered with status"
HOPELESS = (UNREACHABLE, *(f"{STATUS} {status}" for status in (401, 403, 404)))
NO_KEY = "none"  # the client insists on a key; servers of one's own mostly want none


class EndpointError(PastaError):
    """A request got no usable reply, for all its retries. The text is short and equal for equal causes, to be counted;
    ``detail`` is what the endpoint or the client said."""

    http_status = 502

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else self.reason

    @property
    def hopeless(self) -> bool:
        """Whether another request would fare no better: nobody there, no such model, a key that is not taken."""
        return self.reason in HOPELESS


@dataclass(frozen=True)
class EndpointConfig:
    """Where to ask, and how hard. ``base_url`` ends in ``/v1`` for most servers. ``api_key_env`` names the environment
    variable that holds the key (the key itself is written nowhere); None sends none. ``concurrency`` bounds the
    requests under way at a time, ``timeout_s`` one try of one request. Prices are per million tokens, in any currency.
    """

    base_url: str
    model: str
    api_key_env: str | None = None
    concurrency: int = 8
    max_retries: int = 4
    timeout_s: float = 120.0
    price_in: float = 0.0
    price_out: float = 0.0

    def __post_init__(self) -> None:
        if not re.match(r"https?://[^/\s]", self.base_url):
            raise InputError(f"base_url is {self.base_url!r}; allowed: http://HOST… or https://HOST…")
        if not self.model:
            raise InputError("the endpoint's model is empty; allowed: a name that the endpoint knows")
        if self.concurrency < 1:
            raise InputError(f"concurrency is {self.concurrency}; allowed: 1 or more")
        if self.max_retries < 0:
            raise InputError(f"max_retries is {self.max_retries}; allowed: 0 or more")
        if not self.timeout_s > 0:
            raise InputError(f"timeout_s is {self.timeout_s}; allowed: above 0")
        if not (self.price_in >= 0 and self.price_out >= 0):
            raise InputError(f"prices are {self.price_in} and {self.price_out}; allowed: 0 or more")

    def api_key(self) -> str:
        """Raises InputError where the variable that should hold the key does not."""
        if self.api_key_env is None:
            return NO_KEY
        key = os.environ.get(self.api_key_env)
        if not key:
            raise InputError(
                f"environment variable {self.api_key_env} is not set; the endpoint's key is expected there"
            )
        return key


@dataclass(frozen=True)
class Usage:
    """Requests that were answered, and their tokens as the endpoint counts them."""

    num_requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.num_requests + other.num_requests,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
        )

    def cost(self, config: EndpointConfig) -> float:
        """In the currency of the prices."""
        return (self.prompt_tokens * config.price_in + self.completion_tokens * config.price_out) / MILLION


@dataclass(frozen=True)
class Completion:
    """One reply. ``top_logprobs`` has one mapping a token, of alternatives to natural logarithms of probability; it is
    empty where none were asked for, or the endpoint gives none."""

    text: str
    finish_reason: str
    usage: Usage
    top_logprobs: tuple[Mapping[str, float], ...] = ()


class Endpoint:
    """A client of one endpoint, for one event loop. ``usage`` adds up over all its replies."""

    def __init__(self, config: EndpointConfig) -> None:
        self.config = config
        self.usage = Usage()
        self._free = asyncio.Semaphore(config.concurrency)
        self._client = _openai().AsyncOpenAI(
            base_url=config.base_url,
            api_key=config.api_key(),
            max_retries=config.max_retries,
            timeout=config.timeout_s,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._client.close()

    async def complete(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        max_tokens: int | None = None,
        temperature: float = 0.0,
        top_logprobs: int = 0,
    ) -> Completion:
        """The reply to a chat. Raises EndpointError where there is none, or none that can be read."""
        settings: dict[str, Any] = {"temperature": temperature}
        if max_tokens is not None:
            settings["max_tokens"] = max_tokens
        if top_logprobs:
            settings |= {"logprobs": True, "top_logprobs": top_logprobs}
        async with self._free:
            body = await self._create([dict(message) for message in messages], settings)
        try:
            completion = _Reply.model_validate_json(body).completion()
        except ValidationError as error:
            raise EndpointError(
                "the endpoint's reply cannot be read", f"{explain(error)}: {body[:EXCERPT]!r}"
            ) from error
        self.usage += completion.usage
        return completion

    async def _create(self, messages: list[Any], settings: dict[str, Any]) -> str:
        """The body of the endpoint's answer, whatever it is: the client itself validates nothing."""
        openai = _openai()
        chat = self._client.chat.completions.with_raw_response
        try:
            reply = await chat.create(model=self.config.model, messages=messages, **settings)
        except openai.APITimeoutError as error:
            raise EndpointError("the endpoint timed out", f"no reply within {self.config.timeout_s:g} s") from error
        except openai.APIConnectionError as error:
            where = f"{self.config.base_url}: {error.__cause__ or error}"
            raise EndpointError(UNREACHABLE, where) from error
        except openai.APIStatusError as error:
            raise EndpointError(f"{STATUS} {error.status_code}", error.response.text[:EXCERPT]) from error
        body: str = reply.text
        return body


def _openai() -> Any:
    """The official client: only those who ask an endpoint need it, and it takes a second to import."""
    try:
        import openai
    except ModuleNotFoundError as error:
        raise InputError("endpoints are asked through the package `openai`: pip install 'pasta-ray[train]'") from error
    return openai


class _Alternative(BaseModel):
    token: str
    logprob: float


class _Token(BaseModel):
    top_logprobs: list[_Alternative] = []


class _Logprobs(BaseModel):
    content: list[_Token] | None = None


class _Message(BaseModel):
    content: str


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class _Counts(BaseModel):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Reply(BaseModel):
    """What is read of a chat completion."""

    choices: list[_Choice] = Field(min_length=1)
    usage: _Counts | None = None

    def completion(self) -> Completion:
        choice, counts = self.choices[0], self.usage or _Counts()
        tokens = (choice.logprobs.content if choice.logprobs else None) or []
        return Completion(
            text=choice.message.content,
            finish_reason=choice.finish_reason or "stop",
            usage=Usage(1, counts.prompt_tokens, counts.completion_tokens),
            top_logprobs=tuple({top.token: top.logprob for top in token.top_logprobs} for token in tokens),
        )
