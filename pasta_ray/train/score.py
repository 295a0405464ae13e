"""Quality of samples: what a judge makes of each, beside the speedup that it already carries. Resumable.

Scored once: λ comes in when pairs are chosen by ``speedup + λ · quality``. ``quality`` is a win rate in [0, 1]: against
the reference answer to the prompt or, without references, against the other samples of it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from pydantic import BaseModel, ConfigDict

from pasta_ray.errors import InputError
from pasta_ray.train.jsonl import read_appended, read_models, to_line
from pasta_ray.train.judges.base import Answer, Comparison, Judge, Question, preferred


class Sample(BaseModel):
    """What scoring reads of a sample's line; the rest of the line is carried as it is."""

    model_config = ConfigDict(frozen=True, extra="allow")

    id: str
    prompt_id: str
    instruction: str
    text: str
    finish_reason: str
    speedup: float
    input: str | None = None
    system: str | None = None

    @property
    def question(self) -> Question:
        return Question(self.instruction, self.input, self.system)

    @property
    def answer(self) -> Answer:
        return Answer(self.text, self.finish_reason == "stop")


@dataclass
class Scored:
    """Counts of a scoring run: samples written by it and by earlier ones, comparisons made, comparisons without a
    usable verdict, and samples left out because they had no comparison with one."""

    num_samples: int = 0
    num_before: int = 0
    num_comparisons: int = 0
    num_missed: int = 0
    num_unscored: int = 0


def read_samples(path: Path) -> dict[str, list[Sample]]:
    """All samples by prompt. Raises InputError with file and line, for an id used twice too."""
    by_prompt: dict[str, list[Sample]] = {}
    seen: set[str] = set()
    for where, sample in read_models(path, Sample):
        if sample.id in seen:
            raise InputError(f"{where}: id {sample.id!r} was used before")
        seen.add(sample.id)
        by_prompt.setdefault(sample.prompt_id, []).append(sample)
    return by_prompt


def score_samples(
    by_prompt: Mapping[str, Sequence[Sample]],
    judge: Judge,
    out: Path,
    result: Scored,
    *,
    references: Mapping[str, Answer] | None = None,
    num_opponents: int | None = None,
    prompts_at_once: int = 8,
) -> Iterator[int]:
    """Append the scored samples to ``out``, ``prompts_at_once`` prompts at a time, skipping those that are in it;
    yields how many samples were dealt with. Raises InputError where ``out`` was written with another judge, or a
    prompt has neither a reference nor a second sample."""
    done = _read_scored(out, judge.name)
    result.num_before = len(done)
    todo = [samples for samples in by_prompt.values() if any(sample.id not in done for sample in samples)]
    for samples in todo:
        _check_opponents(samples, references)
    with out.open("a", encoding="utf-8") as file:
        for start in range(0, len(todo), prompts_at_once):
            group = todo[start : start + prompts_at_once]
            lines = _score(group, done, judge, references, num_opponents, result)
            file.writelines(map(to_line, lines))
            file.flush()
            yield sum(sample.id not in done for samples in group for sample in samples)


def _read_scored(out: Path, judge: str) -> set[str]:
    done = read_appended(out)
    for number, line in enumerate(done, 1):
        if line.get("judge") != judge:
            raise InputError(
                f"{out}, line {number}: judged by {line.get('judge')!r}, not {judge!r}; choose another file"
            )
    return {line["id"] for line in done}


def _check_opponents(samples: Sequence[Sample], references: Mapping[str, Answer] | None) -> None:
    prompt_id = samples[0].prompt_id
    if references is not None and prompt_id not in references:
        raise InputError(f"prompt {prompt_id!r} has no reference answer")
    if references is None and len(samples) < 2:
        raise InputError(f"prompt {prompt_id!r} has one sample; without references two are needed to compare")


def _score(
    group: Sequence[Sequence[Sample]],
    done: set[str],
    judge: Judge,
    references: Mapping[str, Answer] | None,
    num_opponents: int | None,
    result: Scored,
) -> Iterator[dict[str, Any]]:
    """The lines of those samples of ``group`` that are not done; their opponents may be."""
    met: list[tuple[Sample, Sample | None]] = []
    for samples in group:
        todo = [sample for sample in samples if sample.id not in done]
        if references is not None:
            met += [(sample, None) for sample in todo]
        else:
            names = {sample.id for sample in todo}
            met += [(a, b) for a, b in opponents(samples, num_opponents) if {a.id, b.id} & names]
    comparisons = [Comparison(a.question, a.answer, b.answer if b else _reference(a, references)) for a, b in met]
    verdicts = judge.compare(comparisons)
    result.num_comparisons += len(verdicts)
    result.num_missed += sum(verdict is None for verdict in verdicts)
    wins: dict[str, list[float]] = {}
    for (a, b), verdict in zip(met, verdicts, strict=True):
        if verdict is not None:
            wins.setdefault(a.id, []).append(verdict)
            if b:
                wins.setdefault(b.id, []).append(1 - verdict)
    for sample in (sample for samples in group for sample in samples if sample.id not in done):
        if sample.id not in wins:
            result.num_unscored += 1
            continue
        result.num_samples += 1
        own = wins[sample.id]
        won = list(map(preferred, own)) if judge.counts_wins and references is None else own
        line = sample.model_dump(exclude_none=True) | {
            "quality": round(fmean(won), 5),
            "win_probability": round(fmean(own), 5),
            "judge": judge.name,
        }
        if features := judge.features(sample.question, sample.answer):
            line["judge_features"] = features
        yield line


def _reference(sample: Sample, references: Mapping[str, Answer] | None) -> Answer:
    assert references is not None
    return references[sample.prompt_id]


def opponents(samples: Sequence[Sample], num: int | None) -> Iterator[tuple[Sample, Sample]]:
    """Pairs of samples such that each meets ``num`` others (one more where that does not come out even), or all, once.
    Seated in a circle, each meets its next neighbours, so that all have the same number of comparisons."""
    size = len(samples)
    reach = size // 2 if num is None else min(size // 2, -(-num // 2))
    for distance in range(1, reach + 1):
        twice = 2 * distance == size  # opposite each other: going on would meet again
        for i in range(size // 2 if twice else size):
            yield samples[i], samples[(i + distance) % size]
