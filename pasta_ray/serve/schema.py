"""The request bodies of the OpenAI API, as far as they are served. What is not served is refused by name.

Fields that change nothing at their neutral value (``presence_penalty: 0``, ``store: false``) are accepted at it,
because clients send them; docs/http.md has them all.
"""

import reprlib
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, WithJsonSchema, field_validator

from pasta_ray.engine.messages import MAX_LOGPROBS

MAX_STOPS = 4
MAX_STOP_CHARACTERS = 256
MAX_COMPLETION_LOGPROBS = 5


def _refuse(value: object) -> None:
    if value is not None:
        raise ValueError(f"is {_short(value)}; not supported: leave it out")


def _short(value: object) -> str:
    text = reprlib.repr(value)  # plain repr recurses into whatever a client has nested
    return text if len(text) <= 60 else f"{text[:57]}..."


def _several(value: object) -> object:
    if isinstance(value, str):
        return [value]
    if value is not None and not isinstance(value, list):
        raise ValueError(f"is {_short(value)}; allowed: a string, or a list")
    return value


def _one_or_several(one: dict[str, Any], several: dict[str, Any], **bounds: int) -> WithJsonSchema:
    return WithJsonSchema({"anyOf": [one, {"type": "array", "items": several, **bounds}]})


Unsupported = Annotated[None, BeforeValidator(_refuse)]
"""A field of OpenAI's that is refused by name unless it is null."""


class Body(BaseModel):
    """Types as JSON has them: ``"1"`` is no number, and ``1`` no boolean."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class TextPart(Body):
    type: Literal["text"]
    text: str


def _parts(value: object) -> object:
    if isinstance(value, str):
        return [TextPart(type="text", text=value)]
    if not isinstance(value, list):
        raise ValueError(f"is {_short(value)}; allowed: a string, or a list of parts of type text")
    return value


class Message(Body):
    """One turn of the conversation. The fields of an answer that hold nothing here may be sent back as null."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        list[TextPart],
        BeforeValidator(_parts),
        _one_or_several({"type": "string"}, TextPart.model_json_schema()),
    ]
    refusal: None = None
    annotations: list[Any] | None = Field(default=None, max_length=0)
    audio: None = None
    tool_calls: None = None
    function_call: None = None

    def plain(self) -> dict[str, str]:
        """Role and text as the chat template takes them; a developer's message is a system message."""
        content = "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


class StreamOptions(Body):
    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class PastaOptions(Body):
    """This service's own options."""

    method: str | None = Field(
        default=None,
        description="sequential, pasta, speculative, pasta+speculative, sot or apar; the default depends on the model",
    )
    max_branches: int | None = Field(default=None, ge=1, description="bodies decoded at the same time, at most")
    router: bool = Field(default=False, description="sot: ask the model first whether the question suits it")
    events: bool = Field(default=False, description="the branches' typed events in the chunks of a stream")


class ResponseFormat(Body):
    type: Literal["text"]


_STOP = {"type": "string", "minLength": 1, "maxLength": MAX_STOP_CHARACTERS}
Stops = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]],
    Field(max_length=MAX_STOPS),
    BeforeValidator(_several),
    _one_or_several(_STOP, _STOP, maxItems=MAX_STOPS),
]
Zero = Annotated[float | None, WithJsonSchema({"enum": [0, None]})]


