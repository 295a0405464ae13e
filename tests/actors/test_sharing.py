"""Replicas with real processes and a small random model between them: shared prefixes, and bodies farmed out."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import ray

from pasta_ray.actors.cluster import Cluster
from pasta_ray.actors.messages import ClusterSpec, ReplicaDiedError, ReplicaStats, SharingStats
from pasta_ray.actors.neighbours import PERIOD_S
from pasta_ray.actors.remote import stream
from pasta_ray.engine.decoder import Decoder
from pasta_ray.engine.messages import Events, Finished, Report, Request
from tests.actors.processes import part
from tests.engine.conftest import prompt
from tests.engine.events import answer
from tests.engine.test_methods import make_decoder, request
from tests.narrow import MakeNarrowDecoder

pytestmark = pytest.mark.usefixtures("ray_cluster")

SYSTEM = tuple(prompt(1, 1000))
PREFILL_IS_DEAR = ((1, 0.01), (16, 0.16))
NUM_REQUESTS = 6
NUM_REPLICAS = 3


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    """One engine without neighbours, over the same model."""
    return make_decoder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def cluster(alone: Decoder) -> Cluster:
    """Replicas each of which has every body decoded on another one."""
    make = MakeNarrowDecoder(Path(alone.engine.config.model), points=PREFILL_IS_DEAR)
    return Cluster.start(ClusterSpec(make, NUM_REPLICAS, cpus_per_replica=0, check_period_s=0.1, placement="remote"))


def run(cluster: Cluster, scenario: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    async def ready() -> Any:
        while any(each.sharing.num_peers < NUM_REPLICAS - 1 for each in await cluster.stats()):
            await asyncio.sleep(0.1)
        return await scenario()

    return asyncio.run(ready())


async def settled() -> None:
    """Replicas have announced what they hold."""
    await asyncio.sleep(4 * PERIOD_S)


@dataclass
class Replica:
    """One of a cluster's, asked without its coordinator, which would rather ask those that have the prompt."""

    cluster: Cluster
    name: str

    def decode(self, asked: Request) -> AsyncGenerator[Events, None]:
        return stream(part(self.cluster, self.name), self.name, asked)


async def report(asked_of: Cluster | Replica, asked: Request) -> Report:
    async with aclosing(asked_of.decode(asked)) as messages:
        async for message in messages:
            last = message.events[-1]
    assert isinstance(last, Finished)
    return last.report


def kill(cluster: Cluster, name: str) -> None:
    """End the process of one of its actors, which Ray starts again."""
    ray.kill(part(cluster, name), no_restart=False)


def totals(stats: tuple[ReplicaStats, ...]) -> SharingStats:
    names = SharingStats.__dataclass_fields__
    return SharingStats(**{name: sum(getattr(each.sharing, name) for each in stats) for name in names})


async def idle(cluster: Cluster) -> tuple[ReplicaStats, ...]:
    for _ in range(400):
        try:
            stats = await cluster.stats()
        except ReplicaDiedError:  # one of them is being started again
            await asyncio.sleep(0.1)
            continue
        if not any(each.num_slots or each.num_branches or each.num_requests for each in stats):
            return stats
        await asyncio.sleep(0.05)
    raise AssertionError("slots are still in use")


