"""A decode replica: one copy of the weights and one decode loop in its own process. The Ray rim of `DecodeLoop`."""

import math
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace

import ray

from pasta_ray.actors.decode_loop import DecodeLoop
from pasta_ray.actors.lease import Lease
from pasta_ray.actors.messages import DecoderFactory, Policy, ReplicaStats
from pasta_ray.actors.metrics import REPLICA_METRICS, Publisher
from pasta_ray.actors.sharing import Sharing
from pasta_ray.engine.kv import KVBlock
from pasta_ray.engine.messages import BodyRequest, Events, Request
from pasta_ray.errors import ModelError, PastaError
from pasta_ray.logs import LogConfig, configure

MAX_STREAMS = 1000
UNREAD_MESSAGES = 8
"""So many messages may wait for a slow consumer; after that, later events are joined into fewer messages."""
MESSAGE_PERIOD_S = 0.1
"""Every process that a message passes spends time on it, and ten a second read as smoothly as more."""
MAX_MESSAGES_PER_S = 40
"""Of all streams of a replica together: many of them would else take more time of a small machine than decoding."""


class DecodeActor:
    """``control`` calls have their own event loop, so they are answered at once however many streams are open.

    A replica is nobody's child, so that it outlives a coordinator and serves the next one. Without any, it ends itself
    ``orphan_s`` after the last ping. As one of a ``cluster`` it shares prefixes and bodies with the others, from the
    first ping on.
    """

    def __init__(
        self,
        make_decoder: DecoderFactory,
        replica: str,
        orphan_s: float = math.inf,
        log: LogConfig | None = None,
        cluster: str | None = None,
        policy: Policy = "auto",
    ) -> None:
        configure(log or LogConfig())
        self._metrics = Publisher(REPLICA_METRICS, ("replica",))
        self._replica, self._cluster, self._policy = replica, cluster, policy
        self._sharing: Sharing | None = None
        self._draining = False
        self._failure: PastaError | None = None
        try:
            self._loop = DecodeLoop(make_decoder, replica)
        except PastaError as error:
            self._failure = error
        except Exception as error:  # kept for `ping`: a failed constructor would reach nobody as one line
            self._failure = ModelError(f"replica {replica} cannot start: {type(error).__name__}: {error}")
        self._lease = Lease(orphan_s, _end)

    @ray.method(num_returns="streaming", _generator_backpressure_num_objects=UNREAD_MESSAGES)
    async def decode(self, request: Request | BodyRequest, home: str | None = None) -> AsyncGenerator[Events, None]:
        if self._sharing is not None:
            await self._sharing.prepare(request, home)
        async with aclosing(self._loop.decode(request, self._period_s)) as stream:
            async for events in stream:
                yield events

    @ray.method(concurrency_group="control")
    async def cancel(self, request_id: str) -> None:
        self._loop.cancel(request_id)

    @ray.method(concurrency_group="control")
    async def stats(self) -> ReplicaStats:
        return self._told()

    @ray.method(concurrency_group="control")
    async def take_prefix(self, key: str, ids: Sequence[int], start: int) -> KVBlock | None:
        """For another replica: see `Sharing.take_prefix`."""
        return None if self._sharing is None else await self._sharing.take_prefix(key, ids, start)

    @ray.method(concurrency_group="control")
    async def place(self, policy: Policy) -> None:
        """Which bodies of this replica's requests may leave it."""
        if self._sharing is not None:
            self._sharing.place(policy)

    @ray.method(concurrency_group="control")
    async def ping(self, draining: bool | None) -> ReplicaStats:
        """Live counts, from a replica that can decode; ReplicaError from one that must be restarted, another
        PastaError from one whose decoder cannot be made. Every replica is asked so all the time, so this is also when
        its metrics are brought up to date, and when one that is ``draining`` hears that it takes no bodies of others;
        None leaves it at what it has heard.
        """
        self._lease.renew()
        if self._failure is not None:
            raise self._failure
        self._loop.check()
        if self._cluster is not None:
            cluster, self._cluster = self._cluster, None
            self._sharing = await Sharing.start(self._replica, cluster, self._policy, self._loop)
        if draining is not None:
            self._draining = draining
        if self._sharing is not None:
            self._sharing.drain(self._draining)
        stats = self._told()
        self._metrics.publish(stats, replica=stats.replica)
        return stats

    def _period_s(self) -> float:
        return max(MESSAGE_PERIOD_S, self._loop.num_streams / MAX_MESSAGES_PER_S)

    def _told(self) -> ReplicaStats:
        stats = replace(self._loop.stats(), draining=self._draining)
        return stats if self._sharing is None else replace(stats, sharing=self._sharing.stats())


def _end() -> None:
    """End this actor's process for good."""
    ray.kill(ray.get_runtime_context().current_actor, no_restart=True)
