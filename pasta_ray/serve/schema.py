"""The request bodies of the OpenAI API, as far as they are served. What is not served is refused by name.

Fields that change nothing at their neutral value (``n: 1``, ``presence_penalty: 0``, ``logprobs: false``) are accepted
at that value, because clients send them.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TextPart(Body):
    type: Literal["text"]
    text: str


class Message(Body):
    """One turn of the conversation. The fields of an answer that hold nothing here may be sent back as null."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    refusal: None = None
    annotations: list[Any] | None = Field(default=None, max_length=0)
    audio: None = None
    tool_calls: None = None
    function_call: None = None

    def plain(self) -> dict[str, str]:
        """Role and text as the chat template takes them; a developer's message is a system message."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


class StreamOptions(Body):
    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class PastaOptions(Body):
    """This service's own options. ``events`` (typed events in the stream) is not served yet."""

    method: str | None = Field(
        default=None, description="sequential, pasta, sot or apar; the default depends on the model"
    )
    max_branches: int | None = Field(default=None, ge=1, description="bodies decoded at the same time, at most")
    router: bool = Field(default=False, description="sot: ask the model first whether the question suits it")
    events: Literal[False] = False


class ResponseFormat(Body):
    type: Literal["text"]


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
    seed: int | None = Field(default=None, description="when absent, every answer at a temperature above 0 is another")
    user: str | None = None
    pasta: PastaOptions = PastaOptions()

    n: int | None = None
    stop: str | list[str] | None = None
    logprobs: bool | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None

    @field_validator("n")
    @classmethod
    def _one_answer(cls, value: int | None) -> int | None:
        if value not in (None, 1):
            raise ValueError(f"n is {value}; allowed: 1 (several answers are not supported)")
        return value

    @field_validator("stop", "logprobs", "presence_penalty", "frequency_penalty", "logit_bias")
    @classmethod
    def _neutral(cls, value: object) -> object:
        if value:
            raise ValueError(f"is {value!r}; not supported: leave it out")
        return value

    @property
    def wanted_tokens(self) -> int | None:
        return self.max_tokens


class ChatBody(Generation):
    """POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(
        default=None, ge=1, description="the newer name of max_tokens, and stronger"
    )
    response_format: ResponseFormat | None = None
    top_logprobs: None = None

    @property
    def wanted_tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens


class CompletionBody(Generation):
    """POST /v1/completions: the prompt is continued as it is, without a chat template."""

    prompt: str = Field(min_length=1)
    echo: Literal[False] | None = None
    suffix: None = None
    best_of: Literal[1] | None = None
