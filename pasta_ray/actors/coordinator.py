"""Which replica answers a request, and what happens when it dies. Plain asyncio: the Ray rim is in `cluster`."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Protocol

from pasta_ray.actors.messages import (
    ClusterHealth,
    CoordinatorStats,
    ReplicaDiedError,
    ReplicaHealth,
    ReplicaState,
    ReplicaStats,
)
from pasta_ray.actors.pace import Pace
from pasta_ray.actors.recovery import recovered
from pasta_ray.engine.messages import BranchClosed, Event, Events, Finished, PromiseOpened, Report, Request
from pasta_ray.errors import OverloadedError, ReplicaError
from pasta_ray.logs import fields

logger = logging.getLogger(__name__)

PING_TIMEOUT_S = 30.0


class Replica(Protocol):
    """One decode replica, wherever it runs."""

    name: str

    def decode(self, request: Request) -> AsyncGenerator[Events, None]:
        """Raises ReplicaDiedError when the replica's process is gone; PastaError otherwise."""

    async def ping(self) -> ReplicaStats:
        """Raises ReplicaDiedError while the replica is away, ReplicaError when only a restart helps."""

    def restart(self) -> None: ...


class _Member:
    """A replica as the coordinator sees it. Its load is counted from the events that pass through."""

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        self.state: ReplicaState = "starting"
        self.error: str | None = None
        self.num_branches = 0
        self.one_row_step_s = 0.0

    async def decode(self, request: Request) -> AsyncGenerator[Events, None]:
        """The request's messages, its live branches counted."""
        num_own = 1 + len(request.progress.open_bodies)
        self.num_branches += num_own
        try:
            async with aclosing(self.replica.decode(request)) as stream:
                async for message in stream:
                    grown = sum(map(_growth, message.events))
                    num_own += grown
                    self.num_branches += grown
                    yield message
        finally:
            self.num_branches -= num_own

    def health(self) -> ReplicaHealth:
        return ReplicaHealth(self.replica.name, self.state, self.num_branches, self.error)


def _ends(message: Events) -> bool:
    return any(isinstance(event, Finished) for event in message.events)


def _growth(event: Event) -> int:
    return isinstance(event, PromiseOpened) - isinstance(event, BranchClosed)


