"""Throughput under load: who is measured when, how many are in flight, and what is kept."""

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pasta_ray.engine.messages import Report, Sampling
from pasta_ray.errors import InputError
from pasta_ray.eval.load import bursts, read_points, run_bursts
from pasta_ray.eval.local import LocalAnswerer
from pasta_ray.eval.plan import EvalPlan, System
from pasta_ray.eval.prompts import Prompt
from pasta_ray.eval.run import Task
from pasta_ray.eval.served import ServedAnswerer
from pasta_ray.lang import TagMap
from tests.engine.conftest import save_model
from tests.engine.test_tokenizer import save_tokenizer
from tests.eval.reports import report

PROMPTS = tuple(Prompt(id=f"p{n}", instruction=f"hello {n}") for n in range(8))
SYSTEMS = [System(name=name, method="sequential") for name in "AB"]


def plan(of: Sequence[System] = SYSTEMS, **load: Any) -> EvalPlan:
    settings = {"concurrency": [1, 4], "num_prompts": 4} | load
    return EvalPlan(prompts="p.jsonl", systems=list(of), max_tokens=12, warmup_tokens=2, load=settings)


class FakeCrowd:
    """Answers ten tokens a prompt in 10 ms, all of a burst together; notes what it was asked."""

    def __init__(self, refuses: bool = False) -> None:
        self.asked: list[tuple[str, int, int, int]] = []
        self.refuses = refuses

    def answer_crowd(self, tasks: Sequence[tuple[Task, Sampling]], max_tokens: int, concurrency: int) -> list[Report]:
        self.asked.append((tasks[0][0].system.name, len(tasks), max_tokens, concurrency))
        time.sleep(0.01)
        return [] if self.refuses else [report(2.0, tokens=10) for _ in tasks]


def test_systems_take_turns_and_warm_up(tmp_path: Path) -> None:
    """Guards all of one system before all of the other, and a first burst that pays for what is made on first use."""
    crowd, ours, path = FakeCrowd(), plan(), tmp_path / "load.jsonl"
    points = list(run_bursts(ours, bursts(ours), PROMPTS, crowd, path))
    assert crowd.asked == [
        *(("A", 1, 2, 1), ("A", 4, 12, 1)),
        *(("B", 1, 2, 1), ("B", 4, 12, 1)),
        *(("B", 4, 2, 4), ("B", 4, 12, 4)),
        *(("A", 4, 2, 4), ("A", 4, 12, 4)),
    ]
    assert [(point.system, point.concurrency, point.num_answers) for point in points] == [
        *(("A", 1, 4), ("B", 1, 4), ("B", 4, 4), ("A", 4, 4))
    ]
    assert all(point.latency_s.p50 == 2.0 for point in points)
    assert all(40 / 0.5 < point.tokens_per_s <= 40 / 0.01 for point in points)


def test_what_is_measured_is_kept_and_belongs_to_its_plan(tmp_path: Path) -> None:
    """Guards points that are measured again, and points of so many prompts beside points of so many others."""
    ours, path = plan(), tmp_path / "load.jsonl"
    list(run_bursts(ours, bursts(ours)[:3], PROMPTS, FakeCrowd(), path))
    assert len(read_points(ours, path)) == 3
    assert read_points(plan(num_prompts=5), path) == []
    assert len(read_points(plan(systems=["A"]), path)) == 1
    assert bursts(EvalPlan(prompts="p.jsonl", systems=SYSTEMS)) == []


def test_a_system_that_refuses_everything_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="load: system 'A' refused every prompt"):
        list(run_bursts(plan(), bursts(plan()), PROMPTS, FakeCrowd(refuses=True), tmp_path / "load.jsonl"))


@pytest.mark.parametrize(
    ("load", "message"),
    [
        ({"systems": ["C"]}, "load.systems: 'C' is no system; allowed: A, B"),
        ({"concurrency": [1, 1]}, "1 is there twice"),
        ({"concurrency": [0]}, "greater than or equal to 1"),
        ({"concurrency": []}, "at least 1 item"),
    ],
)
def test_mistakes_are_named(load: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan(**load)


def test_an_engine_answers_a_crowd_as_it_answers_one(tmp_path: Path) -> None:
    """Guards answers that depend on neighbours, more requests in flight than asked for, and slots that stay."""
    folder = save_tokenizer(save_model(tmp_path / "model", vocab_size=306))
    TagMap.after(300).save(folder)
    ours = plan([System(name="A", method="pasta", model=str(folder))])
    answerer = LocalAnswerer(ours)
    questions = [(Task(prompt, ours.systems[0], 0), Sampling()) for prompt in PROMPTS]
    alone = {task.id: answerer.answer(task, sampling, 12).document for task, sampling in questions}
    crowd = answerer.answer_crowd(questions, 12, 3)
    assert {report.id: report.document for report in crowd} == alone
    assert answerer.num_slots == 0


def test_an_endpoint_gets_so_many_requests_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards a crowd that is asked one by one; a refused prompt is left out."""
    ours = plan([System(name="A", method="pasta", base_url="http://127.0.0.1:1/v1")])
    answerer, together = ServedAnswerer(ours), threading.Barrier(4, timeout=10)

    def answer(task: Task, *_: object) -> Report:
        together.wait()
        if task.prompt.id == "p3":
            raise InputError("too long")
        return report(float(task.prompt.id[1:]))

    monkeypatch.setattr(answerer, "answer", answer)
    questions = [(Task(prompt, ours.systems[0], 0), Sampling()) for prompt in PROMPTS]
    assert [report.timing.wall_s for report in answerer.answer_crowd(questions, 12, 4)] == [0, 1, 2, 4, 5, 6, 7]
