"""Answers in the shapes of the OpenAI API. Each carries our own report under ``pasta``."""

import dataclasses
import time
from dataclasses import dataclass, field
from typing import Any

from pasta_ray.engine.messages import Report, Usage


def usage(of: Usage) -> dict[str, Any]:
    """Annotation tokens (tags, topics, lengths) stand apart: ``completion_tokens`` are the visible text and its end."""
    return {
        "prompt_tokens": of.prompt_tokens,
        "completion_tokens": of.completion_tokens,
        "total_tokens": of.prompt_tokens + of.completion_tokens,
        "completion_tokens_details": {"annotation_tokens": of.annotation_tokens},
    }


@dataclass(frozen=True)
class Shape:
    """One answer's envelope: whole, or in pieces."""

    id: str
    model: str
    whole_object: str
    piece_object: str
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, report: Report) -> dict[str, Any]:
        choice = {"index": 0, **self._whole_text(report.text), "logprobs": None, "finish_reason": report.finish_reason}
        envelope = self._envelope(self.whole_object, [choice])
        return envelope | {"usage": usage(report.usage), "pasta": dataclasses.asdict(report)}

    def first(self) -> list[dict[str, Any]]:
        """What a stream says before any text."""
        return []

    def piece(self, text: str) -> dict[str, Any]:
        return self._envelope(self.piece_object, [self._choice(self._piece_text(text))])

    def last(self, report: Report) -> dict[str, Any]:
        """Why the answer ended, and the report."""
        choice = self._choice(self._piece_text(None)) | {"finish_reason": report.finish_reason}
        return self._envelope(self.piece_object, [choice]) | {"pasta": dataclasses.asdict(report)}

    def usage_piece(self, report: Report) -> dict[str, Any]:
        return self._envelope(self.piece_object, []) | {"usage": usage(report.usage)}

    def _envelope(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices}

    def _choice(self, text: dict[str, Any]) -> dict[str, Any]:
        return {"index": 0, **text, "logprobs": None, "finish_reason": None}

    def _whole_text(self, text: str) -> dict[str, Any]:
        return {"text": text}

    def _piece_text(self, text: str | None) -> dict[str, Any]:
        return {"text": text or ""}


class CompletionShape(Shape):
    def __init__(self, id_: str, model: str) -> None:
        super().__init__(id_, model, "text_completion", "text_completion")


class ChatShape(Shape):
    def __init__(self, id_: str, model: str) -> None:
        super().__init__(id_, model, "chat.completion", "chat.completion.chunk")

    def first(self) -> list[dict[str, Any]]:
        delta = {"delta": {"role": "assistant", "content": ""}}
        return [self._envelope(self.piece_object, [self._choice(delta)])]

    def _whole_text(self, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def _piece_text(self, text: str | None) -> dict[str, Any]:
        return {"delta": {} if text is None else {"content": text}}
