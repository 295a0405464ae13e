"""The actors with real processes between them."""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack, aclosing, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray

from pasta_ray.actors.cluster import Cluster
from pasta_ray.actors.messages import ClusterSpec, ReplicaDiedError
from pasta_ray.actors.sharing import NAMESPACE, actor_name
from pasta_ray.engine.messages import Delta, Event, Events, Finished, Request
from pasta_ray.errors import InputError, ReplicaError
from tests.actors.processes import cluster_name, coordinator, replica_names
from tests.fakes import MakeFakeDecoder, ask

pytestmark = pytest.mark.usefixtures("ray_cluster")


def spec(**options: Any) -> ClusterSpec:
    make = options.pop("make_decoder", MakeFakeDecoder())
    return ClusterSpec(make, cpus_per_replica=0, check_period_s=0.1, **{"orphan_s": 10.0} | options)


@pytest.fixture(scope="module")
def cluster() -> Cluster:
    return Cluster.start(spec(replicas=2))


@pytest.fixture(scope="module")
def mortal() -> Cluster:
    """For tests in which processes die."""
    return Cluster.start(spec(replicas=2, max_deaths=1, make_decoder=MakeFakeDecoder(step_s=0.02)))


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


def deltas(answer: list[Events]) -> list[Event]:
    return [event for message in answer for event in message.events if isinstance(event, Delta)]


async def pid(actor: Any) -> int:
    number: int = await actor.__ray_call__.remote(lambda _: os.getpid())
    return number


async def pids(cluster: Cluster) -> list[int]:
    """The replicas' processes."""
    return [await pid(ray.get_actor(name, namespace=NAMESPACE)) for name in replica_names(cluster)]


def ends(name: str) -> bool:
    for _ in range(200):
        try:
            ray.get_actor(name, namespace=NAMESPACE)
        except ValueError:
            return True
        time.sleep(0.05)
    return False


async def idle(cluster: Cluster) -> None:
    stats: object = None
    for _ in range(500):
        with suppress(ReplicaDiedError):  # one of them is being started again
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


def test_a_replicas_death_leaves_no_trace_in_the_answer(mortal: Cluster, tmp_path: Path) -> None:
    async def scenario() -> None:
        words = f"{tmp_path / 'died'}\nfork some die-once words and no more"
        answer = await messages(mortal, words)
        assert (tmp_path / "died").exists()
        assert deltas(answer) == deltas(await messages(mortal, words))
        assert (await mortal.counts()).num_recoveries == 1
        await idle(mortal)

    run(mortal, scenario)


def test_a_request_that_kills_its_replica_each_time_is_given_up(mortal: Cluster) -> None:
    async def scenario() -> str:
        with pytest.raises(ReplicaError, match="what answered request a died 2 times in a row"):
            await messages(mortal, "die")
        return text(await messages(mortal, "hello again"))

    assert run(mortal, scenario) == "hello again "


def test_a_coordinators_death_leaves_no_trace_and_its_replicas_go_on(mortal: Cluster) -> None:
    """Guards against answers that are lost with the coordinator, and against replicas that must load again for it."""

    async def scenario() -> None:
        words = " ".join(f"w{index}" for index in range(60))
        undisturbed = await messages(mortal, f"fork {words}", "first", max_tokens=100)
        before = await pids(mortal)
        readers = [
            asyncio.create_task(messages(mortal, f"fork {words}", f"id{index}", max_tokens=100)) for index in range(6)
        ]
        await asyncio.sleep(0.3)
        assert not any(reader.done() for reader in readers)
        os.kill(await pid(coordinator(mortal)), signal.SIGKILL)
        for reader in readers:
            assert deltas(await reader) == deltas(undisturbed)
        assert (await mortal.counts()).num_recoveries == 6
        assert await pids(mortal) == before
        await idle(mortal)

    run(mortal, scenario)


def test_a_coordinator_goes_on_with_what_another_one_was_reading() -> None:
    """Guards answers that wait for a dead coordinator to come back where there is another, and one that is back but
    gets nothing any more."""
    words = " ".join(f"w{index}" for index in range(90))
    cluster = Cluster.start(spec(replicas=2, coordinators=2, make_decoder=MakeFakeDecoder(step_s=0.02)))

    async def ready() -> None:
        async with asyncio.timeout(30):
            while not all(contact.ready for contact in cluster.contacts):
                await messages(cluster, "hello")

    async def scenario() -> None:
        await ready()
        undisturbed = await messages(cluster, f"fork {words}", "first", max_tokens=100)
        before = await cluster.counts()
        read = [asyncio.create_task(messages(cluster, f"fork {words}", f"id{n}", max_tokens=100)) for n in range(6)]
        await asyncio.sleep(0.3)
        assert [contact.num_open for contact in cluster.contacts] == [3, 3]
        os.kill(await pid(coordinator(cluster)), signal.SIGKILL)
        for reader in read:
            assert deltas(await reader) == deltas(undisturbed)
        await ready()
        told = [await contact.ask("counts") for contact in cluster.contacts]
        assert told[1].num_recoveries == 3
        assert (await cluster.counts()).num_requests == sum(counts.num_requests for counts in told)
        assert before.num_ready == told[0].num_ready == told[1].num_ready == 2
        await idle(cluster)

    run(cluster, scenario)


