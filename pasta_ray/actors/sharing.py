"""What a decode actor does with other replicas: prefixes that come from them, bodies that go there and come from there.

The Ray rim of `Neighbours`, `PrefixFetcher` and `Farmer`.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import ray
from ray.exceptions import RayError

from pasta_ray.actors.announcements import Announcement, Holder, Peer, Reply
from pasta_ray.actors.costs import TransferCost
from pasta_ray.actors.decode_loop import DecodeLoop
from pasta_ray.actors.directory import DirectoryActor
from pasta_ray.actors.farming import FarmCounts, Farmer
from pasta_ray.actors.messages import Policy, SharingStats
from pasta_ray.actors.neighbours import Neighbours, Parts
from pasta_ray.actors.prefixes import PrefixCounts, PrefixFetcher
from pasta_ray.actors.remote import call, stream
from pasta_ray.engine.kv import KVBlock
from pasta_ray.engine.messages import BodyRequest, Events, Request
from pasta_ray.errors import ReplicaError

NAMESPACE = "pasta_ray"
DIRECTORY = "directory"


class RemoteDirectory:
    """The directory of a cluster, by its name: it is started again where it is gone for good."""

    def __init__(self, cluster: str) -> None:
        self._cluster = cluster
        self._actor: Any = None

    async def announce(self, news: Announcement) -> Reply:
        reply: Reply = await self._call("announce", news)
        return reply

    async def find(self, asker: str, names: Sequence[bytes]) -> Holder | None:
        holder: Holder | None = await self._call("find", asker, names)
        return holder

    async def forget(self, replica: str, incarnation: str) -> None:
        await self._call("forget", replica, incarnation)

    async def _call(self, method: str, *args: Any) -> Any:
        try:
            if self._actor is None:
                self._actor = start_directory(self._cluster)
        except (RayError, ValueError) as error:
            raise ReplicaError(f"the directory cannot be started: {error}") from error
        try:
            return await call(getattr(self._actor, method), "the directory", *args)
        except ReplicaError:
            self._actor = None
            raise


def actor_name(cluster: str, part: str) -> str:
    """Of a replica, or of the directory."""
    return f"{cluster} {part}"


def start_directory(cluster: str) -> Any:
    """The directory of that cluster, or a new one. It belongs to nobody, as replicas do, and ends itself when none of
    them announces anything any more."""
    return (
        ray.remote(DirectoryActor)
        .options(
            name=actor_name(cluster, DIRECTORY),
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            num_cpus=0,
            max_restarts=-1,
            max_concurrency=200,
        )
        .remote()
    )


def end_directory(cluster: str) -> None:
    """End it for good, where there is one."""
    try:
        ray.kill(ray.get_actor(actor_name(cluster, DIRECTORY), namespace=NAMESPACE), no_restart=True)
    except ValueError:
        return


class Peers:
    """Calls to other decode actors; KV travels through Ray's object store, on one node without a copy."""

    async def take_prefix(self, peer: Peer, key: str, ids: Sequence[int], start: int) -> KVBlock | None:
        block: KVBlock | None = await call(peer.actor.take_prefix, f"replica {peer.name}", key, ids, start)
        return block

    def decode_body(self, peer: Peer, body: BodyRequest, home: str) -> AsyncGenerator[Events, None]:
        return stream(peer.actor, f"replica {peer.name}", body, home)


class Sharing:
    """Made in the event loop that it stays in. ``policy`` says which bodies may leave."""

    def __init__(self, replica: str, cluster: str, policy: Policy, loop: DecodeLoop, parts: Parts) -> None:
        actor = ray.get_runtime_context().current_actor
        cost, peers = TransferCost(), Peers()
        self._loop = loop
        self._parts = parts
        self._neighbours = Neighbours(replica, actor, loop, RemoteDirectory(cluster))
        self._prefixes = PrefixFetcher(parts, loop, self._neighbours, peers, cost)
        self._farmer = Farmer(policy, parts, loop, self._neighbours, peers, cost, asyncio.get_running_loop())
        self._num_hosted = 0
        self._announcing = asyncio.create_task(self._neighbours.run())
        for part in parts.by_model.values():
            part.starter.farm = self._farmer

    @classmethod
    async def start(cls, replica: str, cluster: str, policy: Policy, loop: DecodeLoop) -> "Sharing":
        parts = await asyncio.wrap_future(loop.call(lambda decoder: Parts(decoder.parts)))
        return cls(replica, cluster, policy, loop, parts)

    async def prepare(self, request: Request | BodyRequest, home: str | None) -> None:
        """Before a request is decoded, or the body of one whose ``home`` is another replica: its prompt's KV."""
        if isinstance(request, BodyRequest):
            self._num_hosted += 1
            await self._prefixes.fetch(request.model, request.context.prompt_ids, home)
        else:
            await self._prefixes.fetch(request.model, request.prompt_ids)

    def place(self, policy: Policy) -> None:
        """Which bodies may leave, from now on."""
        self._farmer.policy = policy

    def drain(self, draining: bool) -> None:
        """Whether bodies of others should stay away, from now on."""
        self._neighbours.draining = draining

    async def take_prefix(self, key: str, ids: Sequence[int], start: int) -> KVBlock | None:
        """For another replica: what is cached here of ``ids``, from ``start`` on."""
        part = self._parts.holding(key)
        if part is None:
            return None
        return await asyncio.wrap_future(self._loop.call(lambda _: part.store.take(ids, start)))

    def stats(self) -> SharingStats:
        prefixes: PrefixCounts = self._prefixes.counts
        farm: FarmCounts = self._farmer.counts
        parts = self._parts.by_model.values()
        return SharingStats(
            num_peers=len(self._neighbours.peers),
            num_prefix_fetches=prefixes.num_fetches,
            num_prefix_tokens_fetched=prefixes.num_tokens,
            num_prefix_bytes_fetched=prefixes.num_bytes,
            num_prefix_fetches_failed=prefixes.num_failed,
            num_prefix_fetches_declined=prefixes.num_declined,
            num_bodies_sent=farm.num_sent,
            num_bodies_lost=farm.num_lost,
            num_bodies_hosted=self._num_hosted,
            num_bodies_delayed=sum(part.starter.gate.num_delayed for part in parts),
            num_body_bytes_sent=farm.num_bytes_sent,
            num_body_bytes_returned=farm.num_bytes_returned,
        )
