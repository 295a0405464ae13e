"""Answers in the shapes of the OpenAI API. Each carries our own report under ``pasta``."""

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pasta_ray.engine.messages import BranchClosed, Delta, Event, Finished, PromiseOpened, Report, Synced
from pasta_ray.engine.reading import ReadToken
from pasta_ray.serve.logprobs import chat_logprobs, completion_logprobs
from pasta_ray.serve.service import Answer

EVENT_TYPES = {PromiseOpened: "promise", Delta: "delta", BranchClosed: "close", Synced: "sync", Finished: "report"}


def usage(reports: Sequence[Report], num_prompts: int = 1) -> dict[str, Any]:
    """Of all choices together; a prompt counts once, however many answers it has. Annotation tokens (tags, topics,
    lengths) stand apart: ``completion_tokens`` are the visible text and its end."""
    prompts = reports[:: max(1, len(reports) // num_prompts)]
    prompt_tokens = sum(report.usage.prompt_tokens for report in prompts)
    completion_tokens = sum(report.usage.completion_tokens for report in reports)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "completion_tokens_details": {"annotation_tokens": sum(report.usage.annotation_tokens for report in reports)},
    }


def event_body(event: Event) -> dict[str, Any]:
    """A typed event as JSON: its ``type``, and its fields by their names. Log-probabilities stand with the choice."""
    fields = {name: value for name, value in dataclasses.asdict(event).items() if name != "likelihoods"}
    return {"type": EVENT_TYPES[type(event)], **fields}


@dataclass(frozen=True)
class Shape:
    """One answer's envelope: whole, or in pieces. ``echoes`` are what the choices of each prompt begin with.
    ``with_logprobs``: log-probabilities are asked for."""

    id: str
    model: str
    whole_object: str
    piece_object: str
    with_logprobs: bool = False
    echoes: tuple[str, ...] = ("",)
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """A single choice's report is the answer's own; of several, each choice has its own."""
        choices = [self._whole_choice(index, answer, len(answers)) for index, answer in enumerate(answers)]
        reports = [answer.report for answer in answers]
        envelope = self._envelope(self.whole_object, choices) | {"usage": usage(reports, len(self.echoes))}
        if len(reports) == 1:
            return envelope | {"pasta": dataclasses.asdict(reports[0])}
        for choice, report in zip(choices, reports, strict=True):
            choice["pasta"] = dataclasses.asdict(report)
        return envelope

    def first(self, num_choices: int) -> list[dict[str, Any]]:
        """What a stream says before any text."""
        echoes = [self._echo(index, num_choices) for index in range(num_choices)]
        return [self.piece(index, echo) for index, echo in enumerate(echoes) if echo]

    def piece(self, index: int, text: str, tokens: Sequence[ReadToken] = ()) -> dict[str, Any]:
        choice = self._choice(index, self._piece_text(text)) | {"logprobs": self._logprobs(tokens)}
        return self._envelope(self.piece_object, [choice])

    def last(self, index: int, report: Report) -> dict[str, Any]:
        """Why the answer ended, and the report."""
        choice = self._choice(index, self._piece_text(None)) | {"finish_reason": report.finish_reason}
        return self._envelope(self.piece_object, [choice]) | {"pasta": dataclasses.asdict(report)}

    def usage_piece(self, reports: Sequence[Report]) -> dict[str, Any]:
        return self._envelope(self.piece_object, []) | {"usage": usage(reports, len(self.echoes))}

    def _whole_choice(self, index: int, answer: Answer, num_choices: int) -> dict[str, Any]:
        report = answer.report
        text = self._whole_text(self._echo(index, num_choices) + report.text)
        logprobs = self._logprobs(answer.tokens)
        return {"index": index, **text, "logprobs": logprobs, "finish_reason": report.finish_reason}

    def _echo(self, index: int, num_choices: int) -> str:
        return self.echoes[index * len(self.echoes) // num_choices]

    def _envelope(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices}

    def _choice(self, index: int, text: dict[str, Any]) -> dict[str, Any]:
        return {"index": index, **text, "logprobs": None, "finish_reason": None}

    def _whole_text(self, text: str) -> dict[str, Any]:
        return {"text": text}

    def _piece_text(self, text: str | None) -> dict[str, Any]:
        return {"text": text or ""}

    def _logprobs(self, tokens: Sequence[ReadToken]) -> dict[str, Any] | None:
        return completion_logprobs(tokens) if self.with_logprobs else None


class CompletionShape(Shape):
    def __init__(self, id_: str, model: str, with_logprobs: bool = False, echoes: Sequence[str] = ("",)) -> None:
        super().__init__(id_, model, "text_completion", "text_completion", with_logprobs, tuple(echoes))


class ChatShape(Shape):
    def __init__(self, id_: str, model: str, with_logprobs: bool = False) -> None:
        super().__init__(id_, model, "chat.completion", "chat.completion.chunk", with_logprobs)

    def first(self, num_choices: int) -> list[dict[str, Any]]:
        delta = {"delta": {"role": "assistant", "content": ""}}
        return [self._envelope(self.piece_object, [self._choice(index, delta)]) for index in range(num_choices)]

    def _whole_text(self, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def _piece_text(self, text: str | None) -> dict[str, Any]:
        return {"delta": {} if text is None else {"content": text}}

    def _logprobs(self, tokens: Sequence[ReadToken]) -> dict[str, Any] | None:
        return chat_logprobs(tokens) if self.with_logprobs else None
