"""The replicas that a coordinator has: watched, chosen from, and as many as load asks for. Plain asyncio."""

import asyncio
import itertools
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from pasta_ray.actors.messages import ClusterHealth, ReplicaDiedError, ReplicaHealth, ReplicaState, ReplicaStats
from pasta_ray.actors.placement import View
from pasta_ray.actors.routing import Router
from pasta_ray.actors.scaling import Scaler, load
from pasta_ray.engine.curve import StepCurve
from pasta_ray.engine.messages import BranchClosed, Event, Events, PromiseOpened, Report, Request
from pasta_ray.errors import ReplicaError
from pasta_ray.logs import fields

logger = logging.getLogger(__name__)

PING_TIMEOUT_S = 30.0
UNKNOWN = ((1, 1.0),)
"""The curve of replicas whose own is not known: each row takes its turn, a token of a prompt as one of an answer."""


class Replica(Protocol):
    """One decode replica, wherever it runs."""

    name: str

    def decode(self, request: Request) -> AsyncGenerator[Events, None]:
        """Raises ReplicaDiedError when the replica's process is gone; PastaError otherwise."""

    async def ping(self, draining: bool | None) -> ReplicaStats:
        """One that is ``draining`` takes no bodies of others; None leaves it at what it has been told. Raises
        ReplicaDiedError while the replica is away, ReplicaError when only a restart helps."""

    def restart(self) -> None: ...
    def end(self) -> None: ...


@dataclass(frozen=True)
class Growth:
    """How a fleet grows and shrinks: ``make`` gives the replica of a name, whether or not it is there already. One that
    is taken away keeps its requests for ``drain_s``; what is not answered then goes on elsewhere."""

    scaler: Scaler
    make: Callable[[str], Replica]
    drain_s: float


@dataclass(frozen=True)
class Following:
    """What a coordinator does that is not the first: ``names`` are the replicas that are there, ``find`` gives one of
    them, or raises ValueError."""

    names: Callable[[], Awaitable[Collection[str]]]
    find: Callable[[str], Replica]


class Member:
    """A replica as the coordinator sees it. The live branches of its own requests are counted from the events that pass
    through; those of others, such as another coordinator's, are as of the last ping."""

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        self.state: ReplicaState = "starting"
        self.error: str | None = None
        self._num_requests = self._num_own = self._num_others = 0
        self._asked = False
        self.stats = ReplicaStats(replica.name, 0, 0, 0)
        self.draining_since: float | None = None
        self.watch: asyncio.Task[None] | None = None

    @property
    def num_branches(self) -> int:
        return self._num_own + self._num_others

    @property
    def takes_requests(self) -> bool:
        return self.state == "ready" and self.draining_since is None

    async def decode(self, request: Request) -> AsyncGenerator[Events, None]:
        """The request's messages, its live branches counted."""
        num_own = 1 + len(request.progress.open_bodies)
        self._num_requests += 1
        self._num_own += num_own
        try:
            async with aclosing(self.replica.decode(request)) as stream:
                async for message in stream:
                    grown = sum(map(_growth, message.events))
                    num_own += grown
                    self._num_own += grown
                    yield message
        finally:
            self._num_requests -= 1
            self._num_own -= num_own

    async def ping(self, leads: bool) -> None:
        """Bring what is known of the replica up to date. Whether it drains is the first coordinator's to say; any other
        is told, and so is one that was started again."""
        told = self.draining_since is not None if leads and self._asked else None
        before = self._num_requests
        self.stats = await self.replica.ping(told)
        self._asked = True
        has_others = self.stats.num_requests > max(before, self._num_requests)
        self._num_others = max(0, self.stats.num_branches - self._num_own) if has_others else 0
        if told is None and self.stats.draining:
            self.draining_since = self.draining_since or asyncio.get_running_loop().time()
        elif not leads:
            self.draining_since = None

    def health(self) -> ReplicaHealth:
        draining = self.state == "ready" and self.draining_since is not None
        return ReplicaHealth(self.replica.name, "draining" if draining else self.state, self.num_branches, self.error)


def _growth(event: Event) -> int:
    return isinstance(event, PromiseOpened) - isinstance(event, BranchClosed)


