"""An answer as server-sent events, which a client may leave at any moment."""

import json
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from fastapi.responses import StreamingResponse
from starlette.types import Send

from pasta_ray.engine.messages import Finished, Report
from pasta_ray.errors import PastaError
from pasta_ray.serve.errors import error_body
from pasta_ray.serve.openai import Shape, event_body
from pasta_ray.serve.service import News

DONE = "data: [DONE]\n\n"


@dataclass
class Chunks:
    """The chunks of one stream, in order. With ``with_events`` they carry the branches' typed events too, with
    ``with_usage`` a last one the usage, and all others say that they have none."""

    shape: Shape
    num_choices: int
    with_usage: bool
    with_events: bool
    _reports: dict[int, Report] = field(default_factory=dict)

    def first(self) -> Iterator[dict[str, Any]]:
        return map(self._marked, self.shape.first(self.num_choices))

    def of(self, news: News) -> Iterator[dict[str, Any]]:
        """What one message of a choice brings: readable text, events, its end."""
        events = [event_body(event) for event in news.events if self.with_events and not isinstance(event, Finished)]
        if news.text or news.tokens or events:
            piece = self.shape.piece(news.choice, news.text, news.tokens)
            yield self._marked(piece | ({"pasta": {"events": events}} if self.with_events else {}))
        if news.report is not None:
            self._reports[news.choice] = news.report
            last = self.shape.last(news.choice, news.report)
            if self.with_events:
                last["pasta"] |= {"events": [event_body(Finished(news.report))]}
            yield self._marked(last)

    def end(self) -> Iterator[dict[str, Any]]:
        """What follows once every choice has ended."""
        if self.with_usage:
            yield self.shape.usage_piece([self._reports[choice] for choice in range(self.num_choices)])

    def _marked(self, chunk: dict[str, Any]) -> dict[str, Any]:
        return chunk | {"usage": None} if self.with_usage else chunk


async def event_lines(first: News, rest: AsyncGenerator[News, None], chunks: Chunks) -> AsyncGenerator[str, None]:
    """Server-sent events: roles, text in document order, the reason for the end, usage if asked for, ``[DONE]``."""
    async with aclosing(rest):
        try:
            for chunk in (*chunks.first(), *chunks.of(first)):
                yield _data(chunk)
            async for news in rest:
                for chunk in chunks.of(news):
                    yield _data(chunk)
            for chunk in chunks.end():
                yield _data(chunk)
        except PastaError as error:
            yield _data(error_body(error))
    yield DONE


def _data(chunk: dict[str, Any]) -> str:
    return f"data: {json.dumps(chunk, ensure_ascii=False, separators=(',', ':'))}\n\n"


class EventStream(StreamingResponse):
    """Closes its generator at once when the client leaves, wherever the response then is: that frees the slots."""

    def __init__(self, events: AsyncGenerator[str, None]) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._events = events

    async def stream_response(self, send: Send) -> None:
        async with aclosing(self._events):
            await super().stream_response(send)
