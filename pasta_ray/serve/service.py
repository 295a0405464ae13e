"""From a request's body to an answer's text: the limits, the tokens, and the time that an answer may take."""

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Protocol

from pasta_ray.actors.loading import TokenizerLike
from pasta_ray.actors.messages import ClusterHealth
from pasta_ray.engine.messages import Event, Events, Report, Request, Sampling
from pasta_ray.engine.reading import Reader, ReadToken
from pasta_ray.errors import ReplicaError
from pasta_ray.logs import fields
from pasta_ray.serve.config import ServeConfig
from pasta_ray.serve.errors import DeadlineError, NotReadyError, ParameterError
from pasta_ray.serve.merging import merged
from pasta_ray.serve.metrics import Meter, NoMeter, Served
from pasta_ray.serve.models import Model, Models
from pasta_ray.serve.schema import ChatBody, CompletionBody, Generation
from pasta_ray.serve.tracing import current_trace

logger = logging.getLogger(__name__)


class Backend(Protocol):
    """Where answers come from: `pasta_ray.actors.cluster.Cluster`, or a stand-in in tests."""

    def decode(self, request: Request) -> AsyncGenerator[Events, None]: ...
    async def health(self) -> ClusterHealth: ...


@dataclass(frozen=True)
class News:
    """What one message brought of a choice: the text that is readable by now, the events, its tokens where their
    log-probabilities are asked for, and at its end the report."""

    choice: int
    text: str
    events: tuple[Event, ...]
    report: Report | None = None
    tokens: tuple[ReadToken, ...] = ()


@dataclass(frozen=True)
class Answer:
    """One choice, whole. ``tokens`` are there where their log-probabilities are asked for."""

    report: Report
    tokens: tuple[ReadToken, ...] = ()


