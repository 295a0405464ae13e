"""Several processes that answer at once. They import this file: it imports little."""

import os
from pathlib import Path
from typing import Any

import pytest

from pasta_ray.engine.messages import Report
from pasta_ray.errors import InputError, PastaError
from pasta_ray.eval.answers import read_answers
from pasta_ray.eval.plan import EvalPlan, System
from pasta_ray.eval.prompts import Prompt
from pasta_ray.eval.run import Task, schedule
from pasta_ray.eval.workers import core_shares, run_in_workers
from tests.eval.reports import report

pytestmark = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
PROMPTS = tuple(Prompt(id=f"p{n}", instruction=f"hello {n}") for n in range(5))


def plan(**changes: Any) -> EvalPlan:
    systems = [System(name=name, method="sequential") for name in "ABC"]
    return EvalPlan(prompts="prompts.jsonl", systems=systems, workers=2, **changes)


class CoreAnswerer:
    """Says which cores it may use. Cannot be made with another seed than 0, and dies where a prompt says so."""

    def __init__(self, plan: EvalPlan) -> None:
        if plan.seed:
            raise InputError(f"system 'A': seed {plan.seed} cannot be loaded")

    def answer(self, task: Task, *_: Any) -> Report:
        if task.prompt.instruction == "die":
            os._exit(1)
        return report(text=f"on {sorted(os.sched_getaffinity(0))}")


def test_workers_answer_everything_once_each_on_its_own_cores(tmp_path: Path) -> None:
    path, two = tmp_path / "answers.jsonl", plan()
    tasks = list(schedule(two, PROMPTS))
    list(run_in_workers(two, tasks, CoreAnswerer, path))
    answers = read_answers(path)
    assert sorted(answer.id for answer in answers) == sorted(task.id for task in tasks)
    said = {answer.report.text for answer in answers if answer.report}
    assert said <= {f"on {sorted(share)}" for share in core_shares(2)}
    rounds = [answers[i : i + 3] for i in range(0, 15, 3)]
    assert all(len({answer.prompt_id for answer in one}) == 1 for one in rounds), "a prompt's systems share a worker"


def test_workers_that_cannot_work_say_why(tmp_path: Path) -> None:
    """Guards against a hang, and against a traceback of the pool."""
    with pytest.raises(InputError, match="workers is 9999; allowed: up to"):
        core_shares(9999)
    broken, path = plan(seed=3), tmp_path / "answers.jsonl"
    with pytest.raises(InputError, match="system 'A': seed 3 cannot be loaded"):
        list(run_in_workers(broken, list(schedule(broken, PROMPTS[:1])), CoreAnswerer, path))
    deadly = list(schedule(plan(), [Prompt(id="p1", instruction="die")]))
    with pytest.raises(PastaError, match="a worker's process has died"):
        list(run_in_workers(plan(), deadly, CoreAnswerer, path))
    assert not path.exists()
