"""From a file of prompts to a file of answers, through a pool of Ray Data's actors with an engine each."""

import logging
import math
import pickle
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from pasta_ray.batch.attempts import start_attempts
from pasta_ray.batch.journal import Journal, writing
from pasta_ray.batch.rows import Row, answer_line, read_rows
from pasta_ray.batch.worker import Job, Worker, to_record
from pasta_ray.errors import InputError, ReplicaError

MAX_TASKS = 10_000


@dataclass(frozen=True)
class Pool:
    """``num_workers`` engines, each in a process of its own with ``batch`` rows in its steps."""

    num_workers: int = 1
    batch: int = 16
    cpus_per_worker: float = 1
    gpus_per_worker: float = 0

    def __post_init__(self) -> None:
        for name in ("num_workers", "batch"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; allowed: 1 or more")


@dataclass
class Progress:
    """Rows of the file, those answered by now, and those of them whose answer is a fault."""

    num_rows: int
    num_before: int
    num_done: int
    num_errors: int

    def counts(self) -> dict[str, int]:
        """By the names that are printed."""
        return {
            "rows": self.num_rows,
            "answered_before": self.num_before,
            "answered": self.num_done - self.num_before,
            "errors": self.num_errors,
        }


def run_batch(prompts: Path, out: Path, job: Job, pool: Pool) -> Iterator[Progress]:
    """Answer the rows that ``out`` has no answer of yet, and say how far that is, first before anything is decoded.

    The iteration needs a Ray that runs, the call does not. Raises InputError for files that cannot be read or do not
    fit each other, and what ends all workers, such as a model that cannot be loaded; what was answered by then stays.
    """
    rows = list(read_rows(prompts))
    _check_same(prompts, rows, Journal(out))
    return _run(prompts, rows, out, job, pool)


def _run(prompts: Path, rows: Sequence[Row], out: Path, job: Job, pool: Pool) -> Iterator[Progress]:
    with writing(out) as journal:
        _check_same(prompts, rows, journal)  # another run may have been there in between
        waiting = [row for row in rows if row.number not in journal.done]
        progress = Progress(len(rows), len(journal.done), len(journal.done), journal.num_errors)
        yield progress
        for line in _answers(waiting, job, pool):
            journal.add(line)
            progress.num_done, progress.num_errors = len(journal.done), journal.num_errors
            yield progress
        assert len(journal.done) == len(rows), "a row has no answer"
        journal.finish()


def _check_same(prompts: Path, rows: Sequence[Row], journal: Journal) -> None:
    """The answers that are there must be of these prompts."""
    for number, id_ in journal.done.items():
        if number >= len(rows) or rows[number].id != id_:
            raise InputError(
                f"{journal.out}: its answer to row {number} has id {id_!r}, and {prompts} has another row there;"
                " choose another file"
            )


def _answers(rows: Sequence[Row], job: Job, pool: Pool) -> Iterator[str]:
    """One line a row, in the order in which they end."""
    faulty = [row for row in rows if row.values is None]
    yield from (answer_line(row, None, InputError(row.fault)) for row in faulty)
    sound = [row for row in rows if row.values is not None]
    if not sound:
        return
    try:
        yield from _decoded(sound, job, pool)
    except RayError as error:
        raise ReplicaError(f"the workers failed: {str(error).strip().splitlines()[-1]}") from error


def _decoded(rows: Sequence[Row], job: Job, pool: Pool) -> Iterator[str]:
    import ray.data

    _check_room(pool)
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # the caller shows progress, in rows
    per_task = max(1, min(pool.batch, math.ceil(len(rows) / MAX_TASKS)))  # a task's answers are safe when it ends
    in_flight = math.ceil(pool.batch / per_task)
    dataset = (
        ray.data.from_items([to_record(row) for row in rows])
        .repartition(target_num_rows_per_block=per_task)
        .map_batches(
            Worker,
            batch_size=None,
            batch_format="numpy",
            fn_constructor_args=(job, start_attempts()),
            compute=ray.data.ActorPoolStrategy(
                size=min(pool.num_workers, len(rows)),
                max_tasks_in_flight_per_actor=in_flight,
                max_concurrent_calls_per_actor=in_flight,
            ),
            num_cpus=pool.cpus_per_worker,
            num_gpus=pool.gpus_per_worker or None,
            runtime_env={"env_vars": {"OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}},
        )
    )
    dataset.context.enable_progress_bars = False
    batches: Iterable[dict[str, Any]] = dataset.iter_batches(prefetch_batches=0, batch_size=None)
    for batch in batches:
        for line, raised in zip(batch["line"], batch["raised"], strict=True):
            if raised:
                raise pickle.loads(raised)
            yield str(line)


def _check_room(pool: Pool) -> None:
    there: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]  # as Ray ships it
    for name, each in (("CPU", pool.cpus_per_worker), ("GPU", pool.gpus_per_worker)):
        needed = pool.num_workers * each
        if there.get(name, 0) < needed:
            raise InputError(f"{pool.num_workers} workers need {needed:g} {name}s; this Ray has {there.get(name, 0):g}")
