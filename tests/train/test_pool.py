"""Batches in this process and in Ray Data's workers: the same results, order and errors."""

import os
import time
from collections.abc import Callable, Sequence

import pytest

from pasta_ray.errors import InputError, ModelError
from pasta_ray.train.endpoint import EndpointError
from pasta_ray.train.pool import Pool, run_batches

Work = Callable[[Sequence[int]], tuple[int, list[int]]]


def loader(stumble_at: int = -1, *, broken: bool = False) -> Callable[[], Work]:
    """A worker's process id and squares; the first batch takes longest. Nested, so that it travels by value."""

    def load() -> Work:
        if broken:
            raise ModelError("no such model")

        def work(numbers: Sequence[int]) -> tuple[int, list[int]]:
            if stumble_at in numbers:
                raise EndpointError("a reason", "a detail")
            time.sleep(0.5 if 0 in numbers else 0.01)
            return os.getpid(), [number**2 for number in numbers]

        return work

    return load


@pytest.mark.usefixtures("ray_cluster")
def test_a_pool_does_what_this_process_does() -> None:
    """Guards the one code path: results and their order are the same, whoever was faster."""
    here = list(run_batches(loader(), range(40), batch_size=3, pool=Pool()))
    there = list(run_batches(loader(), range(40), batch_size=3, pool=Pool(2, cpus_per_worker=0)))
    assert [squares for _, squares in here] == [squares for _, squares in there]
    assert {pid for pid, _ in here} == {os.getpid()}
    assert os.getpid() not in {pid for pid, _ in there}


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("num_workers", [0, 1])
def test_errors_of_workers_are_raised_here(num_workers: int) -> None:
    """Guards one-line errors: what a worker raises on purpose arrives as it is, after what was done before it."""
    pool = Pool(num_workers, cpus_per_worker=0)
    results = run_batches(loader(7), range(10), batch_size=3, pool=pool)
    assert [next(results)[1], next(results)[1]] == [[0, 1, 4], [9, 16, 25]]
    with pytest.raises(EndpointError) as caught:
        next(results)
    assert (caught.value.reason, caught.value.detail) == ("a reason", "a detail")
    with pytest.raises(ModelError, match="no such model"):
        list(run_batches(loader(broken=True), range(10), batch_size=3, pool=pool))


def test_nothing_to_do_and_nobody_to_do_it() -> None:
    """Guards a run that was complete already, which should load no model, and a count that means nothing."""
    assert list(run_batches(loader(broken=True), [], batch_size=3, pool=Pool(2))) == []
    with pytest.raises(InputError, match="num_workers is -1"):
        Pool(-1)