@ray.remote(num_cpus=0)
class Reader:
    """A process that reads answers, as an HTTP worker does."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    async def read(self, request: Request) -> None:
        async for _ in self.cluster.decode(request):
            pass


def test_a_readers_death_frees_its_slots_on_every_replica(cluster: Cluster) -> None:
    async def scenario() -> None:
        reader = Reader.remote(cluster)
        for index in range(4):
            reader.read.remote(ask("fork endless", f"id{index}", max_tokens=10**6))
        while sum(stats.num_requests for stats in await cluster.stats()) < 4:
            await asyncio.sleep(0.02)
        os.kill(await pid(reader), signal.SIGKILL)
        started = time.monotonic()
        await idle(cluster)
        assert time.monotonic() - started < 2.0
        assert (await cluster.counts()).num_ongoing == 0

    run(cluster, scenario)


def test_replicas_end_with_their_cluster_and_not_before() -> None:
    """Guards against processes that outlive what they were started for: at once where it ends as it should, after a
    while where its process was killed for good. One that nobody asks for anything does not end."""
    clusters = [Cluster.start(spec(orphan_s=60.0)), Cluster.start(spec(orphan_s=1.5))]
    for cluster in clusters:
        run(cluster, partial(pids, cluster))
    names = [name for cluster in clusters for name in replica_names(cluster)]
    assert len(names) == 2
    time.sleep(2.5)
    assert [name for cluster in clusters for name in replica_names(cluster)] == names
    ray.kill(coordinator(clusters[1]))
    del clusters, cluster
    for name in names:
        assert ends(name)


def test_a_poisoned_replica_is_restarted(mortal: Cluster) -> None:
    async def scenario() -> str:
        with pytest.raises(Exception, match="out of luck"):
            await messages(mortal, "poison")
        while all(replica.state == "ready" for replica in (await mortal.health()).replicas):
            await asyncio.sleep(0.02)
        return text(await messages(mortal, "hello again"))

    assert run(mortal, scenario) == "hello again "


def test_replicas_that_cannot_start_say_why() -> None:
    cluster = Cluster.start(spec(make_decoder=MakeFakeDecoder(failing=("r0",))))

    async def scenario() -> None:
        with pytest.raises(ReplicaError, match="no such weights"):
            await cluster.wait_ready(60)

    asyncio.run(scenario())


def test_replicas_come_and_go_with_load() -> None:
    """Guards scaling with processes: one more under load; without load it goes, and what it has not answered by then
    goes on with the same words."""
    words = " ".join(f"w{number}" for number in range(400))
    two_pay = ((1, 0.01), (2, 0.01), (4, 0.02))
    make = MakeFakeDecoder(step_s=0.02, points=two_pay)
    cluster = Cluster.start(
        spec(make_decoder=make, max_replicas=2, scale_up_s=0.3, scale_down_s=1.0, drain_s=0.5, max_ongoing=8)
    )

    async def states() -> dict[str, str]:
        return {replica.name: replica.state for replica in (await cluster.health()).replicas}

    async def until(expected: dict[str, str]) -> None:
        async with asyncio.timeout(60):
            while await states() != expected:
                await asyncio.sleep(0.05)

    async def scenario() -> None:
        added = actor_name(cluster_name(cluster), "r1")
        async with AsyncExitStack() as stack:
            for number in range(3):
                stream = await stack.enter_async_context(aclosing(cluster.decode(ask("endless", f"busy{number}"))))
                await anext(stream)
            await until({"r0": "ready", "r1": "ready"})
            moving = asyncio.create_task(messages(cluster, words, "moving", max_tokens=1000))
            await asyncio.sleep(0.3)
            at = {replica.name: replica.num_branches for replica in (await cluster.health()).replicas}
            assert at == {"r0": 3, "r1": 1}
        await until({"r0": "ready"})
        answer = await moving
        assert text(answer) == words + " "
        assert "".join(delta.text for delta in deltas(answer)) == words + " "  # type: ignore[attr-defined]
        assert answer[-1].events[-1].report.branches[0].replica == "r0"  # type: ignore[union-attr]
        counts = await cluster.counts()
        assert (counts.num_added, counts.num_removed, counts.num_recoveries) == (1, 1, 1)
        assert ends(added)
        await idle(cluster)

    run(cluster, scenario)


def test_a_new_coordinator_finds_the_replicas_that_were_added() -> None:
    make = MakeFakeDecoder(step_s=0.02, points=((1, 0.01), (2, 0.02)))
    cluster = Cluster.start(spec(make_decoder=make, max_replicas=2, scale_up_s=0.2, scale_down_s=600.0))

    async def both() -> list[int]:
        """The processes of two replicas, once there are two that are ready."""
        async with asyncio.timeout(60):
            while True:
                with suppress(ReplicaError):  # no coordinator for a moment
                    if [replica.state for replica in (await cluster.health()).replicas] == ["ready"] * 2:
                        return await pids(cluster)
                await asyncio.sleep(0.05)

    async def scenario() -> None:
        async with aclosing(cluster.decode(ask("endless"))) as stream:
            await anext(stream)
            before = await both()
            os.kill(await pid(coordinator(cluster)), signal.SIGKILL)
            await anext(stream)
            assert await both() == before

    run(cluster, scenario)
