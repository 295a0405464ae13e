"""Who answers in a conversation: a decoder of this machine, or a served endpoint. The two look the same from here."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Protocol

from pydantic import TypeAdapter, ValidationError

from pasta_ray import client
from pasta_ray.actors.loading import TokenizerLike
from pasta_ray.cli.answering import Options, Source
from pasta_ray.engine.messages import BranchClosed, Delta, Event, Events, Finished, PromiseOpened, Report, Synced
from pasta_ray.engine.methods import check_method
from pasta_ray.errors import PastaError
from pasta_ray.lang import TokenMap

Messages = Sequence[tuple[str, str]]
"""A conversation, as (role, content)."""

REPORT = TypeAdapter(Report)


class Speaker(Protocol):
    """One side of the conversation."""

    @property
    def method(self) -> str | None:
        """How it answers; None leaves that to the endpoint's model."""
        ...

    def use(self, method: str) -> None:
        """Raises InputError for one that cannot be used, where that can be known."""
        ...

    def answer(self, messages: Messages) -> AsyncGenerator[Events, None]: ...


@dataclass
class LocalSpeaker:
    """A decoder in this process or in a replica of a cluster. ``tags`` are those that its model writes."""

    source: Source
    tokenizer: TokenizerLike
    options: Options
    tags: TokenMap | None
    _num_asked: int = 0

    @property
    def method(self) -> str | None:
        return self.options.method

    def use(self, method: str) -> None:
        check_method(method, self.tags)
        self.options = replace(self.options, method=method)

    def answer(self, messages: Messages) -> AsyncGenerator[Events, None]:
        self._num_asked += 1
        return self.source.decode(self.options.chat_request(f"turn-{self._num_asked}", messages, self.tokenizer))


@dataclass
class ServedSpeaker:
    """A service of this project, asked for typed events."""

    client: client.AsyncClient
    model: str
    options: Options
    method: str | None

    def use(self, method: str) -> None:
        self.method = method  # which methods there are is the service's to say

    async def answer(self, messages: Messages) -> AsyncGenerator[Events, None]:
        told = [{"role": role, "content": content} for role, content in messages]
        sampling = self.options.sampling
        stream = self.client.events(
            told,
            self.model,
            max_tokens=self.options.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=sampling.seed,
            pasta={"method": self.method, "max_branches": self.options.max_branches},
        )
        async with aclosing(stream) as events:
            async for event in events:
                if (ours := _engines(event)) is not None:
                    yield Events("served", (ours,))


def _engines(event: client.Event) -> Event | None:
    """An event of the service as the engine has it; text in document order follows from the others."""
    match event:
        case client.Promise(_, branch, parent, topic, tokens_predicted):
            return PromiseOpened(branch, parent, topic, tokens_predicted)
        case client.Delta(_, branch, text, num_tokens):
            return Delta(branch, text, num_tokens)
        case client.Close(_, branch, "stop" | "length" | "cancelled" as reason):
            return BranchClosed(branch, reason)
        case client.Sync():
            return Synced()
        case client.Report(_, _, _, body):
            try:
                return Finished(REPORT.validate_python(body))
            except ValidationError as error:
                raise PastaError(f"the endpoint's report cannot be read: {error.errors()[0]['msg']}") from error
    return None
