"""Every prompt by every system, one request at a time, in turn; and again from where it stopped.

The order is A B C, B C A, C A B, …: whatever slows the machine for a while slows all alike, and no system is always the
first or the last of a round.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pasta_ray.engine.messages import Report, Sampling
from pasta_ray.errors import InputError
from pasta_ray.eval.answers import Answer, answer_id
from pasta_ray.eval.plan import EvalPlan, System
from pasta_ray.eval.prompts import Prompt
from pasta_ray.train.jsonl import read_appended, to_line
from pasta_ray.train.sample import Plan as SamplePlan


@dataclass(frozen=True)
class Task:
    """One answer that is to be had."""

    prompt: Prompt
    system: System
    repetition: int

    @property
    def id(self) -> str:
        return answer_id(self.prompt.id, self.system.name, self.repetition)


class Answerer(Protocol):
    """Who answers: engines in this process, or an endpoint."""

    def answer(self, task: Task, sampling: Sampling, max_tokens: int) -> Report:
        """Raises InputError for a prompt that cannot be answered here."""
        ...


def schedule(plan: EvalPlan, prompts: Sequence[Prompt]) -> Iterator[Task]:
    num_systems = len(plan.systems)
    for repetition in range(plan.repetitions):
        for number, prompt in enumerate(prompts):
            for place in range(num_systems):
                yield Task(prompt, plan.systems[(number + repetition + place) % num_systems], repetition)


def read_done(path: Path) -> set[str]:
    """Ids of the answers that are there. A half-written last line is removed from the file, and so answered again."""
    return {line["id"] for line in read_appended(path)}


def sampling(plan: EvalPlan, task: Task) -> Sampling:
    """All systems draw a prompt's answer from the same seed, which depends on prompt and repetition alone."""
    seeds = SamplePlan(temperature=plan.temperature, top_p=plan.top_p, seed=plan.seed)
    return seeds.sampling(task.prompt.id, task.repetition)


def run_tasks(plan: EvalPlan, tasks: Sequence[Task], answerer: Answerer, path: Path) -> Iterator[Answer]:
    """Append an answer a task to ``path``, each in one write as it comes."""
    warm_up(plan, tasks[0].prompt, answerer)
    for task in tasks:
        given = answer(plan, task, answerer)
        append(path, given)
        yield given


def append(path: Path, answer: Answer) -> None:
    with path.open("a", encoding="utf-8") as out:
        out.write(to_line(answer.model_dump(mode="json")))


def warm_up(plan: EvalPlan, prompt: Prompt, answerer: Answerer) -> None:
    """Every system answers once, and is not heard: what is allocated and compiled on first use is no part of an
    answer's time."""
    short = plan.model_copy(update={"max_tokens": min(plan.warmup_tokens, plan.max_tokens)})
    for system in plan.systems:
        answer(short, Task(prompt, system, 0), answerer)


def answer(plan: EvalPlan, task: Task, answerer: Answerer) -> Answer:
    report, refusal = None, ""
    try:
        report = answerer.answer(task, sampling(plan, task), plan.max_tokens)
    except InputError as error:
        refusal = str(error)
    return Answer(
        id=task.id,
        prompt_id=task.prompt.id,
        system=task.system.name,
        repetition=task.repetition,
        report=report,
        refusal=refusal,
    )
