"""The actors of a running service: a coordinator, and the decode replicas that it has started or found."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, suppress
from functools import partial
from typing import Any, cast

import ray

from pasta_ray.actors.coordinator import Coordinator
from pasta_ray.actors.decode_actor import MAX_STREAMS, UNREAD_MESSAGES, DecodeActor
from pasta_ray.actors.fleet import Growth, replica_name
from pasta_ray.actors.messages import (
    ClusterHealth,
    ClusterSpec,
    CoordinatorStats,
    Policy,
    ReplicaDiedError,
    ReplicaStats,
)
from pasta_ray.actors.metrics import ANSWER_METRICS, COORDINATOR_METRICS, Answer, Publisher
from pasta_ray.actors.recovery import recovered
from pasta_ray.actors.remote import RemoteReplica, call, stream
from pasta_ray.actors.scaling import Scaler
from pasta_ray.actors.sharing import NAMESPACE, actor_name, end_directory, start_directory
from pasta_ray.engine.messages import Events, Finished, Request
from pasta_ray.errors import ReplicaError
from pasta_ray.logs import configure

COORDINATOR = "the coordinator"
COORDINATOR_OPTIONS = {"num_cpus": 0, "max_concurrency": 2000}
MAX_DEATHS = 20
POLL_S = 0.2


def start_replica(spec: ClusterSpec, cluster: str, name: str) -> RemoteReplica:
    """The replica of that name, or a new one. Ray starts it again when its process dies, on another node where its own
    is gone; lost requests concern the coordinator. It belongs to no process, and outlives its coordinator."""
    shared_by = cluster if spec.most_replicas > 1 else None
    actor_class: Any = ray.remote(concurrency_groups={"control": 16})(DecodeActor)  # type: ignore[call-overload]  # untyped
    options = actor_class.options(
        name=actor_name(cluster, name),
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        max_concurrency=MAX_STREAMS,
        num_cpus=spec.cpus_per_replica,
        num_gpus=spec.gpus_per_replica,
        scheduling_strategy="SPREAD",
        max_restarts=-1,
        max_task_retries=0,
        runtime_env={"env_vars": {"OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}},
    )
    args = (spec.make_decoder, name, spec.orphan_s, spec.log, shared_by, spec.placement)
    return RemoteReplica(name, lambda: options.remote(*args))


def first_replicas(spec: ClusterSpec, cluster: str) -> list[str]:
    """Those that there always are, and those that an earlier coordinator has added."""
    always = [replica_name(index) for index in range(spec.replicas)]
    added = [replica_name(index) for index in range(spec.replicas, spec.most_replicas)]
    there = {entry["name"] for entry in ray.util.list_named_actors(all_namespaces=True)} if added else set()
    return always + [name for name in added if actor_name(cluster, name) in there]


class CoordinatorActor:
    """The Ray rim of `Coordinator`. Started on the first call, because only then does the actor's event loop run.

    Its replicas bear its name, by which the coordinator after it finds them: the name that Serve gives it, or its id,
    which it keeps where Ray starts it again.
    """

    def __init__(self, spec: ClusterSpec) -> None:
        configure(spec.log)
        self._spec = spec
        self._answers = Publisher(ANSWER_METRICS, ("model", "method"))
        self._load = Publisher(COORDINATOR_METRICS)
        context = ray.get_runtime_context()
        self._cluster = str(context.get_actor_name() or context.get_actor_id())
        if spec.most_replicas > 1:
            start_directory(self._cluster)
        self._start = partial(start_replica, spec, self._cluster)
        self._first = [self._start(name) for name in first_replicas(spec, self._cluster)]
        self._started: Coordinator | None = None
        context.current_actor.health.remote()  # a first call: replicas must hear from somebody, asked for or not

    @property
    def _coordinator(self) -> Coordinator:
        if self._started is None:
            spec = self._spec
            self._started = Coordinator(
                self._first,
                spec.max_ongoing,
                spec.max_queued,
                spec.check_period_s,
                spec.max_deaths,
                spec.wait_s,
                self._growth(spec),
            )
            self._publishing = asyncio.create_task(self._publish(self._started))
        return self._started

    def _growth(self, spec: ClusterSpec) -> Growth | None:
        if spec.most_replicas == spec.replicas:
            return None
        scaler = Scaler(spec.replicas, spec.most_replicas, spec.scale_up_s, spec.scale_down_s)
        return Growth(scaler, self._start, spec.drain_s)

    @property
    def _replicas(self) -> Sequence[RemoteReplica]:
        return self._first if self._started is None else cast("list[RemoteReplica]", self._started.fleet.replicas)

    async def _publish(self, coordinator: Coordinator) -> None:
        while True:
            self._load.publish(coordinator.stats())
            await asyncio.sleep(self._spec.check_period_s)

    @ray.method(num_returns="streaming", _generator_backpressure_num_objects=UNREAD_MESSAGES)
    async def decode(self, request: Request) -> AsyncGenerator[Events, None]:
        """With back-pressure, Ray ends the stream when its reader's process has died; without, it goes on unread."""
        async with aclosing(self._coordinator.decode(request)) as events:
            async for message in events:
                for event in message.events:
                    if isinstance(event, Finished):
                        answer = Answer(event.report, self._coordinator.fleet.one_row_step_s(event.report))
                        self._answers.publish(answer, model=request.model, method=request.method)
                yield message

    async def health(self) -> ClusterHealth:
        return self._coordinator.health()

    async def stats(self) -> tuple[ReplicaStats, ...]:
        return tuple(await asyncio.gather(*(replica.stats() for replica in self._replicas)))

    async def counts(self) -> CoordinatorStats:
        return self._coordinator.stats()

    async def place(self, policy: Policy) -> None:
        await asyncio.gather(*(replica.place(policy) for replica in self._replicas))

    async def end_replicas(self) -> None:
        self.__ray_shutdown__()

    def __ray_shutdown__(self) -> None:
        """Called by Ray where the actor ends as it should, not where its process dies."""
        for replica in self._replicas:
            replica.end()
        end_directory(self._cluster)


