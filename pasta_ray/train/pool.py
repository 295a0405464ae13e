"""Work through batches, here or in a pool of Ray Data's workers; the results are the same, and in the same order."""

import logging
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from pasta_ray.errors import InputError, PastaError

Item = TypeVar("Item")
Result = TypeVar("Result")
Work = Callable[[Sequence[Item]], Result]


@dataclass(frozen=True)
class Pool:
    """``num_workers`` processes of a Ray cluster; with none the work is done in this process and needs no Ray."""

    num_workers: int = 0
    cpus_per_worker: float = 1
    gpus_per_worker: float = 0

    def __post_init__(self) -> None:
        if self.num_workers < 0:
            raise InputError(f"num_workers is {self.num_workers}; allowed: 0, which works without Ray, or more")


def run_batches(
    load: Callable[[], Work[Item, Result]], items: Sequence[Item], *, batch_size: int, pool: Pool
) -> Iterator[Result]:
    """One result a batch, in the order of the items, as soon as it is there. ``load`` makes what does the work, once a
    worker; it and the items travel by pickle. A PastaError of a worker is raised here. A pool needs a Ray that runs."""
    batches = [items[start : start + batch_size] for start in range(0, len(items), batch_size)]
    if not batches:
        return
    if pool.num_workers == 0:
        yield from map(load(), batches)
        return
    for result in _run_in_pool(load, batches, pool):
        if isinstance(result, PastaError):
            raise result
        yield result


def _run_in_pool(
    load: Callable[[], Work[Item, Result]], batches: Sequence[Sequence[Item]], pool: Pool
) -> Iterator[Any]:
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)  # the caller shows progress, in batches
    rows = [{"batch": pickle.dumps(batch)} for batch in batches]
    # One block a batch: a result leaves a worker when its block is done, and is safe from then on.
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        _Worker,
        batch_size=1,
        batch_format="numpy",
        fn_constructor_args=(load,),
        compute=ray.data.ActorPoolStrategy(size=min(pool.num_workers, len(batches)), max_tasks_in_flight_per_actor=2),
        num_cpus=pool.cpus_per_worker,
        num_gpus=pool.gpus_per_worker or None,
    )
    dataset.context.enable_progress_bars = False
    dataset.context.execution_options.preserve_order = True
    for row in dataset.iter_rows():
        yield pickle.loads(row["result"])


class _Worker:
    """A worker's class for Ray Data. It loads at its first batch, so that errors of loading are results, too."""

    def __init__(self, load: Callable[[], Work[Any, Any]]) -> None:
        self._load = load

    @cached_property
    def _work(self) -> Work[Any, Any]:
        return self._load()

    def __call__(self, batch: Mapping[str, Sequence[bytes]]) -> dict[str, list[bytes]]:
        results = []
        for row in batch["batch"]:
            try:
                result = self._work(pickle.loads(row))
            except PastaError as error:
                result = error
            results.append(pickle.dumps(result))
        return {"result": results}
