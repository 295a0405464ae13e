"""A coordinator in its own process, with decode replicas that it starts or finds. The Ray rim of `Coordinator`."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, cast

import ray

from pasta_ray.actors.coordinator import Coordinator
from pasta_ray.actors.decode_actor import MAX_STREAMS, UNREAD_MESSAGES, DecodeActor
from pasta_ray.actors.fleet import Following, Growth, replica_name
from pasta_ray.actors.messages import ClusterHealth, ClusterSpec, CoordinatorStats, Policy, ReplicaStats
from pasta_ray.actors.metrics import ANSWER_METRICS, COORDINATOR_METRICS, Answer, Publisher
from pasta_ray.actors.remote import RemoteReplica
from pasta_ray.actors.scaling import Scaler
from pasta_ray.actors.sharing import DIRECTORY, NAMESPACE, actor_name, end_directory, start_directory
from pasta_ray.engine.messages import Events, Finished, Request
from pasta_ray.logs import configure

COORDINATOR_OPTIONS = {"num_cpus": 0, "max_concurrency": 2000, "scheduling_strategy": "SPREAD"}


def coordinator_name(index: int) -> str:
    """The end of its actor's name; what stands before it is the cluster's."""
    return f"coordinator-{index}"


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


def find_replica(cluster: str, name: str) -> RemoteReplica:
    """Raises ValueError where it is gone."""
    return RemoteReplica(name, lambda: ray.get_actor(actor_name(cluster, name), namespace=NAMESPACE))


def replicas_there(cluster: str) -> set[str]:
    """The names of the cluster's replicas, whoever has started them."""
    before = actor_name(cluster, "")
    named = [entry["name"] for entry in ray.util.list_named_actors(all_namespaces=True)]
    return {name.removeprefix(before) for name in named if name.startswith(before)} - {DIRECTORY}


class CoordinatorActor:
    """Started on the first call, because only then does the actor's event loop run.

    A cluster has one or several, each with an equal share of the load that is let in. The first, of ``index`` 0, starts
    the replicas, adds and restarts and ends them; the others find them. All bear the cluster's name, by which the
    coordinator after a dead one finds them too: its own without ``index``, which it keeps where it is started again.
    """

    def __init__(self, spec: ClusterSpec, index: int = 0) -> None:
        configure(spec.log)
        self._spec = spec
        self._index = index
        self._answers = Publisher(ANSWER_METRICS, ("model", "method"))
        self._load = Publisher(COORDINATOR_METRICS, ("coordinator",))
        context = ray.get_runtime_context()
        self._cluster = str(context.get_actor_name()).removesuffix(f"-{index}")
        self._first = self._started_replicas() if self._leads else []
        self._started: Coordinator | None = None
        context.current_actor.health.remote()  # a first call: replicas must hear from somebody, asked for or not

    @property
    def _leads(self) -> bool:
        return self._index == 0

    def _started_replicas(self) -> list[RemoteReplica]:
        """Those that there always are, and those that an earlier coordinator has added."""
        spec = self._spec
        if spec.most_replicas > 1:
            start_directory(self._cluster)
        names = [replica_name(index) for index in range(spec.most_replicas)]
        there = replicas_there(self._cluster) if spec.most_replicas > spec.replicas else set()
        wanted = names[: spec.replicas] + [name for name in names[spec.replicas :] if name in there]
        return [start_replica(spec, self._cluster, name) for name in wanted]

    @property
    def _coordinator(self) -> Coordinator:
        if self._started is None:
            spec = self._spec
            self._started = Coordinator(
                self._first,
                -(-spec.max_ongoing // spec.coordinators),
                -(-spec.max_queued // spec.coordinators),
                spec.check_period_s,
                spec.max_deaths,
                spec.wait_s,
                self._growth(spec),
                self._following(),
            )
            self._publishing = asyncio.create_task(self._publish(self._started))
        return self._started

    def _growth(self, spec: ClusterSpec) -> Growth | None:
        if spec.most_replicas == spec.replicas or not self._leads:
            return None
        scaler = Scaler(spec.replicas, spec.most_replicas, spec.scale_up_s, spec.scale_down_s)
        return Growth(scaler, partial(start_replica, spec, self._cluster), spec.drain_s)

    def _following(self) -> Following | None:
        if self._leads:
            return None
        names = partial(asyncio.to_thread, replicas_there, self._cluster)
        return Following(names, partial(find_replica, self._cluster))

    @property
    def _replicas(self) -> Sequence[RemoteReplica]:
        return self._first if self._started is None else cast("list[RemoteReplica]", self._started.fleet.replicas)

    async def _publish(self, coordinator: Coordinator) -> None:
        while True:
            self._load.publish(coordinator.stats(), coordinator=str(self._index))
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
        if not self._leads:
            return
        for replica in self._replicas:
            replica.end()
        end_directory(self._cluster)
