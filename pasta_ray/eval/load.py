"""Throughput under load: so many requests at once, each followed by the next as soon as its answer is there."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pasta_ray.engine.messages import Report, Sampling
from pasta_ray.errors import InputError
from pasta_ray.eval.figures import LoadPoint
from pasta_ray.eval.plan import EvalPlan, System
from pasta_ray.eval.prompts import Prompt, evenly
from pasta_ray.eval.run import Task, sampling
from pasta_ray.eval.speed import percentiles
from pasta_ray.train.jsonl import read_appended, to_line


@dataclass(frozen=True)
class Burst:
    """One measurement: a system answers ``num_prompts`` prompts, ``concurrency`` of them at a time."""

    system: System
    concurrency: int
    num_prompts: int

    @property
    def id(self) -> str:
        return f"{self.system.name}#{self.concurrency}#{self.num_prompts}"


class CrowdAnswerer(Protocol):
    """Who answers many at once: engines in this process, or an endpoint."""

    def answer_crowd(self, tasks: Sequence[tuple[Task, Sampling]], max_tokens: int, concurrency: int) -> list[Report]:
        """Of the tasks of one system, in any order; refused ones are left out."""
        ...


def bursts(plan: EvalPlan) -> list[Burst]:
    """All systems at one level before the next level comes, and another one first at each."""
    if plan.load is None:
        return []
    systems = [system for system in plan.systems if not plan.load.systems or system.name in plan.load.systems]
    return [
        Burst(systems[(number + place) % len(systems)], level, plan.load.num_prompts)
        for number, level in enumerate(plan.load.concurrency)
        for place in range(len(systems))
    ]


def run_bursts(
    plan: EvalPlan, todo: Sequence[Burst], prompts: Sequence[Prompt], answerer: CrowdAnswerer, path: Path
) -> Iterator[LoadPoint]:
    """Append a point a burst to ``path``. Raises InputError where no prompt of the load can be answered."""
    for burst in todo:
        tasks = [Task(prompt, burst.system, 0) for prompt in evenly(prompts, burst.num_prompts)]
        questions = [(task, sampling(plan, task)) for task in tasks]
        answerer.answer_crowd(questions[: burst.concurrency], plan.warmup_tokens, burst.concurrency)
        start_s = time.perf_counter()
        reports = answerer.answer_crowd(questions, plan.max_tokens, burst.concurrency)
        seconds = time.perf_counter() - start_s
        if not reports:
            raise InputError(f"load: system {burst.system.name!r} refused every prompt")
        point = LoadPoint(
            id=burst.id,
            system=burst.system.name,
            concurrency=burst.concurrency,
            num_answers=len(reports),
            tokens_per_s=sum(report.usage.completion_tokens for report in reports) / seconds,
            latency_s=percentiles([report.timing.wall_s for report in reports]),
            ttft_s=percentiles([report.timing.ttft_s for report in reports]),
        )
        with path.open("a", encoding="utf-8") as file:
            file.write(to_line(point.model_dump(mode="json")))
        yield point


def read_points(plan: EvalPlan, path: Path) -> list[LoadPoint]:
    """Of the plan's bursts, in their order; those of another plan stay in the file."""
    found = {line["id"]: LoadPoint.model_validate(line) for line in read_appended(path)}
    return [found[burst.id] for burst in bursts(plan) if burst.id in found]
