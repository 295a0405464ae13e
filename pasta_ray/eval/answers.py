"""`answers.jsonl`: every answer of an evaluation, one a line, as its system gave it."""

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from pasta_ray.engine.messages import Report
from pasta_ray.errors import InputError
from pasta_ray.train.annotate import repetition
from pasta_ray.train.jsonl import explain

LOOP_SHARE = 0.5  # of an answer's runs of six words: from there on it repeats itself more than it says


class Answer(BaseModel):
    """One prompt's answer by one system. ``report`` is None where the prompt was refused; ``refusal`` says why."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    prompt_id: str
    system: str
    repetition: int
    report: Report | None = None
    refusal: str = ""

    @property
    def is_finished(self) -> bool:
        """It ended by itself: no limit cut it off."""
        return self.report is not None and self.report.finish_reason == "stop"

    @cached_property
    def loops(self) -> bool:
        return self.report is not None and repetition(self.report.text) > LOOP_SHARE

    @property
    def is_clean(self) -> bool:
        return self.is_finished and not self.loops


# Of each system, by prompt id: the answers in the order of their repetitions.
BySystem = Mapping[str, Mapping[str, Sequence[Answer]]]


def answer_id(prompt_id: str, system: str, repetition: int) -> str:
    return f"{prompt_id}#{system}#{repetition}"


def read_answers(path: Path) -> list[Answer]:
    """All whole lines. A last line without its end is being written, or was cut off: it is none, and stays where it
    is. Raises InputError with file and line."""
    try:
        text = path.read_bytes().rpartition(b"\n")[0].decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: {error}") from error
    lines = text.split("\n") if text else []
    return [parse_answer(f"{path}, line {number}", line) for number, line in enumerate(lines, 1)]


def parse_answer(where: str, line: str) -> Answer:
    try:
        return Answer.model_validate(json.loads(line))
    except ValidationError as error:
        raise InputError(f"{where}: {explain(error)}") from error
    except ValueError as error:
        raise InputError(f"{where}: not JSON: {error}") from error


def group_answers(answers: Iterable[Answer]) -> dict[str, dict[str, list[Answer]]]:
    found: dict[str, dict[str, list[Answer]]] = {}
    for answer in sorted(answers, key=lambda answer: answer.repetition):
        found.setdefault(answer.system, {}).setdefault(answer.prompt_id, []).append(answer)
    return found
