"""The actors behind a cluster, by their names."""

from typing import Any

import ray

from pasta_ray.actors.cluster import Cluster
from pasta_ray.actors.coordinator_actor import coordinator_name, replicas_there
from pasta_ray.actors.sharing import NAMESPACE, actor_name


def coordinator(cluster: Cluster, index: int = 0) -> Any:
    """Its handle."""
    return cluster.contacts[index].find()


def cluster_name(cluster: Cluster) -> str:
    """What its replicas' names begin with."""
    entries = ray.util.list_named_actors(all_namespaces=True)
    first = coordinator(cluster)._actor_id
    for name in (entry["name"] for entry in entries if entry["namespace"] == NAMESPACE):
        if name.endswith(coordinator_name(0)) and ray.get_actor(name, namespace=NAMESPACE)._actor_id == first:
            return str(name).removesuffix("-0")
    raise AssertionError("the first coordinator is gone")


def replica_names(cluster: Cluster) -> list[str]:
    """The whole names of the actors that are there."""
    name = cluster_name(cluster)
    return [actor_name(name, replica) for replica in sorted(replicas_there(name))]


def part(cluster: Cluster, name: str) -> Any:
    """A replica's handle, or the directory's."""
    return ray.get_actor(actor_name(cluster_name(cluster), name), namespace=NAMESPACE)
