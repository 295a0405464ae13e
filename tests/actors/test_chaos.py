"""Processes are killed while they answer: each answer is the undisturbed one, and nothing of it is left."""

import asyncio
import os
import random
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import ray

from pasta_ray.actors.cluster import Cluster
from pasta_ray.actors.messages import ClusterSpec, DecoderFactory, DecoderLike
from pasta_ray.actors.sharing import DIRECTORY
from pasta_ray.engine.messages import Event, Events, Finished, Request
from tests.actors.processes import coordinator, part
from tests.engine import test_methods
from tests.fakes import MakeFakeDecoder, ask
from tests.narrow import MakeNarrowDecoder

pytestmark = pytest.mark.usefixtures("ray_cluster")
CONCURRENCY = 8
REPLICAS = ("r0", "r1", "r2")


def undisturbed(decoder: DecoderLike, requests: Sequence[Request]) -> dict[str, list[Event]]:
    events: dict[str, list[Event]] = {request.id: [] for request in requests}
    for request in requests:
        decoder.submit(request)
    while decoder.busy:
        for message in decoder.step():
            events[message.request_id] += message.events
    return events


class Killer:
    """Ends a process of the cluster every few seconds, as the kernel does to one that takes too much memory."""

    def __init__(self, cluster: Cluster, seed: int, period_s: float) -> None:
        self._cluster = cluster
        self._random = random.Random(seed)
        self._period_s = period_s
        self.killed: list[str] = []

    async def run(self) -> None:
        while True:
            await asyncio.sleep(self._period_s)
            victim = self._random.choice(("coordinator", DIRECTORY, *REPLICAS))
            with suppress(ray.exceptions.RayError, ValueError, TimeoutError):  # it is not back from the last time
                os.kill(await asyncio.wait_for(self._pid(victim), 1.0), signal.SIGKILL)
                self.killed.append(victim)

    async def _pid(self, victim: str) -> int:
        index = self._random.randrange(len(self._cluster.contacts))
        actor = coordinator(self._cluster, index) if victim == "coordinator" else part(self._cluster, victim)
        pid: int = await actor.__ray_call__.remote(lambda _: os.getpid())
        return pid


async def answers(cluster: Cluster, requests: Sequence[Request]) -> dict[str, list[Event]]:
    """All requests, so many at a time."""
    events: dict[str, list[Event]] = {}
    waiting = list(reversed(requests))

    async def worker() -> None:
        while waiting:
            request = waiting.pop()
            messages: list[Events] = [message async for message in cluster.decode(request)]
            events[request.id] = [event for message in messages for event in message.events]

    async with asyncio.TaskGroup() as group:
        for _ in range(CONCURRENCY):
            group.create_task(worker())
    return events


async def under_attack(cluster: Cluster, requests: Sequence[Request], killer: Killer) -> dict[str, list[Event]]:
    """The answers; afterwards all replicas come back and hold nothing, and the directory knows what they cache."""
    await cluster.wait_ready(60)
    attack = asyncio.create_task(killer.run())
    try:
        events = await answers(cluster, requests)
    finally:
        attack.cancel()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with suppress(Exception):
            stats = await cluster.stats()
            if not any(each.num_slots or each.num_branches or each.num_requests for each in stats):
                await directory_agrees(cluster)
                return events
        await asyncio.sleep(0.1)
    raise AssertionError("a replica is away or not empty after a minute")


async def directory_agrees(cluster: Cluster) -> None:
    """It has each replica's blocks and no others, once those that came back last have told it."""

    async with asyncio.timeout(30):
        while True:
            with suppress(ray.exceptions.RayError, ValueError):  # one of them is being started again
                asked = {name: part(cluster, name).__ray_call__.remote(held) for name in REPLICAS}
                cached = {name: await names for name, names in asked.items()}
                told, holders = await part(cluster, DIRECTORY).__ray_call__.remote(known)
                if told == cached:
                    blocks = set().union(*cached.values())
                    assert holders == {block: {name for name in REPLICAS if block in cached[name]} for block in blocks}
                    return
            await asyncio.sleep(0.1)


def known(actor: Any) -> tuple[dict[str, set[bytes]], dict[bytes, set[str]]]:
    """Of the directory: blocks by replica, and replicas by block."""
    directory = actor._directory
    return {name: member.names for name, member in directory._members.items()}, directory._holders


def held(replica: Any) -> frozenset[bytes]:
    names: frozenset[bytes] = replica._sharing._neighbours.names
    return names


def check(events: dict[str, list[Event]], expected: dict[str, list[Event]]) -> None:
    assert events.keys() == expected.keys()
    for id_, own in events.items():
        *said, last = own
        *should, end = expected[id_]
        assert isinstance(last, Finished)
        assert isinstance(end, Finished)
        assert said == should
        assert (last.report.text, last.report.document) == (end.report.text, end.report.document)


def spec(make_decoder: DecoderFactory, coordinators: int) -> ClusterSpec:
    return ClusterSpec(
        make_decoder,
        replicas=3,
        coordinators=coordinators,
        cpus_per_replica=0,
        check_period_s=0.1,
        max_deaths=30,
        orphan_s=15.0,
    )


@pytest.mark.parametrize("coordinators", [1, 2])
def test_answers_survive_the_death_of_any_process(coordinators: int) -> None:
    """Guards the whole way from engine to reader; with a decoder without a model, whose steps take their time."""
    words = " ".join(f"w{number}" for number in range(70))
    requests = [ask(f"fork {words} fork end {number}", f"id{number}", max_tokens=400) for number in range(10)]
    make_decoder = MakeFakeDecoder(step_s=0.03)
    cluster = Cluster.start(spec(make_decoder, coordinators))
    killer = Killer(cluster, seed=4, period_s=1.0)
    check(asyncio.run(under_attack(cluster, requests, killer)), undisturbed(MakeFakeDecoder()("local"), requests))
    assert {"coordinator", DIRECTORY} <= set(killer.killed)
    assert set(killer.killed) & set(REPLICAS)


@pytest.mark.slow
def test_a_hundred_answers_of_a_model_survive_the_death_of_any_process(tmp_path: Path) -> None:
    """Guards the same with sampled tokens, bodies and syncs of a real engine, and of drafts and skeletons' kin."""
    decoder = test_methods.make_decoder(tmp_path)
    methods = ("pasta", "sequential", "speculative", "pasta")
    requests = [test_methods.request(number, methods[number % 4], max_tokens=200) for number in range(100)]
    cluster = Cluster.start(spec(MakeNarrowDecoder(tmp_path, step_s=0.03), coordinators=2))
    killer = Killer(cluster, seed=1, period_s=2.0)
    check(asyncio.run(under_attack(cluster, requests, killer)), undisturbed(decoder, requests))
    assert min(map(killer.killed.count, ("coordinator", DIRECTORY))) > 1
    assert len(killer.killed) > 10
