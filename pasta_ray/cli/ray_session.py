"""Ray for a command: the cluster that is there, or one of our own for as long as the command runs."""

import logging
import os

from pasta_ray.errors import ReplicaError


def connect(address: str | None = None) -> None:
    """Join ``address``, or what RAY_ADDRESS or `ray start` names, else start Ray here; ``local`` always starts it."""
    import ray

    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_worker_niceness", "0")  # else replicas yield to every other process of the machine
    try:
        ray.init(address=address, include_dashboard=None if address else False, logging_level=logging.WARNING)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ReplicaError(f"Ray at {address or 'this machine'} cannot be reached: {error}") from error