class Service:
    """The served models, which share limits, tokenizer and replicas."""

    def __init__(
        self,
        config: ServeConfig,
        models: Models,
        backend: Backend,
        tokenizer: TokenizerLike,
        meter: Meter | None = None,
    ) -> None:
        self.config = config
        self.models = models
        self.meter = meter or NoMeter()
        self._backend = backend
        self._tokenizer = tokenizer

    def chat(self, body: ChatBody) -> list[Request]:
        """The engine's requests for a chat, one a choice. Only the chat template writes special tokens, never a
        message's text."""
        model = self.models.find(body.model)
        messages = [message.plain() for message in body.messages]
        prompt_ids = self._tokenizer.encode_chat(messages)
        request = self._request(model, body, prompt_ids, "messages")
        chat = tuple((message["role"], message["content"]) for message in messages)
        return self._choices("chatcmpl", body, [replace(request, messages=chat)])

    def completion(self, body: CompletionBody) -> list[Request]:
        """The engine's requests for plain continuations: a prompt's choices, then the next prompt's."""
        model = self.models.find(body.model)
        prompts = [self._request(model, body, self._tokenizer.encode(text), "prompt") for text in body.prompt]
        return self._choices("cmpl", body, prompts)

    async def check_ready(self) -> ClusterHealth:
        """The replicas' health; NotReadyError until one of them can decode."""
        health = await self._backend.health()
        if not health.ready:
            raise NotReadyError(f"no replica is ready: {health}", "failed" if health.failed else "starting")
        return health

    async def answer(self, requests: Sequence[Request], caller: str | None = None) -> list[Answer]:
        """The whole answer, choice by choice."""
        answers: dict[int, Answer] = {}
        tokens: dict[int, list[ReadToken]] = {choice: [] for choice in range(len(requests))}
        async with aclosing(self.stream(requests, caller)) as stream:
            async for news in stream:
                tokens[news.choice] += news.tokens
                if news.report is not None:
                    answers[news.choice] = Answer(news.report, tuple(tokens[news.choice]))
        return [answers[choice] for choice in range(len(requests))]

    async def stream(self, requests: Sequence[Request], caller: str | None = None) -> AsyncGenerator[News, None]:
        """All choices' news as they come: text in document order as it becomes readable, last of each its report."""
        streams = [self._logged(choice, request, caller) for choice, request in enumerate(requests)]
        async with aclosing(streams[0] if len(streams) == 1 else merged(streams)) as stream:
            async for news in stream:
                yield news

    async def _logged(self, choice: int, request: Request, caller: str | None) -> AsyncGenerator[News, None]:
        """One choice's news. Its start and its end are lines in the log, and its end is measured."""
        told = {"trace": request.trace or None, "request": request.id, "user": caller}
        told |= {"model": request.model, "method": request.method}
        logger.info("asked", extra=fields(**told, prompt_tokens=len(request.prompt_ids)))
        outcome, said, first_s, report = "left", {}, None, None
        began = time.perf_counter()
        try:
            async with aclosing(self._news(choice, request)) as stream:
                async for news in stream:
                    if news.text and first_s is None:
                        first_s = time.perf_counter() - began
                    if news.report is not None:
                        report = news.report
                        outcome, said = report.finish_reason, _summary(report)
                    yield news
        except Exception as error:
            outcome, said = type(error).__name__, {"error": str(error)}
            raise
        finally:
            wall_s = time.perf_counter() - began
            served = Served(first_s, wall_s, report.usage.completion_tokens if report else 0)
            self.meter.answer(request.model, request.method, outcome, served)
            logger.info("answered", extra=fields(**told, outcome=outcome, seconds=round(wall_s, 3), **said))

    async def _news(self, choice: int, request: Request) -> AsyncGenerator[News, None]:
        deadline = asyncio.get_running_loop().time() + self.config.request_timeout_s
        reader = Reader(request.stop)
        async with aclosing(self._backend.decode(request)) as messages:
            while reader.report is None:
                try:
                    async with asyncio.timeout_at(deadline):
                        message = await anext(messages)
                except TimeoutError:
                    limit_s = self.config.request_timeout_s
                    raise DeadlineError(f"the answer took longer than {limit_s:g} s, which is the limit") from None
                except StopAsyncIteration:
                    raise ReplicaError("the answer ended before its report") from None
                text = reader.read(message)
                yield News(choice, text, message.events, reader.report, reader.take_tokens())

    def _choices(self, kind: str, body: Generation, prompts: Sequence[Request]) -> list[Request]:
        """Each prompt ``n`` times. A choice alone can be had again: with its own number added to the seed."""
        num_each, most = body.n or 1, self.config.max_choices
        if num_each * len(prompts) > most:
            param = "n" if num_each > 1 else "prompt"
            asked = f"n is {num_each}" if len(prompts) == 1 else f"n is {num_each}, for {len(prompts)} prompts"
            raise ParameterError(f"{asked}; allowed: up to {most} answers in all", param)
        if body.pasta.events and not body.stream:
            raise ParameterError("pasta.events is true; allowed: with stream: true", "pasta.events")
        id_ = f"{kind}-{secrets.token_hex(12)}"
        choices = [(prompt, number) for prompt in prompts for number in range(num_each)]
        return [
            replace(
                prompt,
                id=f"{id_}.{index}" if index else id_,
                sampling=replace(prompt.sampling, seed=_wrapped(prompt.sampling.seed + number)),
            )
            for index, (prompt, number) in enumerate(choices)
        ]

    def _request(self, model: Model, body: Generation, prompt_ids: list[int], prompt_field: str) -> Request:
        config = self.config
        if len(prompt_ids) > config.max_prompt_tokens:
            raise ParameterError(
                f"{prompt_field} is {len(prompt_ids)} tokens long; allowed: {config.max_prompt_tokens}",
                prompt_field,
                "context_length_exceeded",
            )
        max_tokens = body.wanted_tokens or min(config.default_max_tokens, config.max_answer_tokens)
        max_branches = body.pasta.max_branches or config.max_branches
        for param, value, most in (
            ("max_tokens", max_tokens, config.max_answer_tokens),
            ("pasta.max_branches", max_branches, config.max_branches),
        ):
            if value > most:
                raise ParameterError(f"{param} is {value}; allowed: up to {most}", param)
        return Request(
            id="",
            prompt_ids=tuple(prompt_ids),
            method=body.pasta.method or model.method,
            max_tokens=max_tokens,
            max_branches=max_branches,
            router=body.pasta.router,
            model=model.name,
            trace=current_trace(),
            stop=tuple(body.stop or ()),
            sampling=Sampling(
                temperature=body.temperature or 0.0,
                top_p=1.0 if body.top_p is None else body.top_p,
                seed=secrets.randbits(31) if body.seed is None else body.seed,
                logprobs=body.num_logprobs,
            ),
        )


def _wrapped(seed: int) -> int:
    """Into 64 bits, as the sampler takes it."""
    return (seed + 2**63) % 2**64 - 2**63


def _summary(report: Report) -> dict[str, object]:
    usage, parallel = report.usage, report.parallel
    return {
        "tokens": usage.completion_tokens,
        "promises": parallel.num_promises,
        "critical_path": parallel.critical_path,
        "speedup": round(parallel.theoretical_speedup, 2),
    }
