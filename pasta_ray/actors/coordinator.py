"""How a request is let in, and goes on when what answers it dies. Plain asyncio: the Ray rim is in `cluster`."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager

from pasta_ray.actors.fleet import Fleet, Following, Growth, Replica
from pasta_ray.actors.messages import ClusterHealth, CoordinatorStats, ReplicaDiedError
from pasta_ray.actors.pace import Pace
from pasta_ray.actors.recovery import recovered
from pasta_ray.engine.messages import Events, Finished, Request
from pasta_ray.errors import OverloadedError, ReplicaError
from pasta_ray.logs import fields

logger = logging.getLogger(__name__)


def _ends(message: Events) -> bool:
    return any(isinstance(event, Finished) for event in message.events)


class Coordinator:
    """Sends each request to the replica that answers it soonest, passes its messages on, and opens it again where its
    replica dies."""

    def __init__(
        self,
        replicas: Sequence[Replica],
        max_ongoing: int = 64,
        max_queued: int = 256,
        check_period_s: float = 2.0,
        max_deaths: int = 5,
        wait_s: float = 120.0,
        growth: Growth | None = None,
        following: Following | None = None,
    ) -> None:
        self.fleet = Fleet(replicas, check_period_s, wait_s, growth, following)
        self._max_queued = max_queued
        self._max_deaths = max_deaths
        self._num_queued = self._num_ongoing = 0
        self._num_requests = self._num_finished = self._num_cancelled = self._num_recoveries = self._num_rejected = 0
        self._free = asyncio.Semaphore(max_ongoing)
        self._pace = Pace(max_ongoing)

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
        member = await self.fleet.choose(request)
        ended = False
        try:
            async with aclosing(member.decode(request)) as stream:
                async for message in stream:
                    ended = _ends(message)
                    yield message
        except ReplicaDiedError:
            self.fleet.lost(member)
            raise
        if not ended:
            raise ReplicaError(f"replica {member.replica.name} ended the answer before its report")

    def health(self) -> ClusterHealth:
        return self.fleet.health()

    def stats(self) -> CoordinatorStats:
        return CoordinatorStats(
            self._num_ongoing,
            self._num_queued,
            self._num_requests,
            self._num_finished,
            self._num_cancelled,
            self._num_recoveries,
            self._num_rejected,
            self.fleet.num_ready,
            self.fleet.num_draining,
            self.fleet.num_added,
            self.fleet.num_removed,
        )

    async def close(self) -> None:
        await self.fleet.close()

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
