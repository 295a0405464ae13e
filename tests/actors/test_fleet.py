"""Replicas that come and go with load, in one process."""

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack, aclosing

from pasta_ray.actors.coordinator import Coordinator
from pasta_ray.actors.fleet import Following, Growth
from pasta_ray.actors.scaling import Scaler
from pasta_ray.errors import ReplicaError
from tests.actors.test_coordinator import LocalReplica, answer
from tests.fakes import MakeFakeDecoder, ask

TWO_PAY = ((1, 0.01), (2, 0.01), (4, 0.02))
PACED = MakeFakeDecoder(step_s=0.01, points=TWO_PAY)
WORDS = " ".join(f"w{number}" for number in range(100))


def states(coordinator: Coordinator) -> dict[str, str]:
    return {replica.name: replica.state for replica in coordinator.health().replicas}


def branches(coordinator: Coordinator) -> dict[str, int]:
    return {replica.name: replica.num_branches for replica in coordinator.health().replicas}


class Growing:
    """A coordinator over one replica, and all that were ever made for it."""

    def __init__(self, most: int, drain_s: float) -> None:
        self.made: list[LocalReplica] = []
        growth = Growth(Scaler(1, most, up_s=0.1, down_s=0.3), self.make, drain_s)
        self.coordinator = Coordinator([self.make("r0")], check_period_s=0.02, growth=growth)

    def make(self, name: str) -> LocalReplica:
        self.made.append(LocalReplica(name, make_decoder=PACED))
        return self.made[-1]

    @property
    def states(self) -> dict[str, str]:
        return states(self.coordinator)

    def follow(self) -> Coordinator:
        """Another coordinator, of the replicas that there are."""

        async def names() -> list[str]:
            return [replica.name for replica in self.made if not replica.ended]

        def find(name: str) -> LocalReplica:
            return next(replica for replica in self.made if replica.name == name and not replica.ended)

        return Coordinator([], check_period_s=0.02, following=Following(names, find))

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not holds():
                await asyncio.sleep(0.01)

    async def busy(self, stack: AsyncExitStack, *ids: str) -> None:
        """Answers that go on until the stack ends."""
        for request_id in ids:
            stream = await stack.enter_async_context(aclosing(self.coordinator.decode(ask("endless", request_id))))
            await anext(stream)


def test_replicas_come_with_branches_and_go_without() -> None:
    async def scenario() -> None:
        growing = Growing(most=3, drain_s=60)
        async with AsyncExitStack() as stack:
            await growing.until(lambda: growing.states == {"r0": "ready"})
            await growing.busy(stack, "a", "b", "c", "d", "e")
            await growing.until(lambda: growing.states == dict.fromkeys(("r0", "r1", "r2"), "ready"))
            assert (await answer(growing.coordinator, ask("hello")))[1] in {"r1", "r2"}
        await growing.until(lambda: growing.states == {"r0": "ready"})
        assert [replica.ended for replica in growing.made] == [False, True, True]
        stats = growing.coordinator.stats()
        assert (stats.num_added, stats.num_removed, stats.num_draining, stats.num_recoveries) == (2, 2, 0, 0)

    asyncio.run(scenario())


def test_what_a_draining_replica_does_not_answer_in_time_goes_on_elsewhere() -> None:
    """Guards an answer across a scale-down: not a word is missing or there twice."""

    async def scenario() -> None:
        growing = Growing(most=2, drain_s=0.2)
        async with AsyncExitStack() as stack:
            await growing.until(lambda: growing.states == {"r0": "ready"})
            await growing.busy(stack, "a", "b")
            await growing.until(lambda: growing.states == {"r0": "ready", "r1": "ready"})
            moving = asyncio.create_task(answer(growing.coordinator, ask(WORDS, "moving", max_tokens=1000)))
            await growing.until(lambda: growing.coordinator.health().replicas[1].num_branches == 1)
        await growing.until(lambda: growing.states == {"r0": "ready", "r1": "draining"})
        assert (await answer(growing.coordinator, ask("hello")))[1] == "r0"
        await growing.until(lambda: growing.made[1].draining)
        assert await moving == (WORDS + " ", "r0")
        assert growing.made[1].ended
        assert growing.coordinator.stats().num_recoveries == 1

    asyncio.run(scenario())


