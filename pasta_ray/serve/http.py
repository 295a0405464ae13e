"""The routes, as a plain FastAPI application over a `Service`: Ray Serve hosts it, and tests call it without Ray."""

import dataclasses
import json
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Send

from pasta_ray.engine.messages import Report, Request
from pasta_ray.errors import PastaError
from pasta_ray.serve.errors import add_error_handlers, error_body
from pasta_ray.serve.openai import ChatShape, CompletionShape, Shape
from pasta_ray.serve.schema import ChatBody, CompletionBody, Generation
from pasta_ray.serve.service import Service

DONE = "data: [DONE]\n\n"


def create_app(service: Service) -> FastAPI:
    """The OpenAI API of the served models."""
    app = FastAPI(title="PASTA-Ray", description="Answers decoded in parallel, behind the OpenAI API.")
    add_error_handlers(app)
    started = int(time.time())

    @app.post("/v1/chat/completions")
    async def chat(body: ChatBody) -> Response:
        """Answer a conversation."""
        request = service.chat(body)
        return await _respond(service, request, body, ChatShape(request.id, body.model))

    @app.post("/v1/completions")
    async def complete(body: CompletionBody) -> Response:
        """Continue a text."""
        request = service.completion(body)
        return await _respond(service, request, body, CompletionShape(request.id, body.model))

    def model_card(name: str) -> dict[str, Any]:
        root = service.models.find(name).name
        return {"id": name, "object": "model", "created": started, "owned_by": "pasta-ray", "root": root}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """What is served. An alias has a card too, whose ``root`` is the model's own name."""
        return {"object": "list", "data": [model_card(name) for name in service.models.by_name]}

    @app.get("/v1/models/{model:path}")
    async def model_named(model: str) -> dict[str, Any]:
        return model_card(model)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        """Status 200 once a replica can decode, 503 before. Every replica holds every model."""
        cluster = await service.check_ready()
        return {
            "status": "ok",
            "models": [dataclasses.asdict(model) for model in service.models.all],
            "replicas": [dataclasses.asdict(replica) for replica in cluster.replicas],
        }

    return app


async def _respond(service: Service, request: Request, body: Generation, shape: Shape) -> Response:
    if not body.stream:
        return JSONResponse(shape.whole(await service.answer(request)))
    pieces = service.stream(request)
    first = await anext(pieces)  # before the status line goes out, so that a refusal has its own status
    include_usage = body.stream_options is not None and body.stream_options.include_usage
    return EventStream(_events(first, pieces, shape, include_usage))


async def _events(
    first: str | Report, rest: AsyncGenerator[str | Report, None], shape: Shape, include_usage: bool
) -> AsyncGenerator[str, None]:
    """Server-sent events: role, text in document order, the reason for the end, usage if asked for, ``[DONE]``."""
    async with aclosing(rest):
        try:
            for chunk in shape.first():
                yield _data(chunk)
            for chunk in _chunks(first, shape, include_usage):
                yield _data(chunk)
            async for piece in rest:
                for chunk in _chunks(piece, shape, include_usage):
                    yield _data(chunk)
        except PastaError as error:
            yield _data(error_body(error))
    yield DONE


def _chunks(piece: str | Report, shape: Shape, include_usage: bool) -> list[dict[str, Any]]:
    if isinstance(piece, str):
        return [shape.piece(piece)]
    return [shape.last(piece), *([shape.usage_piece(piece)] if include_usage else [])]


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
