"""The actors with real processes between them."""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from typing import Any

import pytest

from pasta_ray.actors.cluster import Cluster
from pasta_ray.actors.messages import ClusterSpec
from pasta_ray.engine.messages import Delta, Events, Finished
from pasta_ray.errors import InputError, ReplicaError
from tests.fakes import MakeFakeDecoder, ask

pytestmark = pytest.mark.usefixtures("ray_cluster")


def spec(**options: Any) -> ClusterSpec:
    make = options.pop("make_decoder", MakeFakeDecoder())
    return ClusterSpec(make, cpus_per_replica=0, check_period_s=0.1, **options)


@pytest.fixture(scope="module")
def cluster() -> Cluster:
    return Cluster.start(spec(replicas=2))


def run(cluster: Cluster, scenario: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    async def ready() -> Any:
        while any(replica.state != "ready" for replica in (await cluster.health()).replicas):
            await asyncio.sleep(0.1)
        return await scenario()

    return asyncio.run(ready())


async def messages(cluster: Cluster, words: str, request_id: str = "a", **options: Any) -> list[Events]:
    return [message async for message in cluster.decode(ask(words, request_id, **options))]


def text(answer: list[Events]) -> str:
    finished = answer[-1].events[-1]
    assert isinstance(finished, Finished)
    return finished.report.text


async def idle(cluster: Cluster) -> None:
    for _ in range(500):
        stats = await cluster.stats()
        if not any(s.num_slots or s.num_branches or s.num_requests for s in stats):
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"still in use: {stats}")


def test_a_hundred_answers_over_two_replicas(cluster: Cluster) -> None:
    async def scenario() -> None:
        answers = await asyncio.gather(*(messages(cluster, f"fork then {i}", f"id{i}") for i in range(100)))
        assert [text(answer) for answer in answers] == [f"one two three then {i} " for i in range(100)]
        replicas = {answer[-1].events[-1].report.branches[0].replica for answer in answers}  # type: ignore[union-attr]
        assert replicas == {"r0", "r1"}
        await idle(cluster)

    run(cluster, scenario)


def test_leaving_a_stream_frees_the_slots_of_every_replica(cluster: Cluster) -> None:
    """Guards against a disconnect that ends the outer call only (Ray issue 52533)."""

    async def scenario() -> None:
        async with aclosing(cluster.decode(ask("fork fork endless"))) as stream:
            await anext(stream)
            assert sum(stats.num_slots for stats in await cluster.stats()) > 0
        await idle(cluster)

    run(cluster, scenario)


def test_a_slow_reader_gets_joined_messages(cluster: Cluster) -> None:
    async def scenario() -> None:
        words = " ".join(f"w{i}" for i in range(300))
        num_messages = num_deltas = 0
        async for message in cluster.decode(ask(words, max_tokens=400)):
            num_messages += 1
            num_deltas += sum(isinstance(event, Delta) for event in message.events)
            await asyncio.sleep(0.01)
        assert num_deltas == 300
        assert num_messages < 150

    run(cluster, scenario)


def test_the_decoders_own_errors_arrive_as_they_were_raised(cluster: Cluster) -> None:
    async def scenario() -> None:
        with pytest.raises(InputError) as raised:
            await messages(cluster, "refuse")
        assert str(raised.value) == "the prompt is refused"

    run(cluster, scenario)


def test_a_replicas_death_is_reported_and_it_comes_back() -> None:
    cluster = Cluster.start(spec())

    async def scenario() -> str:
        with pytest.raises(ReplicaError, match="died while it answered"):
            await messages(cluster, "hello die")
        await cluster.wait_ready(60)
        return text(await messages(cluster, "hello again"))

    assert run(cluster, scenario) == "hello again "


def test_a_poisoned_replica_is_restarted() -> None:
    cluster = Cluster.start(spec())

    async def scenario() -> str:
        with pytest.raises(Exception, match="out of luck"):
            await messages(cluster, "poison")
        await asyncio.sleep(0.5)
        await cluster.wait_ready(60)
        return text(await messages(cluster, "hello again"))

    assert run(cluster, scenario) == "hello again "


def test_replicas_that_cannot_start_say_why() -> None:
    cluster = Cluster.start(spec(make_decoder=MakeFakeDecoder(failing=("r0",))))

    async def scenario() -> None:
        with pytest.raises(ReplicaError, match="no such weights"):
            await cluster.wait_ready(60)

    asyncio.run(scenario())
