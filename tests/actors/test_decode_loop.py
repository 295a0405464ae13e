import asyncio
import threading
import time
from contextlib import aclosing

import pytest

from pasta_ray.actors.decode_loop import DecodeLoop
from pasta_ray.actors.messages import StepError
from pasta_ray.engine.messages import Delta, Events, Finished, PromiseOpened, Request
from pasta_ray.errors import InputError, ModelError, ReplicaError
from tests.fakes import FakeDecoder, MakeFakeDecoder, ask


async def read(loop: DecodeLoop, request: Request) -> list[Events]:
    return [message async for message in loop.decode(request)]


async def settled(loop: DecodeLoop) -> None:
    """Wait until the loop has nothing left, at most two seconds."""
    for _ in range(200):
        if loop.stats().num_slots == loop.stats().num_requests == loop.stats().num_branches == 0:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"still in use: {loop.stats()}")


def text(messages: list[Events]) -> str:
    report = messages[-1].events[-1]
    assert isinstance(report, Finished)
    return report.report.text


def test_events_arrive_in_order_and_end_with_the_report() -> None:
    async def scenario() -> list[Events]:
        return await read(DecodeLoop(FakeDecoder), ask("hello fork world"))

    messages = asyncio.run(scenario())
    events = [event for message in messages for event in message.events]
    assert [event.text for event in events if isinstance(event, Delta) and event.branch == "0"] == ["hello ", "world "]
    assert sum(isinstance(event, PromiseOpened) for event in events) == 1
    assert text(messages) == "hello one two three world "


def test_many_requests_at_once_each_get_their_own_answer() -> None:
    async def scenario() -> list[str]:
        loop = DecodeLoop(FakeDecoder)
        answers = await asyncio.gather(*(read(loop, ask(f"fork number {i}", f"id{i}")) for i in range(200)))
        await settled(loop)
        return [text(messages) for messages in answers]

    assert asyncio.run(scenario()) == [f"one two three number {i} " for i in range(200)]


def test_a_slow_consumer_gets_few_large_messages_and_loses_nothing() -> None:
    """Guards against one message a step piling up in front of a client that reads slowly."""

    async def scenario() -> tuple[int, int]:
        words = " ".join(f"w{i}" for i in range(300))
        num_messages, num_deltas = 0, 0
        async for message in DecodeLoop(FakeDecoder).decode(ask(words, max_tokens=1000)):
            num_messages += 1
            num_deltas += sum(isinstance(event, Delta) for event in message.events)
            await asyncio.sleep(0.01)
        return num_messages, num_deltas

    num_messages, num_deltas = asyncio.run(scenario())
    assert num_deltas == 300
    assert num_messages < 100


def test_what_comes_within_the_period_waits_but_neither_the_first_nor_the_end() -> None:
    async def scenario() -> tuple[list[Events], float]:
        loop = DecodeLoop(MakeFakeDecoder(step_s=0.01))
        words = " ".join(f"w{i}" for i in range(30))
        began = time.perf_counter()
        messages = [message async for message in loop.decode(ask(words, max_tokens=1000), period_s=lambda: 60.0)]
        return messages, time.perf_counter() - began

    messages, took_s = asyncio.run(scenario())
    assert len(messages) == 2
    assert len(messages[0].events) < 3
    assert text(messages) == " ".join(f"w{i}" for i in range(30)) + " "
    assert took_s < 30


def test_the_event_loop_stays_responsive_during_a_long_step() -> None:
    """Guards against a step on the event loop, which would fail health checks of a busy replica (Ray issue 54070)."""

    async def scenario() -> float:
        loop = DecodeLoop(MakeFakeDecoder(step_s=1.0))
        answer = asyncio.create_task(read(loop, ask("a")))
        await asyncio.sleep(0.1)
        started = time.perf_counter()
        loop.check()
        loop.stats()
        await asyncio.sleep(0)
        waited_s = time.perf_counter() - started
        await answer
        return waited_s

    assert asyncio.run(scenario()) < 0.5


