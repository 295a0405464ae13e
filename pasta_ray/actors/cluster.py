"""What reads answers of a running service: its coordinators, found, and found again where they die."""

import asyncio
import random
import secrets
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from typing import Any

import ray

from pasta_ray.actors.coordinator_actor import COORDINATOR_OPTIONS, CoordinatorActor, coordinator_name
from pasta_ray.actors.messages import (
    ClusterHealth,
    ClusterSpec,
    CoordinatorStats,
    Policy,
    ReplicaDiedError,
    ReplicaStats,
    total,
)
from pasta_ray.actors.recovery import recovered
from pasta_ray.actors.remote import call, stream
from pasta_ray.actors.sharing import NAMESPACE
from pasta_ray.engine.messages import Events, Request
from pasta_ray.errors import ReplicaError

COORDINATOR = "the coordinator"
MAX_DEATHS = 20
POLL_S = 0.2

Find = Callable[[], Any]
"""Gives a coordinator's handle; raises ValueError while there is none."""


class Contact:
    """One coordinator, as a reader knows it; ``why`` it did not answer when it was last looked for."""

    def __init__(self, find: Find) -> None:
        self.find = find
        self.why = ""
        self.num_open = 0
        self._found: Any = None

    @property
    def ready(self) -> bool:
        """It has answered, and is not known to have died since."""
        return self._found is not None

    async def decode(self, request: Request) -> AsyncGenerator[Events, None]:
        """Raises ReplicaDiedError where the coordinator is gone."""
        actor = self._found
        self.num_open += 1
        try:
            async with aclosing(stream(actor, COORDINATOR, request)) as messages:
                async for message in messages:
                    yield message
        except ReplicaDiedError:
            self._forget(actor)
            raise
        finally:
            self.num_open -= 1

    async def ask(self, method: str, *args: Any) -> Any:
        """Raises ReplicaDiedError where the coordinator is gone, ReplicaError where there is none."""
        try:
            actor = self._found or self.find()
        except ValueError as error:
            raise ReplicaError("the coordinator is starting; try again") from error
        try:
            answer = await call(getattr(actor, method), COORDINATOR, *args)
        except ReplicaDiedError:
            self._forget(actor)
            raise
        self._found = actor
        return answer

    async def search(self, wait_s: float) -> None:
        """Until it answers, for ``wait_s`` at most."""
        deadline = asyncio.get_running_loop().time() + wait_s
        while asyncio.get_running_loop().time() < deadline:
            try:
                await self.ask("health")
                return
            except ReplicaError as error:
                self.why = str(error)
                await asyncio.sleep(POLL_S)

    def _forget(self, actor: Any) -> None:
        if self._found is actor:
            self._found = None


class Cluster:
    """A reader of the coordinators' answers: what the HTTP service and the command line decode with.

    Each of ``finds`` gives one of them, the first of them first. An answer outlives its coordinator: it goes on, from
    what has been read, on another one, or on the one that is started instead, which may take ``wait_s``.
    """

    def __init__(self, *finds: Find, wait_s: float = 120.0) -> None:
        self.contacts = [Contact(find) for find in finds]
        self._wait_s = wait_s
        self._searches: dict[Contact, asyncio.Task[None]] = {}

    @classmethod
    def start(cls, spec: ClusterSpec) -> "Cluster":
        """Start the coordinators, and with them the replicas; they end when this object is forgotten. Ray starts a
        coordinator again whose process dies."""
        name = secrets.token_hex(8)
        actor_class: Any = ray.remote(CoordinatorActor)
        options = {**COORDINATOR_OPTIONS, "namespace": NAMESPACE, "max_restarts": -1}

        def started(index: int) -> Find:
            actor = actor_class.options(name=f"{name} {coordinator_name(index)}", **options).remote(spec, index)
            return lambda: actor

        return cls(*map(started, range(spec.coordinators)))

    async def decode(self, request: Request) -> AsyncGenerator[Events, None]:
        async with aclosing(recovered(request, self._attempt, MAX_DEATHS)) as messages:
            async for message in messages:
                yield message

    async def health(self) -> ClusterHealth:
        health: ClusterHealth = await self._ask("health")
        return health

    async def stats(self) -> tuple[ReplicaStats, ...]:
        stats: tuple[ReplicaStats, ...] = await self._ask("stats")
        return stats

    async def counts(self) -> CoordinatorStats:
        """Of all coordinators together. ReplicaError where one of them does not answer."""
        return total(await asyncio.gather(*(contact.ask("counts") for contact in self.contacts)))

    async def end(self) -> None:
        """End the replicas at once, for a reader that ends before Ray would come to it."""
        with suppress(ReplicaError):
            await self.contacts[0].ask("end_replicas")

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
        contact = await self._reach()
        async with aclosing(contact.decode(request)) as messages:
            async for message in messages:
                yield message

    async def _reach(self) -> Contact:
        """Of the coordinators that are there, the one with the fewest of this reader's answers; as soon as there is
        one. The others are looked for meanwhile."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + self._wait_s
        while True:
            searching = [self._search(contact) for contact in self.contacts if not contact.ready]
            if ready := [contact for contact in self.contacts if contact.ready]:
                return min(ready, key=lambda contact: (contact.num_open, random.random()))
            if (left_s := deadline - clock()) <= 0:
                why = "; ".join(contact.why for contact in self.contacts)
                raise ReplicaError(f"no coordinator within {self._wait_s:g} s: {why}")
            await asyncio.wait(searching, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)

    def _search(self, contact: Contact) -> "asyncio.Task[None]":
        """The one that goes on for this contact, or a new one."""
        if contact not in self._searches:
            self._searches[contact] = asyncio.create_task(contact.search(self._wait_s))
            self._searches[contact].add_done_callback(lambda _: self._searches.pop(contact))
        return self._searches[contact]

    async def _ask(self, method: str, *args: Any) -> Any:
        """Of the first coordinator that answers."""
        *others, last = sorted(self.contacts, key=lambda contact: not contact.ready)
        for contact in others:
            with suppress(ReplicaError):
                return await contact.ask(method, *args)
        return await last.ask(method, *args)