def test_a_draining_replica_stays_when_load_rises_first() -> None:
    async def scenario() -> None:
        growing = Growing(most=2, drain_s=60)
        async with AsyncExitStack() as kept, AsyncExitStack() as stack:
            await growing.until(lambda: growing.states == {"r0": "ready"})
            await growing.busy(stack, "a", "b")
            await growing.until(lambda: growing.states == {"r0": "ready", "r1": "ready"})
            await growing.busy(kept, "c")
            await stack.aclose()
            await growing.until(lambda: growing.states["r1"] == "draining")
            await growing.busy(kept, "d", "e")
            await growing.until(lambda: growing.states == {"r0": "ready", "r1": "ready"})
            await growing.until(lambda: not growing.made[1].draining)
        assert len(growing.made) == 2
        assert growing.coordinator.stats().num_removed == 0

    asyncio.run(scenario())


def test_a_second_coordinator_has_the_replicas_of_the_first_and_sees_what_lives_on_them() -> None:
    """Guards load that one coordinator does not see, requests for a replica that drains, and one that is gone."""

    async def scenario() -> None:
        growing = Growing(most=2, drain_s=60)
        second = growing.follow()
        async with AsyncExitStack() as kept, AsyncExitStack() as stack:
            await growing.until(lambda: states(second) == {"r0": "ready"})
            await growing.busy(stack, "a", "b", "c")
            await growing.until(lambda: states(second) == {"r0": "ready", "r1": "ready"})
            assert branches(second) == branches(growing.coordinator) == {"r0": 3, "r1": 0}
            assert (await answer(second, ask("hello")))[1] == "r1"
            on_second = await kept.enter_async_context(aclosing(second.decode(ask("endless", "d"))))
            await anext(on_second)
            await growing.until(lambda: branches(growing.coordinator) == {"r0": 3, "r1": 1})
            await stack.aclose()
            await growing.until(lambda: states(second) == {"r0": "ready", "r1": "draining"})
            assert (await answer(second, ask("hello")))[1] == "r0"
            await kept.aclose()
            await growing.until(lambda: states(second) == {"r0": "ready"})
        assert branches(second) == branches(growing.coordinator) == {"r0": 0}
        assert growing.made[1].ended

    asyncio.run(scenario())


def test_a_coordinator_that_is_started_again_hears_who_drains() -> None:
    """Guards a replica that takes requests again because the coordinator that drained it died."""

    async def scenario() -> None:
        first, draining = (
            LocalReplica("r0", make_decoder=PACED),
            LocalReplica("r1", make_decoder=PACED, draining=True),
        )
        growth = Growth(Scaler(1, 2, up_s=60, down_s=60), LocalReplica, drain_s=60)
        coordinator = Coordinator([first, draining], check_period_s=0.02, growth=growth)
        while states(coordinator).get("r0") != "ready":
            await asyncio.sleep(0.01)
        while "r1" in states(coordinator):  # it has nothing to answer, and so it ends
            assert states(coordinator)["r1"] in ("starting", "draining")
            await asyncio.sleep(0)
        assert draining.ended

    asyncio.run(scenario())


def test_only_the_first_coordinator_restarts_replicas() -> None:
    """Guards a process that is ended twice, the second time when it has just come back."""

    async def scenario() -> None:
        broken = LocalReplica("r0", ping_error=ReplicaError("its loop is broken"))

        async def names() -> list[str]:
            return ["r0"]

        coordinator = Coordinator([], check_period_s=0.01, following=Following(names, lambda _: broken))
        while not (health := coordinator.health()).replicas or health.replicas[0].error is None:
            await asyncio.sleep(0.01)
        assert states(coordinator) == {"r0": "starting"}
        assert broken.num_restarts == 0

    asyncio.run(scenario())