def test_a_shared_prompt_is_prefilled_once_in_the_cluster(alone: Decoder, cluster: Cluster) -> None:
    """Guards prefixes across replicas: of 1,000 tokens that all requests share, one replica computes all, and the
    others only what is no whole block; the answers are those of one engine. A directory that dies is told again."""
    requests = [
        replace(request(number, "sequential", max_tokens=8), prompt_ids=(*SYSTEM, number + 4, 9)) for number in range(7)
    ]
    expected = {each.id: answer(alone, each).text for each in requests}

    async def scenario() -> tuple[SharingStats, SharingStats]:
        assert (await report(cluster, requests[0])).text == expected["r0"]
        await settled()
        answers = await asyncio.gather(*(report(Replica(cluster, f"r{n - 1}"), requests[n]) for n in (1, 2, 3)))
        assert {each.id: each.text for each in answers} == {f"r{n}": expected[f"r{n}"] for n in (1, 2, 3)}
        assert len({each.branches[0].replica for each in answers}) == 3
        stats = await idle(cluster)
        assert sum(each.counters.num_prefix_tokens - each.counters.num_prefix_hits for each in stats) <= 1001 + 3 * 41
        num_hits = sum(each.counters.num_prefix_hits for each in stats)
        kill(cluster, "directory")
        await settled()
        await settled()
        answers = await asyncio.gather(*(report(cluster, each) for each in requests[4:]))
        assert {each.id: each.text for each in answers} == {f"r{n}": expected[f"r{n}"] for n in (4, 5, 6)}
        after = await idle(cluster)
        assert sum(each.counters.num_prefix_hits for each in after) - num_hits >= 3 * 1000
        return totals(stats), totals(after)

    first, second = run(cluster, scenario)
    assert first.num_prefix_fetches == 2
    assert first.num_prefix_tokens_fetched == 2 * 31 * 32
    assert first.num_prefix_bytes_fetched == first.num_prefix_tokens_fetched * alone.store.bytes_per_token
    assert first.num_prefix_fetches_failed == first.num_bodies_sent == 0
    assert second.num_prefix_fetches == 2, "all have it by now"


def test_every_body_on_another_replica(alone: Decoder, cluster: Cluster) -> None:
    """Guards farming out with processes between: the same documents as one engine's, bodies on the other replica, their
    KV there and back, and nothing left on either."""
    requests = [request(number, max_tokens=1000) for number in range(NUM_REQUESTS)]
    expected = {each.id: answer(alone, each) for each in requests}

    async def scenario() -> tuple[SharingStats, SharingStats]:
        before = totals(await cluster.stats())
        answers = await asyncio.gather(*(report(cluster, each) for each in requests))
        for each in answers:
            assert each.document == expected[each.id].document
            home, *bodies = [branch.replica for branch in each.branches]
            assert set(bodies) <= {"r0", "r1", "r2"} - {home}
        return before, totals(await idle(cluster))

    before, stats = run(cluster, scenario)
    assert before.num_bodies_sent == 0
    num_bodies = sum(each.parallel.num_promises for each in expected.values())
    assert stats.num_bodies_sent == stats.num_bodies_hosted == num_bodies > 10
    assert stats.num_bodies_lost == 0
    assert stats.num_body_bytes_sent > 0
    tokens = sum(branch.tokens - 1 for each in expected.values() for branch in each.branches[1:])
    assert stats.num_body_bytes_returned == tokens * alone.store.bytes_per_token


def test_leaving_frees_bodies_elsewhere(cluster: Cluster) -> None:
    """Guards against bodies that are decoded on another replica for a reader who has left."""

    async def scenario() -> None:
        for number in range(4):
            async with aclosing(cluster.decode(request(number, max_tokens=1000))) as messages:
                while not any(each.num_branches > 1 for each in await cluster.stats()):
                    await anext(messages)
        await idle(cluster)

    run(cluster, scenario)


def test_a_replica_that_dies_with_bodies_costs_no_text(alone: Decoder, cluster: Cluster) -> None:
    """Guards against answers that lose a body, or hang, when the replica that decodes it dies."""
    requests = [request(number, max_tokens=1000) for number in range(NUM_REQUESTS)]
    expected = {each.id: answer(alone, each).document for each in requests}

    async def scenario() -> None:
        answers = [asyncio.create_task(report(cluster, each)) for each in requests]
        before = totals(await cluster.stats()).num_bodies_hosted
        while totals(await cluster.stats()).num_bodies_hosted < before + 4:
            await asyncio.sleep(0.005)
        kill(cluster, "r1")
        for each in await asyncio.gather(*answers):
            assert each.document == expected[each.id]
        await idle(cluster)

    run(cluster, scenario)
