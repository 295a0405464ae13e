"""The replicas that `pasta-ray bench farm` measures."""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager
from functools import partial

from pasta_ray.actors.cluster import Cluster
from pasta_ray.actors.loading import LoadDecoder, LoadTokenizer
from pasta_ray.actors.messages import ClusterSpec, Policy, SharingStats
from pasta_ray.cli.ray_session import connect
from pasta_ray.engine.config import EngineConfig
from pasta_ray.engine.messages import Finished, Report, Request
from pasta_ray.errors import ReplicaError
from pasta_ray.eval.bench.farm import PROMPTS, FarmOptions, FarmRound

POLICIES: tuple[Policy, ...] = ("local", "auto", "remote")
PEERS_S = 60.0


@contextmanager
def farm_rounds(config: EngineConfig, options: FarmOptions) -> Iterator[dict[str, Callable[[], FarmRound]]]:
    """A round of answers by policy, on replicas that live as long as this context."""
    connect()
    tokenizer = LoadTokenizer(config)()
    chats = [tuple(tokenizer.encode_chat([{"role": "user", "content": text}])) for text in PROMPTS]
    with asyncio.Runner() as runner:
        cluster = Cluster.start(
            ClusterSpec(LoadDecoder(config, timed=True, shares=True), options.replicas, cpus_per_replica=0)
        )
        try:
            runner.run(_know_each_other(cluster, options.replicas))
            farm = _Farm(cluster, chats, options)
            yield {policy: partial(_run, runner, farm, policy) for policy in POLICIES}
        finally:
            runner.run(cluster.end())


def _run(runner: asyncio.Runner, farm: "_Farm", policy: Policy) -> FarmRound:
    return runner.run(farm.round(policy))


async def _know_each_other(cluster: Cluster, num_replicas: int) -> None:
    await cluster.wait_ready()
    deadline = time.monotonic() + PEERS_S
    while any(each.sharing.num_peers < num_replicas - 1 for each in await cluster.stats()):
        if time.monotonic() > deadline:
            raise ReplicaError(f"the {num_replicas} replicas did not find each other within {PEERS_S:.0f} s")
        await asyncio.sleep(0.2)


class _Farm:
    def __init__(self, cluster: Cluster, chats: list[tuple[int, ...]], options: FarmOptions) -> None:
        self._cluster, self._chats, self._options = cluster, chats, options
        self._num_rounds = 0

    async def round(self, policy: Policy) -> FarmRound:
        await self._cluster.place(policy)
        before = [each.sharing for each in await self._cluster.stats()]
        self._num_rounds += 1
        turns = asyncio.Semaphore(self._options.concurrent)
        start = time.perf_counter()
        reports = await asyncio.gather(*(self._answer(turns, number) for number in range(len(self._chats))))
        wall_s = time.perf_counter() - start
        after = [each.sharing for each in await self._cluster.stats()]
        changes = list(zip(before, after, strict=True))
        return FarmRound(
            wall_s,
            tuple(report.timing.wall_s for report in reports),
            sum(report.usage.completion_tokens + report.usage.annotation_tokens for report in reports),
            sum(report.parallel.num_promises for report in reports),
            sum(new.num_bodies_sent - old.num_bodies_sent for old, new in changes),
            sum(_body_bytes(new) - _body_bytes(old) for old, new in changes),
            tuple(report.document for report in reports),
        )

    async def _answer(self, turns: asyncio.Semaphore, number: int) -> Report:
        request = Request(f"{self._num_rounds}.{number}", self._chats[number], max_tokens=self._options.max_tokens)
        async with turns, aclosing(self._cluster.decode(request)) as messages:
            async for message in messages:
                last = message.events[-1]
                if isinstance(last, Finished):
                    return last.report
        raise ReplicaError("the answer ended before its report")


def _body_bytes(stats: SharingStats) -> int:
    return stats.num_body_bytes_sent + stats.num_body_bytes_returned