class Coordinator:
    """Sends each request to the ready replica with the fewest live branches, passes its messages on, and opens it again
    where its replica dies."""

    def __init__(
        self,
        replicas: Sequence[Replica],
        max_ongoing: int = 64,
        max_queued: int = 256,
        check_period_s: float = 2.0,
        max_deaths: int = 5,
        wait_s: float = 120.0,
    ) -> None:
        self._members = [_Member(replica) for replica in replicas]
        self._max_queued = max_queued
        self._max_deaths = max_deaths
        self._wait_s = wait_s
        self._num_queued = self._num_ongoing = 0
        self._num_requests = self._num_finished = self._num_cancelled = self._num_recoveries = self._num_rejected = 0
        self._free = asyncio.Semaphore(max_ongoing)
        self._pace = Pace(max_ongoing)
        self._check_period_s = check_period_s
        self._changed = asyncio.Event()
        self._watches = [asyncio.create_task(self._watch(member)) for member in self._members]

    async def decode(self, request: Request) -> AsyncGenerator[Events, None]:
        """The request's messages. Where its replica dies, it goes on elsewhere from what has been passed on.

        Raises OverloadedError above the queue's bound, ReplicaError where no replica is ready in time or one after the
        other dies, and the decoder's errors.
        """
        self._num_requests += 1
        self._num_recoveries += bool(request.progress.steps)  # the coordinator before this one died
        ended = False
        try:
            async with self._admitted():
                attempts = recovered(request, self._attempt, self._max_deaths, self._count_recovery)
                async with aclosing(attempts) as stream:
                    async for message in stream:
                        ended = _ends(message)
                        self._num_finished += ended
                        yield message
        except (asyncio.CancelledError, GeneratorExit):
            if not ended:  # a reader may also leave because it has all that it wants
                self._num_cancelled += 1
                logger.info("cancelled", extra=fields(trace=request.trace, request=request.id))
            raise

    def _count_recovery(self) -> None:
        self._num_recoveries += 1

    async def _attempt(self, request: Request) -> AsyncGenerator[Events, None]:
        member = await self._pick()
        ended = False
        try:
            async with aclosing(member.decode(request)) as stream:
                async for message in stream:
                    ended = _ends(message)
                    yield message
        except ReplicaDiedError:
            member.state = "starting"
            raise
        if not ended:
            raise ReplicaError(f"replica {member.replica.name} ended the answer before its report")

    async def _pick(self) -> _Member:
        """The ready replica with the fewest live branches, as soon as there is one."""
        try:
            async with asyncio.timeout(self._wait_s):
                while not (ready := [member for member in self._members if member.state == "ready"]):
                    if self.health().failed:
                        break
                    await self._changed.wait()
        except TimeoutError:
            raise ReplicaError(f"no decode replica was ready within {self._wait_s:g} s: {self.health()}") from None
        if not ready:
            raise ReplicaError(f"no decode replica is ready: {self.health()}")
        return min(ready, key=lambda member: member.num_branches)

    def health(self) -> ClusterHealth:
        return ClusterHealth(tuple(member.health() for member in self._members))

    def stats(self) -> CoordinatorStats:
        return CoordinatorStats(
            self._num_ongoing,
            self._num_queued,
            self._num_requests,
            self._num_finished,
            self._num_cancelled,
            self._num_recoveries,
            self._num_rejected,
            sum(member.state == "ready" for member in self._members),
        )

    def one_row_step_s(self, report: Report) -> float | None:
        """Seconds of a step of a single row on the replica of the answer's main branch; None before there was one."""
        name = report.branches[0].replica
        return next((m.one_row_step_s for m in self._members if m.replica.name == name and m.one_row_step_s), None)

    async def close(self) -> None:
        for watch in self._watches:
            watch.cancel()
        await asyncio.gather(*self._watches, return_exceptions=True)

    @asynccontextmanager
    async def _admitted(self) -> AsyncIterator[None]:
        if self._free.locked() and self._num_queued >= self._max_queued:
            self._num_rejected += 1
            wait_s = self._pace.wait_s(self._num_queued)
            raise OverloadedError(
                f"{self._num_queued} requests are waiting, which is the limit; try again in about {wait_s:.0f} s",
                wait_s,
            )
        self._num_queued += 1
        try:
            await self._free.acquire()
        finally:
            self._num_queued -= 1
        self._num_ongoing += 1
        began = time.monotonic()
        try:
            yield
        finally:
            self._pace.observe(time.monotonic() - began)
            self._num_ongoing -= 1
            self._free.release()

    async def _watch(self, member: _Member) -> None:
        """Keep the member's state true, and restart a replica that asks for it."""
        while member.state != "failed":
            try:
                async with asyncio.timeout(PING_TIMEOUT_S):  # not wait_for, which can swallow a cancellation in 3.11
                    member.one_row_step_s = (await member.replica.ping()).one_row_step_s
                member.state, member.error = "ready", None
            except (ReplicaDiedError, TimeoutError) as error:
                member.state, member.error = "starting", str(error) or None
            except ReplicaError as error:
                logger.warning("restarting replica", extra=fields(replica=member.replica.name, error=str(error)))
                member.state, member.error = "starting", str(error)
                member.replica.restart()
            except Exception as error:  # reported by `health`: the replica's constructor failed for good
                logger.error("replica cannot start", extra=fields(replica=member.replica.name, error=str(error)))
                member.state, member.error = "failed", str(error)
            self._changed.set()  # wakes all that wait, of whom each looks for itself
            self._changed.clear()
            await asyncio.sleep(self._check_period_s)
