"""One Ray cluster for the whole session: starting one costs about ten seconds."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

for name, value in {
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_SERVE_DEPLOYMENT_ACTOR_HEALTH_CHECK_PERIOD_S": "1",
    "RAY_worker_niceness": "0",  # at 15, actors of a test starve beside any other busy process
}.items():
    os.environ.setdefault(name, value)
sys.path.insert(0, str(Path(__file__).parent.parent))


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A local cluster with four nominal CPUs; actors in tests ask for none of them."""
    import ray

    from tests import fakes, narrow

    for module in (fakes, narrow):
        ray.cloudpickle.register_pickle_by_value(module)
    ray.init(
        address="local",  # not one that somebody else has started on this machine
        num_cpus=4,
        include_dashboard=False,
        object_store_memory=150 * 2**20,
        logging_level="ERROR",
        log_to_driver=False,
    )
    yield
    ray.shutdown()
