"""Samplers in Ray actors: one engine each, on one node or many."""

from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError

from pasta_ray.engine.messages import Request
from pasta_ray.errors import InputError, ReplicaError
from pasta_ray.train.sample import Decodes, Outcome, Sampler


class RayCrew:
    """``size`` actors. A message to one carries new requests, its answer the outcomes of one or more requests. A worker
    that dies is replaced, up to ``max_lost`` times in all. Raises InputError where Ray has too few CPUs or GPUs."""

    def __init__(
        self, load: Callable[[], Decodes], size: int, *, num_cpus: float, num_gpus: float = 0, max_lost: int = 3
    ) -> None:
        there: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]  # as Ray ships it
        for name, needed in (("CPU", size * num_cpus), ("GPU", size * num_gpus)):
            if there.get(name, 0) < needed:
                raise InputError(f"{size} workers need {needed:g} {name}s; this Ray has {there.get(name, 0):g}")
        self.size = size
        self._load = load
        self._actor_class: Any = ray.remote(num_cpus=num_cpus, num_gpus=num_gpus)(Sampler)
        self._actors: list[Any] = [self._actor_class.remote(load) for _ in range(size)]
        self._calls: dict[Any, int] = {}
        self._num_lost, self._max_lost = 0, max_lost

    def start(self, worker: int, requests: Sequence[Request]) -> None:
        self._calls[self._actors[worker].work.remote(list(requests))] = worker

    def wait(self) -> tuple[int, list[Outcome] | None]:
        (ready,), _ = ray.wait(list(self._calls), num_returns=1)
        worker = self._calls.pop(ready)
        try:
            outcomes: list[Outcome] = ray.get(ready)
        except RayActorError as error:
            self._num_lost += 1
            if self._num_lost > self._max_lost:
                raise ReplicaError(f"sampling workers died {self._num_lost} times, at last so: {error}") from error
            self._actors[worker] = self._actor_class.remote(self._load)
            return worker, None
        return worker, outcomes

    def close(self) -> None:
        for actor in self._actors:
            ray.kill(actor)
