"""Which replica answers a request, and what happens when it dies. Plain asyncio: the Ray rim is in `cluster`."""

import asyncio
import logging
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
from pasta_ray.engine.messages import BranchClosed, Events, Finished, PromiseOpened, Report, Request
from pasta_ray.errors import OverloadedError, ReplicaError
from pasta_ray.logs import fields

logger = logging.getLogger(__name__)

PING_TIMEOUT_S = 30.0
MAX_TRIES = 2


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
        self.one_row_step_s = 0.0
        self.branches: dict[str, int] = {}

    @property
    def num_branches(self) -> int:
        return sum(self.branches.values())

    def count(self, message: Events) -> None:
        for event in message.events:
            if isinstance(event, PromiseOpened):
                self.branches[message.request_id] += 1
            elif isinstance(event, BranchClosed):
                self.branches[message.request_id] -= 1

    def health(self) -> ReplicaHealth:
        return ReplicaHealth(self.replica.name, self.state, self.num_branches, self.error)


class Coordinator:
    """Sends each request to the ready replica with the fewest live branches and passes its events on."""

    def __init__(
        self, replicas: Sequence[Replica], max_ongoing: int = 64, max_queued: int = 256, check_period_s: float = 2.0
    ) -> None:
        self._members = [_Member(replica) for replica in replicas]
        self._max_queued = max_queued
        self._num_queued = self._num_ongoing = 0
        self._num_rejected = self._num_cancelled = self._num_deaths = 0
        self._free = asyncio.Semaphore(max_ongoing)
        self._check_period_s = check_period_s
        self._watches = [asyncio.create_task(self._watch(member)) for member in self._members]

    async def decode(self, request: Request) -> AsyncGenerator[Events, None]:
        """The request's events. A replica that dies before the first of them is replaced once by another.

        Raises OverloadedError above the queue's bound, ReplicaError without a ready replica, and the decoder's errors.
        """
        async with self._admitted():
            tried: list[_Member] = []
            while True:
                member = self._pick(tried)
                started = False
                try:
                    async with aclosing(self._decode_on(member, request)) as stream:
                        async for message in stream:
                            started = True
                            yield message
                    return
                except ReplicaDiedError as error:
                    member.state = "starting"
                    tried.append(member)
                    self._num_deaths += 1
                    told = fields(
                        trace=request.trace, request=request.id, replica=member.replica.name, error=str(error)
                    )
                    logger.warning("replica died", extra=told)
                    if started or len(tried) == MAX_TRIES or not self._ready(tried):
                        raise ReplicaError(
                            f"replica {member.replica.name} died while it answered; try again"
                        ) from error

    def health(self) -> ClusterHealth:
        return ClusterHealth(tuple(member.health() for member in self._members))

    def stats(self) -> CoordinatorStats:
        return CoordinatorStats(
            len(self._ready(())),
            self._num_ongoing,
            self._num_queued,
            self._num_rejected,
            self._num_cancelled,
            self._num_deaths,
        )

    def one_row_step_s(self, report: Report) -> float | None:
        """Seconds of a step of a single row on the replica of the answer's main branch; None before there was one."""
        name = report.branches[0].replica
        return next((m.one_row_step_s for m in self._members if m.replica.name == name and m.one_row_step_s), None)

    async def close(self) -> None:
        for watch in self._watches:
            watch.cancel()
        await asyncio.gather(*self._watches, return_exceptions=True)

    async def _decode_on(self, member: _Member, request: Request) -> AsyncGenerator[Events, None]:
        member.branches[request.id] = 1
        finished = False
        try:
            async with aclosing(member.replica.decode(request)) as stream:
                async for message in stream:
                    member.count(message)
                    finished = any(isinstance(event, Finished) for event in message.events)
                    yield message
        except (asyncio.CancelledError, GeneratorExit):
            if not finished:  # a reader may also leave because it has all that it wants
                self._num_cancelled += 1
                logger.info("cancelled", extra=fields(trace=request.trace, request=request.id))
            raise
        finally:
            del member.branches[request.id]
        if not finished:
            raise ReplicaError(f"replica {member.replica.name} ended the answer before its report")

    def _pick(self, tried: Sequence[_Member]) -> _Member:
        ready = self._ready(tried)
        if not ready:
            raise ReplicaError(f"no decode replica is ready: {self.health()}")
        return min(ready, key=lambda member: member.num_branches)

    def _ready(self, tried: Sequence[_Member]) -> list[_Member]:
        return [member for member in self._members if member.state == "ready" and member not in tried]

    @asynccontextmanager
    async def _admitted(self) -> AsyncIterator[None]:
        if self._free.locked() and self._num_queued >= self._max_queued:
            self._num_rejected += 1
            raise OverloadedError(f"{self._num_queued} requests are waiting, which is the limit; try again later")
        self._num_queued += 1
        try:
            await self._free.acquire()
        finally:
            self._num_queued -= 1
        self._num_ongoing += 1
        try:
            yield
        finally:
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
            await asyncio.sleep(self._check_period_s)
