"""An evaluation in less time: several processes that answer at once, each on cores of its own.

They share the machine's memory, so that all answers take longer than alone; what is compared does so alike.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from itertools import groupby
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from pasta_ray.errors import InputError, PastaError
from pasta_ray.eval.answers import Answer
from pasta_ray.eval.plan import EvalPlan
from pasta_ray.eval.run import Answerer, Task, answer, append, warm_up

MakeAnswerer = Callable[[EvalPlan], Answerer]


def run_in_workers(plan: EvalPlan, tasks: Sequence[Task], make: MakeAnswerer, path: Path) -> Iterator[Answer]:
    """As `run.run_tasks`, but a prompt's answers are appended together, when its last system has answered. ``make`` is
    called in each process. Raises InputError where there are fewer cores than workers, and what ``make`` raises."""
    context = get_context("spawn")  # a forked torch hangs in its first parallel region
    shares = context.SimpleQueue()
    for share in core_shares(plan.workers):
        shares.put(share)
    rounds = [tuple(group) for _, group in groupby(tasks, lambda task: (task.prompt.id, task.repetition))]
    pool = ProcessPoolExecutor(min(plan.workers, len(rounds)), context, _start, (plan, make, shares))
    try:
        for done in as_completed([pool.submit(_answer_all, several) for several in rounds]):
            for each in done.result():
                append(path, each)
                yield each
    except BrokenProcessPool as error:
        raise PastaError(
            f"a worker's process has died; its prompt is answered when this is run again: {error}"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def core_shares(num_workers: int) -> list[set[int]]:
    """Each worker's cores: equally many, of those that this process may use; none where a system cannot say."""
    if not hasattr(os, "sched_getaffinity"):
        return [set() for _ in range(num_workers)]
    cores = sorted(os.sched_getaffinity(0))
    num_each = len(cores) // num_workers
    if not num_each:
        raise InputError(f"workers is {num_workers}; allowed: up to {len(cores)}, a core for each")
    return [set(cores[index * num_each :][:num_each]) for index in range(num_workers)]


class _Worker:
    """What this process is, where it is a worker. It loads with its first round, which can say what went wrong."""

    plan: EvalPlan
    make: MakeAnswerer
    answerer: Answerer | None = None


def _start(plan: EvalPlan, make: MakeAnswerer, shares: Any) -> None:
    if share := shares.get():
        os.sched_setaffinity(0, share)
    _Worker.plan, _Worker.make = plan, staticmethod(make)


def _answer_all(tasks: Sequence[Task]) -> list[Answer]:
    plan = _Worker.plan
    if _Worker.answerer is None:
        _Worker.answerer = _Worker.make(plan)
        warm_up(plan, tasks[0].prompt, _Worker.answerer)
    return [answer(plan, task, _Worker.answerer) for task in tasks]
