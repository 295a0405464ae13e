"""The actors of a running service: one coordinator, which owns its decode replicas, so they live and die with it."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import ray

from pasta_ray.actors.coordinator import Coordinator
from pasta_ray.actors.decode_actor import MAX_STREAMS, DecodeActor
from pasta_ray.actors.messages import ClusterHealth, ClusterSpec, ReplicaStats
from pasta_ray.actors.metrics import ANSWER, COORDINATOR, Answer, Publisher
from pasta_ray.actors.remote import RemoteReplica, call, stream
from pasta_ray.engine.messages import Events, Finished, Request
from pasta_ray.errors import ReplicaError
from pasta_ray.logs import configure

NAME = "the coordinator"
COORDINATOR_OPTIONS = {"num_cpus": 0, "max_concurrency": 2000}


def start_replica(spec: ClusterSpec, name: str) -> RemoteReplica:
    """Start one decode actor. Ray starts it again when its process dies; lost requests concern the coordinator."""
    actor_class: Any = ray.remote(concurrency_groups={"control": 16})(DecodeActor)  # type: ignore[call-overload]
    actor = actor_class.options(
        max_concurrency=MAX_STREAMS,
        num_cpus=spec.cpus_per_replica,
        num_gpus=spec.gpus_per_replica,
        max_restarts=-1,
        max_task_retries=0,
        runtime_env={"env_vars": {"OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}},
    ).remote(spec.make_decoder, name, spec.log)
    return RemoteReplica(name, actor)


class CoordinatorActor:
    """The Ray rim of `Coordinator`. Started on the first call, because only then does the actor's event loop run."""

    def __init__(self, spec: ClusterSpec) -> None:
        configure(spec.log)
        self._spec = spec
        self._answers = Publisher(ANSWER, ("model", "method"))
        self._load = Publisher(COORDINATOR)
        self._replicas = [start_replica(spec, f"r{index}") for index in range(spec.replicas)]
        self._started: Coordinator | None = None

    @property
    def _coordinator(self) -> Coordinator:
        if self._started is None:
            spec = self._spec
            self._started = Coordinator(self._replicas, spec.max_ongoing, spec.max_queued, spec.check_period_s)
            self._publishing = asyncio.create_task(self._publish(self._started))
        return self._started

    async def _publish(self, coordinator: Coordinator) -> None:
        while True:
            self._load.publish(coordinator.stats())
            await asyncio.sleep(self._spec.check_period_s)

    @ray.method(num_returns="streaming")
    async def decode(self, request: Request) -> AsyncGenerator[Events, None]:
        async with aclosing(self._coordinator.decode(request)) as events:
            async for message in events:
                for event in message.events:
                    if isinstance(event, Finished):
                        answer = Answer(event.report, self._coordinator.one_row_step_s(event.report))
                        self._answers.publish(answer, model=request.model, method=request.method)
                yield message

    async def health(self) -> ClusterHealth:
        return self._coordinator.health()

    async def stats(self) -> tuple[ReplicaStats, ...]:
        return tuple(await asyncio.gather(*(replica.stats() for replica in self._replicas)))


class Cluster:
    """A client of one coordinator: what the HTTP service and the command line decode with."""

    def __init__(self, coordinator: Any) -> None:
        self._coordinator = coordinator

    @classmethod
    def start(cls, spec: ClusterSpec) -> "Cluster":
        """Start a coordinator and its replicas; they end when this object is forgotten."""
        return cls(ray.remote(CoordinatorActor).options(**COORDINATOR_OPTIONS).remote(spec))

    def decode(self, request: Request) -> AsyncGenerator[Events, None]:
        return stream(self._coordinator, NAME, request)

    async def health(self) -> ClusterHealth:
        health: ClusterHealth = await call(self._coordinator.health, NAME)
        return health

    async def stats(self) -> tuple[ReplicaStats, ...]:
        stats: tuple[ReplicaStats, ...] = await call(self._coordinator.stats, NAME)
        return stats

    async def wait_ready(self, timeout_s: float = 300.0, poll_s: float = 0.2) -> None:
        """Return when a replica can decode; ReplicaError when none will."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        while not (health := await self.health()).ready:
            if health.failed:
                raise ReplicaError(f"no replica could start: {health}")
            if asyncio.get_running_loop().time() > deadline:
                raise ReplicaError(f"no replica was ready after {timeout_s:.0f} s: {health}")
            await asyncio.sleep(poll_s)
