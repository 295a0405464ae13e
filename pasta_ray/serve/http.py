"""The routes, as a plain FastAPI application over a `Service`: Ray Serve hosts it, and tests call it without Ray."""

import dataclasses
import time
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import Body, FastAPI
from fastapi import Request as HttpRequest
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, Response

from pasta_ray.engine.messages import Request
from pasta_ray.errors import NotFoundError
from pasta_ray.serve.description import (
    CHAT_EXAMPLES,
    COMPLETION_EXAMPLES,
    GENERATING,
    LOOKING,
    ChatAnswer,
    CompletionAnswer,
    HealthBody,
    ModelCard,
    ModelList,
    describe,
    responses,
)
from pasta_ray.serve.errors import add_error_handlers
from pasta_ray.serve.leaving import unless_left
from pasta_ray.serve.openai import ChatShape, CompletionShape, Shape
from pasta_ray.serve.page import add_page
from pasta_ray.serve.schema import ChatBody, CompletionBody, Generation
from pasta_ray.serve.security import Guard
from pasta_ray.serve.service import Service
from pasta_ray.serve.streaming import Chunks, EventStream, event_lines
from pasta_ray.serve.tracing import Tracing


def create_app(
    service: Service,
    keys: frozenset[str] = frozenset(),
    metrics: Callable[[], Awaitable[str]] | None = None,
    behind_serve: bool = False,
) -> FastAPI:
    """The OpenAI API of the served models. ``keys`` are the digests of those that may use it, ``metrics`` gives the
    page of /metrics. ``behind_serve``: Ray Serve's proxy returns the request's id, so that we must not."""
    app = FastAPI(
        title="PASTA-Ray",
        description="Answers decoded in parallel, behind the OpenAI API.",
        redirect_slashes=False,  # a redirect repeats the Host header, and is no error of OpenAI's
    )
    add_error_handlers(app)
    describe(app, list(service.models.by_name), keys=bool(keys))
    add_page(app)
    app.add_middleware(Guard, config=service.config, keys=keys)
    if origins := service.config.cors_origins:
        headers = ["Authorization", "Content-Type"]
        app.add_middleware(CORSMiddleware, allow_origins=origins, allow_methods=["GET", "POST"], allow_headers=headers)
    app.add_middleware(Tracing, meter=service.meter, returns_id=not behind_serve)
    started = int(time.time())

    @app.post("/v1/chat/completions", responses=responses(ChatAnswer, *GENERATING, streams=True))
    async def chat(body: Annotated[ChatBody, Body(openapi_examples=CHAT_EXAMPLES)], caller: HttpRequest) -> Response:
        """Answer a conversation."""
        requests = service.chat(body)
        shape = ChatShape(requests[0].id, body.model, body.num_logprobs is not None)
        return await unless_left(caller.receive, _respond(service, requests, body, shape))

    @app.post("/v1/completions", responses=responses(CompletionAnswer, *GENERATING, streams=True))
    async def complete(
        body: Annotated[CompletionBody, Body(openapi_examples=COMPLETION_EXAMPLES)], caller: HttpRequest
    ) -> Response:
        """Continue a text."""
        requests = service.completion(body)
        echoes = body.prompt if body.echo else [""] * len(body.prompt)
        shape = CompletionShape(requests[0].id, body.model, body.num_logprobs is not None, echoes)
        return await unless_left(caller.receive, _respond(service, requests, body, shape))

    def model_card(name: str) -> dict[str, Any]:
        model = service.models.find(name)
        card = {"id": name, "object": "model", "created": started, "owned_by": "pasta-ray", "root": model.name}
        return card | {"pasta": {"method": model.method}}

    @app.head("/v1/models", include_in_schema=False)
    @app.get("/v1/models", responses=responses(ModelList, *LOOKING))
    async def models() -> dict[str, Any]:
        """What is served. An alias has a card too, whose ``root`` is the model's own name. ``pasta.method`` answers the
        requests that name none."""
        return {"object": "list", "data": [model_card(name) for name in service.models.by_name]}

    @app.head("/v1/models/{model:path}", include_in_schema=False)
    @app.get("/v1/models/{model:path}", responses=responses(ModelCard, *LOOKING, 404))
    async def model_named(model: str) -> dict[str, Any]:
        """One of them. A name may hold slashes."""
        return model_card(model)

    @app.head("/health", include_in_schema=False)
    @app.get("/health", responses=responses(HealthBody, 503))
    async def health() -> dict[str, Any]:
        """Status 200 once a replica can decode, 503 before. Every replica holds every model."""
        cluster = await service.check_ready()
        return {
            "status": "ok",
            "models": [dataclasses.asdict(model) for model in service.models.all],
            "replicas": [dataclasses.asdict(replica) for replica in cluster.replicas],
        }

    @app.head("/metrics", include_in_schema=False)
    @app.get("/metrics", responses=responses(None, *LOOKING, 404))
    async def metrics_page() -> Response:
        """All nodes' metrics in Prometheus' text format, some seconds old."""
        if metrics is None:
            raise NotFoundError("this service publishes no metrics")
        return Response(await metrics(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return app


async def _respond(service: Service, requests: list[Request], body: Generation, shape: Shape) -> Response:
    if not body.stream:
        return JSONResponse(shape.whole(await service.answer(requests, body.caller)))
    news = service.stream(requests, body.caller)
    first = await anext(news)  # before the status line goes out, so that a refusal has its own status
    return EventStream(event_lines(first, news, Chunks(shape, len(requests), body.include_usage, body.pasta.events)))
