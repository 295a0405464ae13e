"""From a request's body to an answer's text: the limits, the tokens, and the time that an answer may take."""

import asyncio
import logging
import secrets
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Protocol

from pasta_ray.actors.loading import TokenizerLike
from pasta_ray.actors.messages import ClusterHealth
from pasta_ray.engine.reading import Reader
from pasta_ray.engine.messages import Events, Report, Request, Sampling
from pasta_ray.errors import ReplicaError
from pasta_ray.serve.config import ServeConfig
from pasta_ray.serve.errors import DeadlineError, NotReadyError, ParameterError
from pasta_ray.serve.models import Model, Models
from pasta_ray.serve.schema import ChatBody, CompletionBody, Generation

logger = logging.getLogger(__name__)


class Backend(Protocol):
    """Where answers come from: `pasta_ray.actors.cluster.Cluster`, or a stand-in in tests."""

    def decode(self, request: Request) -> AsyncGenerator[Events, None]: ...
    async def health(self) -> ClusterHealth: ...


class Service:
    """The served models, which share limits, tokenizer and replicas."""

    def __init__(self, config: ServeConfig, models: Models, backend: Backend, tokenizer: TokenizerLike) -> None:
        self.config = config
        self.models = models
        self._backend = backend
        self._tokenizer = tokenizer

    def chat(self, body: ChatBody) -> Request:
        """The engine's request for a chat. Only the chat template writes special tokens, never a message's text."""
        model = self.models.find(body.model)
        messages = [message.plain() for message in body.messages]
        prompt_ids = self._tokenizer.encode_chat(messages)
        request = self._request(model, "chatcmpl", body, body.wanted_tokens, prompt_ids, "messages")
        return replace(request, messages=tuple((message["role"], message["content"]) for message in messages))

    def completion(self, body: CompletionBody) -> Request:
        """The engine's request for a plain continuation."""
        model = self.models.find(body.model)
        prompt_ids = self._tokenizer.encode(body.prompt)
        return self._request(model, "cmpl", body, body.wanted_tokens, prompt_ids, "prompt")

    async def check_ready(self) -> ClusterHealth:
        """The replicas' health; NotReadyError until one of them can decode."""
        health = await self._backend.health()
        if not health.ready:
            raise NotReadyError(f"no replica is ready: {health}", "failed" if health.failed else "starting")
        return health

    async def answer(self, request: Request) -> Report:
        """The whole answer."""
        async with aclosing(self.stream(request)) as pieces:
            async for piece in pieces:
                if isinstance(piece, Report):
                    return piece
        raise ReplicaError("the answer ended before its report")

    async def stream(self, request: Request) -> AsyncGenerator[str | Report, None]:
        """Text in document order as it becomes readable, then the report. Its end is a line in the log."""
        outcome = "its reader left"
        try:
            async with aclosing(self._pieces(request)) as pieces:
                async for piece in pieces:
                    if isinstance(piece, Report):
                        outcome = _summary(piece)
                    yield piece
        except Exception as error:
            outcome = f"{type(error).__name__}: {error}"
            raise
        finally:
            logger.info("%s, model %s, method %s: %s", request.id, request.model, request.method, outcome)

    async def _pieces(self, request: Request) -> AsyncGenerator[str | Report, None]:
        deadline = asyncio.get_running_loop().time() + self.config.request_timeout_s
        reader = Reader()
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
                if text := reader.read(message):
                    yield text
        yield reader.report

    def _request(
        self,
        model: Model,
        kind: str,
        body: Generation,
        max_tokens: int | None,
        prompt_ids: list[int],
        prompt_field: str,
    ) -> Request:
        config = self.config
        if len(prompt_ids) > config.max_prompt_tokens:
            raise ParameterError(
                f"{prompt_field} is {len(prompt_ids)} tokens long; allowed: {config.max_prompt_tokens}",
                prompt_field,
                "context_length_exceeded",
            )
        max_tokens = max_tokens or min(config.default_max_tokens, config.max_answer_tokens)
        max_branches = body.pasta.max_branches or config.max_branches
        for param, value, most in (
            ("max_tokens", max_tokens, config.max_answer_tokens),
            ("pasta.max_branches", max_branches, config.max_branches),
        ):
            if value > most:
                raise ParameterError(f"{param} is {value}; allowed: up to {most}", param)
        return Request(
            id=f"{kind}-{secrets.token_hex(12)}",
            prompt_ids=tuple(prompt_ids),
            method=body.pasta.method or model.method,
            max_tokens=max_tokens,
            max_branches=max_branches,
            router=body.pasta.router,
            model=model.name,
            sampling=Sampling(
                temperature=body.temperature or 0.0,
                top_p=1.0 if body.top_p is None else body.top_p,
                seed=secrets.randbits(31) if body.seed is None else body.seed,
            ),
        )


def _summary(report: Report) -> str:
    usage, parallel = report.usage, report.parallel
    return (
        f"{usage.prompt_tokens} + {usage.completion_tokens} tokens in {report.timing.wall_s:.2f} s,"
        f" {parallel.num_promises} promises, critical path {parallel.critical_path}, {report.finish_reason}"
    )