class Generation(Body):
    """What chats and completions have in common."""

    model: str
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(default=None, ge=1, description="bound of the visible answer, all branches together")
    temperature: float | None = Field(
        default=None,
        ge=0,
        le=2,
        description="0, which is greedy, when absent: OpenAI's default of 1 suits larger models",
    )
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int | None = Field(
        default=None,
        ge=-(2**63),
        le=2**63 - 1,
        description="when absent, every answer at a temperature above 0 is another; choice i is sampled with seed + i",
    )
    n: int | None = Field(default=None, ge=1, description="answers to each prompt")
    stop: Stops | None = Field(
        default=None, description="a string or several: the answer ends before the first of them"
    )
    user: str | None = Field(default=None, max_length=256, description="stands in the log beside the answer")
    pasta: PastaOptions = PastaOptions()

    presence_penalty: Zero = None
    frequency_penalty: Zero = None
    logit_bias: Annotated[dict[str, float] | None, WithJsonSchema({"type": ["object", "null"], "maxProperties": 0})] = (
        None
    )

    @field_validator("stream_options")
    @classmethod
    def _of_a_stream(cls, value: StreamOptions | None, info: ValidationInfo) -> StreamOptions | None:
        if value is not None and not info.data.get("stream"):
            raise ValueError("is there without stream: true; allowed: with it")
        return value

    @field_validator("presence_penalty", "frequency_penalty", "logit_bias")
    @classmethod
    def _neutral(cls, value: object) -> object:
        if value:
            raise ValueError(f"is {_short(value)}; not supported: leave it out")
        return value

    @property
    def wanted_tokens(self) -> int | None:
        return self.max_tokens

    @property
    def num_logprobs(self) -> int | None:
        """How many likeliest tokens to give in each one's place; None without log-probabilities."""
        return None

    @property
    def caller(self) -> str | None:
        """Who asks, as far as the request says."""
        return self.user

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


class ChatBody(Generation):
    """POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(
        default=None, ge=1, description="the newer name of max_tokens, and stronger"
    )
    safety_identifier: str | None = Field(default=None, max_length=128, description="the newer name of user")

    logprobs: bool | None = Field(default=None, description="the log-probability of each token of the text")
    top_logprobs: int | None = Field(
        default=None, ge=0, le=MAX_LOGPROBS, description="so many of the likeliest tokens in each one's place"
    )
    metadata: dict[str, str] | None = Field(default=None, max_length=0)
    modalities: list[Literal["text"]] | None = None
    reasoning_effort: Literal["none"] | None = None
    response_format: ResponseFormat | None = None
    service_tier: Literal["auto", "default"] | None = None
    store: Literal[False] | None = None
    verbosity: Literal["medium"] | None = None
    audio: Unsupported = None
    moderation: Unsupported = None
    prediction: Unsupported = None
    prompt_cache_key: Unsupported = None
    prompt_cache_retention: Unsupported = None

    @field_validator("top_logprobs")
    @classmethod
    def _with_logprobs(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and not info.data.get("logprobs"):
            raise ValueError(f"is {value} without logprobs: true; allowed: with it")
        return value

    @property
    def num_logprobs(self) -> int | None:
        return self.top_logprobs or 0 if self.logprobs else None

    @property
    def wanted_tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def caller(self) -> str | None:
        return self.safety_identifier or self.user


def _texts(value: object) -> object:
    if isinstance(value, list) and any(isinstance(item, int | list) for item in value):
        raise ValueError("token ids are not supported, since they could be tags; allowed: text")
    return _several(value)


_PROMPT = {"type": "string", "minLength": 1}
Prompts = Annotated[
    list[Annotated[str, Field(min_length=1)]],
    Field(min_length=1),
    BeforeValidator(_texts),
    _one_or_several(_PROMPT, _PROMPT, minItems=1),
]


class CompletionBody(Generation):
    """POST /v1/completions: the prompt is continued as it is, without a chat template."""

    prompt: Prompts = Field(description="a text, or several")
    echo: bool | None = Field(default=None, description="begin the answer with the prompt")
    best_of: int | None = Field(default=None, description="n, or 1 where there is no n")
    logprobs: int | None = Field(
        default=None,
        ge=0,
        le=MAX_COMPLETION_LOGPROBS,
        description="each token's log-probability, and the likeliest ones'",
    )
    suffix: Unsupported = None

    @field_validator("logprobs")
    @classmethod
    def _of_the_answer(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and info.data.get("echo"):
            raise ValueError("goes without echo: a prompt's log-probabilities are not computed")
        return value

    @property
    def num_logprobs(self) -> int | None:
        return self.logprobs

    @field_validator("best_of")
    @classmethod
    def _all_shown(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value not in (None, info.data.get("n") or 1):
            raise ValueError(f"is {value}; choosing among answers is not supported; allowed: the value of n")
        return value
