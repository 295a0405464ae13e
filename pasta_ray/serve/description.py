"""What the OpenAPI description says of answers and errors. Nothing is validated with these models but in tests."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, ConfigDict, Field

from pasta_ray.actors.messages import ReplicaHealth
from pasta_ray.engine.messages import FinishReason, Report
from pasta_ray.serve.models import Model


class Described(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ErrorDetail(Described):
    message: str
    type: str
    param: str | None = Field(description="the field to blame, such as messages.0.role")
    code: str | None


class ErrorBody(Described):
    """Every error has this shape, also as the last event of a stream that broke off."""

    error: ErrorDetail


class TokenLogprob(Described):
    token: str
    logprob: float
    bytes: list[int]


class ContentLogprob(TokenLogprob):
    top_logprobs: list[TokenLogprob]


class ChatLogprobs(Described):
    content: list[ContentLogprob]
    refusal: None


class CompletionLogprobs(Described):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class AnswerMessage(Described):
    role: Literal["assistant"]
    content: str
    refusal: None


class Choice(Described):
    index: int
    finish_reason: FinishReason
    pasta: Report | None = Field(default=None, description="of several choices each has its own report")


class ChatChoice(Choice):
    message: AnswerMessage
    logprobs: ChatLogprobs | None


class CompletionChoice(Choice):
    text: str
    logprobs: CompletionLogprobs | None


class TokenDetails(Described):
    annotation_tokens: int


class UsageBody(Described):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    completion_tokens_details: TokenDetails


class AnswerBody(Described):
    id: str
    created: int
    model: str
    usage: UsageBody
    pasta: Report | None = Field(default=None, description="the report of a single choice")


class ChatAnswer(AnswerBody):
    object: Literal["chat.completion"]
    choices: list[ChatChoice]


class CompletionAnswer(AnswerBody):
    object: Literal["text_completion"]
    choices: list[CompletionChoice]


class ModelOptions(Described):
    method: str = Field(description="answers the requests that name none")


class ModelCard(Described):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str = Field(description="the model's own name, where id is an alias")
    pasta: ModelOptions


class ModelList(Described):
    object: Literal["list"]
    data: list[ModelCard]


class HealthBody(Described):
    status: Literal["ok"]
    models: list[Model]
    replicas: list[ReplicaHealth]


QUESTION = "Give me five tips for sleeping well."
CHAT_EXAMPLES = {
    "chat": {"value": {"model": "smollm2-pasta", "messages": [{"role": "user", "content": QUESTION}]}},
    "stream": {
        "value": {
            "model": "smollm2-pasta",
            "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}],
            "stream": True,
            "stream_options": {"include_usage": True},
            "pasta": {"method": "pasta", "events": True},
        }
    },
}
COMPLETION_EXAMPLES = {
    "completion": {"value": {"model": "smollm2-pasta", "prompt": "Once upon a time", "max_tokens": 64}}
}

_ERRORS = {
    400: "a field cannot be used, or the body is not JSON",
    401: "no API key, or a wrong one",
    403: "the service has no keys, and another machine or another site's page asks",
    404: "no such model, or no metrics",
    405: "no such method",
    408: "the body took too long",
    413: "the body is too large",
    429: "the queue is full, or the caller's rate is used up",
    500: "our fault",
    503: "no replica is ready, or it died",
    504: "the answer took longer than the service allows",
}
_WAIT = {"Retry-After": {"description": "seconds", "schema": {"type": "integer", "minimum": 1}}}
_SSE_EXAMPLE = 'data: {"id": "chatcmpl-1", "object": "chat.completion.chunk", …}\n\ndata: [DONE]\n\n'

_EVENT = {
    "type": "object",
    "required": ["data"],
    "properties": {"data": {"type": "string", "description": "a chunk in JSON, or [DONE]"}},
}
"""One event, as OpenAPI 3.2 describes streams, and FastAPI its own."""

Responses = dict[int | str, dict[str, Any]]


def responses(answer: type[BaseModel] | None, *statuses: int, streams: bool = False) -> Responses:
    """An operation's answer and those of its errors that have ``statuses``."""
    described: Responses = {
        status: {"model": ErrorBody, "description": _ERRORS[status]}
        | ({"headers": _WAIT} if status in (429, 503) else {})
        for status in statuses
    }
    if answer is not None:
        described[200] = {"model": answer, "description": "the answer"}
    if streams:
        event_stream = {"itemSchema": _EVENT, "example": _SSE_EXAMPLE}
        described[200] |= {
            "description": "the answer; with `stream: true` as server-sent events, the last of which is `[DONE]`",
            "content": {"text/event-stream": event_stream},
        }
    return described


GENERATING = (400, 401, 403, 404, 408, 413, 429, 500, 503, 504)
LOOKING = (401, 403)


def describe(app: FastAPI, names: Sequence[str], *, keys: bool) -> None:
    """Make ``app`` describe itself as it is: models by their ``names``, errors in one shape, and a bearer key where
    there are ``keys``."""

    def openapi() -> Mapping[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            for operations in schema["paths"].values():
                for operation in operations.values():
                    operation["responses"].pop("422", None)  # FastAPI's own, which the error handlers replace
            for body in ("ChatBody", "CompletionBody"):
                schema["components"]["schemas"][body]["properties"]["model"]["enum"] = list(names)
            metrics = schema["paths"]["/metrics"]["get"]["responses"]["200"]
            metrics["content"] = {"text/plain": {"schema": {"type": "string"}}}
            for unused in ("HTTPValidationError", "ValidationError"):
                schema["components"]["schemas"].pop(unused, None)
            if keys:
                schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
                schema["security"] = [{"key": []}]
                schema["paths"]["/health"]["get"]["security"] = []
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign, assignment]  # FastAPI's way