class Cluster:
    """A reader of one coordinator's answers: what the HTTP service and the command line decode with.

    ``find`` gives the coordinator's handle, and raises ValueError while there is none. An answer outlives its
    coordinator: it goes on from what has been read once another one is there, which may take ``wait_s``.
    """

    def __init__(self, find: Callable[[], Any], wait_s: float = 120.0) -> None:
        self._find = find
        self._wait_s = wait_s
        self._found: Any = None

    @classmethod
    def start(cls, spec: ClusterSpec) -> "Cluster":
        """Start a coordinator and its replicas; they end when this object is forgotten. Ray starts a coordinator again
        whose process dies."""
        actor = ray.remote(CoordinatorActor).options(**COORDINATOR_OPTIONS, max_restarts=-1).remote(spec)
        return cls(lambda: actor)

    async def decode(self, request: Request) -> AsyncGenerator[Events, None]:
        async with aclosing(recovered(request, self._attempt, MAX_DEATHS, self._forget)) as messages:
            async for message in messages:
                yield message

    async def health(self) -> ClusterHealth:
        health: ClusterHealth = await self._ask("health")
        return health

    async def stats(self) -> tuple[ReplicaStats, ...]:
        stats: tuple[ReplicaStats, ...] = await self._ask("stats")
        return stats

    async def counts(self) -> CoordinatorStats:
        counts: CoordinatorStats = await self._ask("counts")
        return counts

    async def end(self) -> None:
        """End the replicas at once, for a reader that ends before Ray would come to it."""
        with suppress(ReplicaError):
            await self._ask("end_replicas")

    async def place(self, policy: Policy) -> None:
        """Which bodies may be decoded on other replicas than their requests, from now on."""
        await self._ask("place", policy)

    async def wait_ready(self, timeout_s: float = 300.0) -> None:
        """Return when a replica can decode; ReplicaError when none will."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        while not (health := await self.health()).ready:
            if health.failed:
                raise ReplicaError(f"no replica could start: {health}")
            if asyncio.get_running_loop().time() > deadline:
                raise ReplicaError(f"no replica was ready after {timeout_s:.0f} s: {health}")
            await asyncio.sleep(POLL_S)

    async def _attempt(self, request: Request) -> AsyncGenerator[Events, None]:
        coordinator = self._found or await self._reach()
        async with aclosing(stream(coordinator, COORDINATOR, request)) as messages:
            async for message in messages:
                yield message

    async def _reach(self) -> Any:
        """A coordinator that answers, once there is one."""
        deadline = asyncio.get_running_loop().time() + self._wait_s
        while True:
            try:
                await self.health()
            except ReplicaError as error:
                if asyncio.get_running_loop().time() > deadline:
                    raise ReplicaError(f"no coordinator within {self._wait_s:g} s: {error}") from None
                await asyncio.sleep(POLL_S)
            if self._found is not None:
                return self._found

    async def _ask(self, method: str, *args: Any) -> Any:
        """Raises ReplicaDiedError where the coordinator is gone, ReplicaError where there is none."""
        if self._found is None:
            try:
                self._found = self._find()
            except ValueError as error:
                raise ReplicaError("the coordinator is starting; try again") from error
        try:
            return await call(getattr(self._found, method), COORDINATOR, *args)
        except ReplicaDiedError:
            self._forget()
            raise

    def _forget(self) -> None:
        self._found = None
