"""Two systems' answers to the same prompts: how often a judge prefers the first's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from pydantic import BaseModel, ConfigDict

from pasta_ray.errors import InputError
from pasta_ray.train.jsonl import read_models
from pasta_ray.train.judges.base import Answer, Comparison, Judge, Question, preferred
from pasta_ray.train.judges.text import longer


@dataclass(frozen=True)
class WinRate:
    """``win_rate`` is the mean probability over the ``num`` comparisons that got a verdict, ``standard_error`` that of
    the mean (None for fewer than two). ``share_preferred`` counts those above one half, exact halves as half.
    ``share_longer`` is how often the first answer has more words: judges are known to like that."""

    judge: str
    num: int
    num_missed: int
    win_rate: float | None
    standard_error: float | None
    share_preferred: float | None
    share_longer: float | None


class _Asked(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str
    instruction: str
    input: str | None = None
    system: str | None = None


class _Answered(BaseModel):
    """A report's line, an answer's or a sample's."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str
    prompt_id: str | None = None
    text: str | None = None
    output: str | None = None
    finish_reason: str = "stop"
    finished: bool = True

    @property
    def answer(self) -> Answer | None:
        text = self.output if self.text is None else self.text
        return None if text is None else Answer(text, self.finished and self.finish_reason == "stop")


def win_rate(judge: Judge, comparisons: Sequence[Comparison]) -> WinRate:
    """The first answers' win rate over the second ones."""
    verdicts = judge.compare(comparisons)
    judged = [verdict for verdict in verdicts if verdict is not None]
    return WinRate(
        judge=judge.name,
        num=len(judged),
        num_missed=len(verdicts) - len(judged),
        win_rate=fmean(judged) if judged else None,
        standard_error=stdev(judged) / len(judged) ** 0.5 if len(judged) > 1 else None,
        share_preferred=fmean(map(preferred, judged)) if judged else None,
        share_longer=fmean(longer(c.first.text, c.second.text) for c in comparisons) if comparisons else None,
    )


def pair_up(
    questions: Mapping[str, Question], first: Mapping[str, Answer], second: Mapping[str, Answer]
) -> list[Comparison]:
    """The comparisons of the questions that both have answered. Raises InputError where there is none."""
    both = [id_ for id_ in questions if id_ in first and id_ in second]
    if not both:
        raise InputError(
            f"no prompt has two answers to compare: {len(questions)} prompts, {len(first)} answers of the first,"
            f" {len(second)} of the second"
        )
    return [Comparison(questions[id_], first[id_], second[id_]) for id_ in both]


def read_questions(path: Path) -> dict[str, Question]:
    """By prompt id. Raises InputError with file and line."""
    questions: dict[str, Question] = {}
    for where, asked in read_models(path, _Asked):
        if asked.id in questions:
            raise InputError(f"{where}: id {asked.id!r} was used before")
        questions[asked.id] = Question(asked.instruction, asked.input or None, asked.system or None)
    return questions


def read_answers(path: Path) -> dict[str, Answer]:
    """By prompt id, of reports (``text``, ``finish_reason``) or answers (``output``, ``finished``). Raises InputError
    with file and line."""
    answers: dict[str, Answer] = {}
    for where, answered in read_models(path, _Answered):
        id_ = answered.prompt_id or answered.id
        if answered.answer is None:
            raise InputError(f"{where}: a text is expected in field 'text' or 'output'")
        if id_ in answers:
            raise InputError(f"{where}: a second answer to {id_!r}")
        answers[id_] = answered.answer
    return answers
