"""A node dies with its replica. In a process of its own, since it has a Ray cluster of its own: two nodes."""

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pasta_ray.engine.messages import Events, Finished
from tests.fakes import MakeFakeDecoder, ask

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_nodes_death_leaves_no_trace_and_its_replica_comes_back_elsewhere() -> None:
    done = subprocess.run(
        [sys.executable, __file__],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def main() -> None:
    import ray
    from ray.cluster_utils import Cluster as Nodes

    from pasta_ray.actors.cluster import Cluster
    from pasta_ray.actors.messages import ClusterSpec

    nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 2, "object_store_memory": 100 * 2**20})
    second = nodes.add_node(num_cpus=1, object_store_memory=100 * 2**20)
    ray.init(nodes.address, logging_level="ERROR", log_to_driver=False)
    try:
        spec = ClusterSpec(MakeFakeDecoder(step_s=0.03), replicas=2, check_period_s=0.2)
        asyncio.run(lose(Cluster.start(spec), lambda: nodes.remove_node(second, allow_graceful=False)))
    finally:
        ray.shutdown()
        nodes.shutdown()


async def lose(cluster, remove_node) -> None:  # type: ignore[no-untyped-def]
    await all_ready(cluster)
    words = " ".join(f"w{number}" for number in range(150))
    readers = [asyncio.create_task(read(cluster, f"fork {words}", f"id{number}")) for number in range(8)]
    await asyncio.sleep(1.5)
    assert not any(reader.done() for reader in readers)
    remove_node()
    expected = f"one two three {words} "
    for reader in readers:
        answer = await reader
        last = answer[-1].events[-1]
        assert isinstance(last, Finished)
        assert last.report.text == expected
    assert (await cluster.counts()).num_recoveries >= 4, await cluster.counts()
    await all_ready(cluster)


async def read(cluster, words: str, request_id: str) -> list[Events]:  # type: ignore[no-untyped-def]
    return [message async for message in cluster.decode(ask(words, request_id, max_tokens=400))]


async def all_ready(cluster) -> None:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + 90
    while any(replica.state != "ready" for replica in (await cluster.health()).replicas):
        assert time.monotonic() < deadline, await cluster.health()
        await asyncio.sleep(0.1)


if __name__ == "__main__":
    main()
