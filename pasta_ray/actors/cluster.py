"""The actors of a running service: one coordinator, which owns its decode replicas, so they live and die with it."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import ray

from pasta_ray.actors.coordinator import Coordinator
from pasta_ray.actors.decode_actor import MAX_STREAMS, DecodeActor
from pasta_ray.actors.messages import ClusterHealth, ClusterSpec, ReplicaStats
from pasta_ray.actors.remote import RemoteReplica, call, stream
from pasta_ray.engine.messages import Events, Request
from pasta_ray.errors import ReplicaError

COORDINATOR = "the coordinator"
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
    ).remote(spec.make_decoder, name)
    return RemoteReplica(name, actor)


class CoordinatorActor:
    """The Ray rim of `Coordinator`. Started on the first call, because only then does the actor's event loop run."""

    def __init__(self, spec: ClusterSpec) -> None:
        self._spec = spec
        self._replicas = [start_replica(spec, f"r{index}") for index in range(spec.replicas)]
        self._started: Coordinator | None = None

    @property
    def _coordinator(self) -> Coordinator:
        if self._started is None:
            spec = self._spec
            self._started = Coordinator(self._replicas, spec.max_ongoing, spec.max_queued, spec.check_period_s)
        return self._started

    @ray.method(num_returns="streaming")
    async def decode(self, request: Request) -> AsyncGenerator[Events, None]:
        async with aclosing(self._coordinator.decode(request)) as events:
            async for message in events:
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
        return stream(self._coordinator, COORDINATOR, request)

    async def health(self) -> ClusterHealth:
        health: ClusterHealth = await call(self._coordinator.health, COORDINATOR)
        return health

    async def stats(self) -> tuple[ReplicaStats, ...]:
        stats: tuple[ReplicaStats, ...] = await call(self._coordinator.stats, COORDINATOR)
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