class Fleet:
    """``replicas`` are those that are there or starting; with ``growth`` there may be others by and by. ``following``
    another coordinator's fleet, they are those that it has. Made in the event loop that it stays in."""

    def __init__(
        self,
        replicas: Sequence[Replica],
        check_period_s: float,
        wait_s: float,
        growth: Growth | None = None,
        following: Following | None = None,
    ) -> None:
        self._check_period_s = check_period_s
        self._wait_s = wait_s
        self._leads = following is None
        self._router = Router()
        self._changed = asyncio.Event()
        self._members: list[Member] = []
        self.num_added = self.num_removed = 0
        for replica in replicas:
            self._add(replica)
        keep = partial(self._resize, growth) if growth else partial(self._follow, following) if following else None
        self._keeping = asyncio.create_task(self._keep(keep)) if keep else None

    @property
    def replicas(self) -> list[Replica]:
        return [member.replica for member in self._members]

    @property
    def num_ready(self) -> int:
        return sum(member.takes_requests for member in self._members)

    @property
    def num_draining(self) -> int:
        return sum(member.draining_since is not None for member in self._members)

    async def choose(self, request: Request) -> Member:
        """Of the replicas that take requests, the one that answers this soonest; as soon as there is one."""
        try:
            async with asyncio.timeout(self._wait_s):
                while not (ready := {m.replica.name: m for m in self._members if m.takes_requests}):
                    if self.health().failed:
                        break
                    await self._changed.wait()
        except TimeoutError:
            raise ReplicaError(f"no decode replica was ready within {self._wait_s:g} s: {self.health()}") from None
        if not ready:
            raise ReplicaError(f"no decode replica is ready: {self.health()}")
        curves = [list(member.stats.curve) for member in ready.values()]
        known = curves if all(curves) else [list(UNKNOWN)] * len(curves)
        views = [
            View(name, StepCurve(curve), member.num_branches)
            for (name, member), curve in zip(ready.items(), known, strict=True)
        ]
        bytes_per_token = max(member.stats.kv_bytes_per_token for member in ready.values())
        return ready[self._router.choose(request, views, bytes_per_token)]

    def lost(self, member: Member) -> None:
        """Its process is gone, and with it what it had cached."""
        member.state = "starting"
        self._router.forget(member.replica.name)

    def health(self) -> ClusterHealth:
        return ClusterHealth(tuple(member.health() for member in self._members))

    def one_row_step_s(self, report: Report) -> float | None:
        """Seconds of a step of a single row on the replica of the answer's main branch; None before there was one."""
        name = report.branches[0].replica
        return next((m.stats.one_row_step_s for m in self._members if m.replica.name == name), 0.0) or None

    async def close(self) -> None:
        tasks = [task for task in (self._keeping, *(member.watch for member in self._members)) if task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _add(self, replica: Replica) -> None:
        member = Member(replica)
        member.watch = asyncio.create_task(self._watch(member))
        self._members.append(member)

    async def _watch(self, member: Member) -> None:
        """Keep the member's state true, and restart a replica that asks for it."""
        while member.state != "failed":
            try:
                async with asyncio.timeout(PING_TIMEOUT_S):  # not wait_for, which can swallow a cancellation in 3.11
                    await member.ping(self._leads)
                member.state, member.error = "ready", None
            except ReplicaDiedError as error:
                self.lost(member)
                member.error = str(error)
            except TimeoutError:
                member.state, member.error = "starting", f"no answer within {PING_TIMEOUT_S:g} s"
            except ReplicaError as error:
                member.state, member.error = "starting", str(error)
                if self._leads:
                    logger.warning("restarting replica", extra=fields(replica=member.replica.name, error=str(error)))
                    member.replica.restart()
            except Exception as error:  # reported by `health`: the replica's constructor failed for good
                logger.error("replica cannot start", extra=fields(replica=member.replica.name, error=str(error)))
                member.state, member.error = "failed", str(error)
            self._changed.set()  # wakes all that wait, of whom each looks for itself
            self._changed.clear()
            await asyncio.sleep(self._check_period_s)

    async def _keep(self, bring_up_to_date: Callable[[], Awaitable[None]]) -> None:
        """The fleet's members as they should be, for ever."""
        while True:
            try:
                await bring_up_to_date()
            except Exception:  # what could not be made is tried again; what could not be ended ends as an orphan
                logger.exception("the replicas cannot be changed now")
            await asyncio.sleep(self._check_period_s)

    async def _follow(self, following: Following) -> None:
        """Have the replicas that are there, whoever has started them."""
        there = await following.names()
        for member in self._members[:]:
            if member.replica.name not in there:
                self._forget(member)
        for name in sorted(set(there) - {member.replica.name for member in self._members}):
            self._add(following.find(name))

    async def _resize(self, growth: Growth) -> None:
        """Have as many replicas as load asks for."""
        now = asyncio.get_running_loop().time()
        staying = [member for member in self._members if member.draining_since is None]
        loads = [load(member.stats) for member in self._members if member.state == "ready"]
        wanted = growth.scaler.wanted(now, loads, len(staying))
        for _ in range(wanted - len(staying)):
            self._grow(growth)
        self._drain(len(staying) - wanted, growth.scaler.least, now)
        for member in self._members[:]:
            if member.draining_since is not None and self._drained(member, now - growth.drain_s):
                self._remove(member)

    def _grow(self, growth: Growth) -> None:
        """By one that is still draining, or else by a new one."""
        draining = [member for member in self._members if member.draining_since is not None]
        if draining:
            back = max(draining, key=lambda member: member.num_branches)
            back.draining_since = None
            logger.info("replica stays", extra=fields(replica=back.replica.name))
            return
        taken = {member.replica.name for member in self._members}
        name = next(name for index in itertools.count() if (name := replica_name(index)) not in taken)
        logger.info("adding replica", extra=fields(replica=name))
        self._add(growth.make(name))
        self.num_added += 1

    def _drain(self, num: int, least: int, now: float) -> None:
        """The ones with the fewest branches; never those that every coordinator starts."""
        always = set(map(replica_name, range(least)))
        able = [m for m in self._members if m.draining_since is None and m.replica.name not in always]
        for member in sorted(able, key=lambda member: member.num_branches)[: max(0, num)]:
            logger.info("draining replica", extra=fields(replica=member.replica.name, branches=member.num_branches))
            member.draining_since = now

    def _drained(self, member: Member, too_long_ago: float) -> bool:
        assert member.draining_since is not None
        idle = member.num_branches == member.stats.num_requests == 0
        return idle or member.draining_since < too_long_ago

    def _remove(self, member: Member) -> None:
        """What it has not answered goes on elsewhere, as after a death."""
        logger.info("removing replica", extra=fields(replica=member.replica.name, branches=member.num_branches))
        self._forget(member)
        member.replica.end()
        self.num_removed += 1

    def _forget(self, member: Member) -> None:
        assert member.watch is not None
        member.watch.cancel()  # it would start the replica again
        self._members.remove(member)
        self._router.forget(member.replica.name)


def replica_name(index: int) -> str:
    return f"r{index}"