@pytest.mark.parametrize("how", ["close", "task", "cancel"])
def test_leaving_early_frees_every_slot(how: str) -> None:
    async def scenario() -> list[str]:
        decoder = FakeDecoder()
        loop = DecodeLoop(lambda _: decoder)
        if how == "task":
            task = asyncio.create_task(read(loop, ask("endless")))
            await asyncio.sleep(0.05)
            assert loop.stats().num_slots > 0
            task.cancel()
        else:
            async with aclosing(loop.decode(ask("endless"))) as stream:
                async for _ in stream:
                    if how == "cancel":
                        loop.cancel("a")
                    break
        await settled(loop)
        return decoder.cancelled

    assert asyncio.run(scenario()) == ["a"]


def test_a_refused_request_fails_alone() -> None:
    async def scenario() -> str:
        loop = DecodeLoop(FakeDecoder)
        good = asyncio.create_task(read(loop, ask("all is well", "good")))
        with pytest.raises(InputError, match="refused"):
            await read(loop, ask("refuse", "bad"))
        return text(await good)

    assert asyncio.run(scenario()) == "all is well "


def test_an_id_in_use_is_refused_and_the_first_goes_on() -> None:
    async def scenario() -> None:
        loop = DecodeLoop(FakeDecoder)
        async with aclosing(loop.decode(ask("endless"))) as first:
            await anext(first)
            with pytest.raises(InputError, match="already"):
                await read(loop, ask("hello"))
            await anext(first)

    asyncio.run(scenario())


def test_a_failing_step_reaches_every_consumer_and_the_loop_goes_on() -> None:
    """Guards against consumers that wait for ever behind an exception in the decode thread."""

    async def scenario() -> str:
        loop = DecodeLoop(FakeDecoder, "r7")
        neighbour = asyncio.create_task(read(loop, ask("endless", "neighbour")))
        await asyncio.sleep(0.05)
        with pytest.raises(StepError, match=r"r7.*ValueError: the kernel is out of luck"):
            await read(loop, ask("crash", "bad"))
        with pytest.raises(StepError):
            await neighbour
        await settled(loop)
        return text(await read(loop, ask("still here", "later")))

    assert asyncio.run(scenario()) == "still here "


def test_a_decoder_that_cannot_be_cleaned_up_asks_for_a_restart() -> None:
    async def scenario() -> None:
        loop = DecodeLoop(FakeDecoder)
        with pytest.raises(StepError):
            await read(loop, ask("poison"))
        with pytest.raises(ReplicaError, match="must be restarted: RuntimeError: the cache is corrupt"):
            await read(loop, ask("hello"))

    asyncio.run(scenario())


def test_stop_ends_open_streams() -> None:
    async def scenario() -> None:
        loop = DecodeLoop(FakeDecoder)
        task = asyncio.create_task(read(loop, ask("endless")))
        await asyncio.sleep(0.05)
        loop.stop()
        with pytest.raises(ReplicaError, match="stopped"):
            await task
        with pytest.raises(ReplicaError, match="stopped"):
            loop.check()

    asyncio.run(scenario())


def test_a_decoder_that_cannot_be_made_raises_where_the_loop_is_made() -> None:
    with pytest.raises(ModelError, match="no such weights"):
        DecodeLoop(MakeFakeDecoder(failing=("local",)))


def test_the_decoder_is_made_and_driven_by_one_thread() -> None:
    """Guards against a thread count that is set on one thread and missing on the one that decodes."""
    threads = set()

    class Watched(FakeDecoder):
        def __init__(self, replica: str) -> None:
            super().__init__(replica)
            threads.add(threading.get_ident())

        def step(self) -> list[Events]:
            threads.add(threading.get_ident())
            return super().step()

    async def scenario() -> None:
        await read(DecodeLoop(Watched), ask("hello"))

    asyncio.run(scenario())
    assert len(threads) == 1
    assert threading.get_ident() not in threads
