import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest

from pasta_ray.actors.coordinator import Coordinator
from pasta_ray.actors.decode_loop import DecodeLoop
from pasta_ray.actors.messages import DecoderFactory, ReplicaDiedError, ReplicaStats
from pasta_ray.engine.messages import Event, Events, Finished, Request
from pasta_ray.errors import InputError, ModelError, OverloadedError, PastaError, ReplicaError
from tests.fakes import FakeDecoder, ask


class LocalReplica:
    """A replica in this process. Each time that it is asked it dies after another number of messages, of ``dies``, and
    is back at once; after the last of them it lives."""

    def __init__(
        self,
        name: str,
        dies: Sequence[int] = (),
        ping_error: PastaError | None = None,
        draining: bool = False,
        make_decoder: DecoderFactory = FakeDecoder,
    ) -> None:
        self.name = name
        self.dies = list(dies)
        self.ping_error = ping_error
        self.loop = DecodeLoop(make_decoder, name)
        self.num_restarts = 0
        self.num_deaths = 0
        self.draining = draining
        self.ended = False

    async def decode(self, request: Request) -> AsyncGenerator[Events, None]:
        num_left = self.dies.pop(0) if self.dies else None
        async with aclosing(self.loop.decode(request)) as stream:
            async for message in stream:
                if num_left == 0 or self.ended:
                    self.num_deaths += 1
                    raise ReplicaDiedError(f"{self.name} is gone")
                num_left = None if num_left is None else num_left - 1
                yield message

    async def ping(self, draining: bool | None) -> ReplicaStats:
        if draining is not None:
            self.draining = draining
        if self.ping_error is not None:
            raise self.ping_error
        return replace(self.loop.stats(), draining=self.draining)

    def restart(self) -> None:
        self.num_restarts += 1
        self.ping_error = None

    def end(self) -> None:
        self.ended = True


async def started(replicas: Sequence[LocalReplica], **options: Any) -> Coordinator:
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


WORDS = "fork first fork second then some more words to the end"


async def messages(coordinator: Coordinator, request: Request) -> list[Events]:
    return [message async for message in coordinator.decode(request)]


async def num_slots(replica: LocalReplica) -> int:
    """Once the replica has done everything that it was told until now, such as to forget a request."""
    return await asyncio.wrap_future(replica.loop.call(lambda decoder: decoder.num_slots))


def said(answer: Sequence[Events]) -> list[Event]:
    return [event for message in answer for event in message.events][:-1]


def test_deaths_at_any_message_leave_no_trace_in_an_answer() -> None:
    """Guards against text that is repeated or missing, and against load that stays counted."""

    async def scenario() -> None:
        undisturbed = await messages(await started([LocalReplica("r0")]), ask(WORDS))
        num_deaths = 0
        for num_before in range(len(undisturbed)):
            replicas = [LocalReplica("r0", dies=(num_before, 0)), LocalReplica("r1", dies=(1, 0, 2))]
            coordinator = await started(replicas)
            answer = await messages(coordinator, ask(WORDS))
            assert said(answer) == said(undisturbed)
            stats = coordinator.stats()
            assert (stats.num_ongoing, stats.num_finished, stats.num_cancelled) == (0, 1, 0)
            assert stats.num_recoveries == sum(replica.num_deaths for replica in replicas)
            num_deaths += stats.num_recoveries
            assert [replica.num_branches for replica in coordinator.health().replicas] == [0, 0]
            assert [await num_slots(replica) for replica in replicas] == [0, 0]
        assert num_deaths > len(undisturbed)  # an answer may come in fewer messages than the first, and end before

    asyncio.run(scenario())


def test_a_request_that_kills_whatever_decodes_it_is_given_up() -> None:
    """Guards against one request that takes every replica down, again and again."""

    async def scenario() -> int:
        replica = LocalReplica("r0", dies=(3, *(0 for _ in range(9))))
        coordinator = await started([replica], max_deaths=4)
        with pytest.raises(ReplicaError, match=r"r0 is gone; what answered request a died 5 times in a row"):
            await messages(coordinator, ask("endless"))
        return len(replica.dies)

    assert asyncio.run(scenario()) == 5  # of 10: one after some steps, and four in a row


def test_what_comes_while_no_replica_is_ready_waits_for_one_up_to_a_bound() -> None:
    async def scenario() -> str:
        replica = LocalReplica("r0", ping_error=ReplicaDiedError("it is starting"))
        coordinator = await started([replica], wait_s=0.05)
        with pytest.raises(ReplicaError, match=r"no decode replica was ready within 0.05 s: r0 starting"):
            await answer(coordinator, ask("hello"))
        patient = await started([replica], wait_s=60)
        waiting = asyncio.create_task(answer(patient, ask("hello")))
        await asyncio.sleep(0.05)
        replica.ping_error = None
        return (await waiting)[0]

    assert asyncio.run(scenario()) == "hello "


def test_what_is_left_is_counted_as_cancelled() -> None:
    async def scenario() -> None:
        replica = LocalReplica("r0")
        coordinator = await started([replica])
        async with aclosing(coordinator.decode(ask("endless"))) as stream:
            await anext(stream)
        for _ in range(100):
            await asyncio.sleep(0.01)
            if not replica.loop.stats().num_slots:
                break
        assert (coordinator.stats().num_cancelled, replica.loop.stats().num_cancelled) == (1, 1)
        await answer(coordinator, ask("hello"))
        assert (coordinator.stats().num_cancelled, replica.loop.stats().num_cancelled) == (1, 1)
        assert (coordinator.stats().num_requests, coordinator.stats().num_finished) == (2, 1)

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
