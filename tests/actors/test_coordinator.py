import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

import pytest

from pasta_ray.actors.coordinator import Coordinator
from pasta_ray.actors.decode_loop import DecodeLoop
from pasta_ray.actors.messages import ReplicaDiedError, ReplicaStats
from pasta_ray.engine.messages import Events, Finished, Request
from pasta_ray.errors import InputError, ModelError, OverloadedError, PastaError, ReplicaError
from tests.fakes import FakeDecoder, ask


class LocalReplica:
    """A replica in this process that dies where it is told to: before, or after, its first message."""

    def __init__(self, name: str, dies: str = "never", ping_error: PastaError | None = None) -> None:
        self.name = name
        self.dies = dies
        self.ping_error = ping_error
        self.loop = DecodeLoop(FakeDecoder, name)
        self.num_restarts = 0

    async def decode(self, request: Request) -> AsyncGenerator[Events, None]:
        if self.dies == "before":
            raise ReplicaDiedError(f"{self.name} is gone")
        async with aclosing(self.loop.decode(request)) as stream:
            async for message in stream:
                yield message
                if self.dies == "after":
                    raise ReplicaDiedError(f"{self.name} is gone")

    async def ping(self) -> ReplicaStats:
        if self.ping_error is not None:
            raise self.ping_error
        return self.loop.stats()

    def restart(self) -> None:
        self.num_restarts += 1
        self.ping_error = None


async def started(replicas: Sequence[LocalReplica], **options: int) -> Coordinator:
    coordinator = Coordinator(replicas, check_period_s=0.01, **options)
    for _ in range(100):
        await asyncio.sleep(0.01)
        if all(replica.state != "starting" for replica in coordinator.health().replicas):
            break
    return coordinator


async def answer(coordinator: Coordinator, request: Request) -> tuple[str, str]:
    """The text, and the replica that wrote it."""
    event = None
    async for message in coordinator.decode(request):
        event = message.events[-1]
    assert isinstance(event, Finished)
    return event.report.text, event.report.branches[0].replica


def test_a_request_goes_where_the_fewest_branches_live() -> None:
    async def scenario() -> tuple[list[int], str]:
        coordinator = await started([LocalReplica("r0"), LocalReplica("r1")])
        async with aclosing(coordinator.decode(ask("endless", "long"))) as busy:
            await anext(busy)
            loads = [replica.num_branches for replica in coordinator.health().replicas]
            return loads, (await answer(coordinator, ask("hello")))[1]

    assert asyncio.run(scenario()) == ([1, 0], "r1")


def test_load_is_zero_again_after_answers_and_interruptions() -> None:
    async def scenario() -> list[int]:
        coordinator = await started([LocalReplica("r0")])
        await answer(coordinator, ask("fork and fork"))
        async with aclosing(coordinator.decode(ask("fork endless"))) as stream:
            await anext(stream)
        return [replica.num_branches for replica in coordinator.health().replicas]

    assert asyncio.run(scenario()) == [0]


def test_death_before_the_first_event_is_tried_once_elsewhere() -> None:
    async def scenario() -> tuple[str, str]:
        coordinator = await started([LocalReplica("r0", dies="before"), LocalReplica("r1")])
        return await answer(coordinator, ask("hello"))

    assert asyncio.run(scenario()) == ("hello ", "r1")


@pytest.mark.parametrize("second", ["before", "never"])
def test_a_later_death_or_a_second_one_is_reported(second: str) -> None:
    """Guards against an answer that silently starts again behind text that the client has already seen."""
    first = "before" if second == "before" else "after"

    async def scenario() -> None:
        coordinator = await started([LocalReplica("r0", dies=first), LocalReplica("r1", dies=second)])
        with pytest.raises(ReplicaError, match=r"replica r\d died while it answered"):
            await answer(coordinator, ask("hello"))

    asyncio.run(scenario())


def test_what_the_decoder_refuses_is_not_tried_again() -> None:
    async def scenario() -> None:
        coordinator = await started([LocalReplica("r0"), LocalReplica("r1")])
        with pytest.raises(InputError, match="refused"):
            await answer(coordinator, ask("refuse"))

    asyncio.run(scenario())


def test_above_its_bounds_the_coordinator_says_so_and_waiting_can_be_given_up() -> None:
    async def scenario() -> str:
        coordinator = await started([LocalReplica("r0")], max_ongoing=1, max_queued=1)
        async with aclosing(coordinator.decode(ask("endless", "first"))) as first:
            await anext(first)
            waiting = asyncio.create_task(answer(coordinator, ask("second", "second")))
            await asyncio.sleep(0.01)
            with pytest.raises(OverloadedError, match="1 requests are waiting"):
                await answer(coordinator, ask("third", "third"))
            waiting.cancel()
            await asyncio.sleep(0.01)
            waiting = asyncio.create_task(answer(coordinator, ask("fourth", "fourth")))
            await asyncio.sleep(0.01)
        return (await waiting)[0]

    assert asyncio.run(scenario()) == "fourth "


def test_a_replica_that_asks_for_it_is_restarted() -> None:
    async def scenario() -> int:
        replica = LocalReplica("r0", ping_error=ReplicaError("broken"))
        coordinator = await started([replica])
        for _ in range(100):
            await asyncio.sleep(0.01)
            if coordinator.health().ready:
                break
        await answer(coordinator, ask("hello"))
        return replica.num_restarts

    assert asyncio.run(scenario()) == 1


def test_a_replica_that_cannot_load_is_named_with_its_reason() -> None:
    async def scenario() -> None:
        coordinator = await started([LocalReplica("r0", ping_error=ModelError("no such weights"))])
        assert coordinator.health().failed
        with pytest.raises(ReplicaError, match=r"no decode replica is ready: r0 failed \(no such weights\)"):
            await answer(coordinator, ask("hello"))

    asyncio.run(scenario())
