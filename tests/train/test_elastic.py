"""A run whose cluster grows under it."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pasta_ray.train.config import SftConfig
from pasta_ray.train.run_folder import RunFolder
from tests.engine.conftest import save_model
from tests.engine.test_tokenizer import save_tokenizer

ROOT = Path(__file__).parents[2]
COMMAND = """
import sys, ray
from pasta_ray.train.config import SftConfig
from pasta_ray.train.sft import run_sft
ray.init(address=sys.argv[1], log_to_driver=False)
for config in sys.argv[2:]:
    run_sft(SftConfig.model_validate_json(config))
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_grows_with_its_cluster(tmp_path: Path) -> None:
    """Guards a range of workers: a node that joins in the middle of a run is used, and the losses stay those of a run
    with one worker."""
    from ray.cluster_utils import Cluster

    elastic = make_config(tmp_path, name="elastic", num_workers=(1, 2))
    fixed = elastic.model_copy(update={"name": "fixed", "num_workers": 1})
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2"}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        command = [sys.executable, "-c", COMMAND, cluster.address, *(c.model_dump_json() for c in (elastic, fixed))]
        with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
            deadline = time.monotonic() + 300
            while len(read(elastic)) < 6:
                assert time.monotonic() < deadline
                assert process.poll() is None
                time.sleep(0.2)
            cluster.add_node(num_cpus=1)
            assert process.wait(500) == 0
    finally:
        cluster.shutdown()
    grown, alone = read(elastic), read(fixed)
    assert [m["num_workers"] for m in grown] == sorted(m["num_workers"] for m in grown)
    assert {m["num_workers"] for m in grown} == {1, 2}
    assert [m["loss"] for m in grown] == pytest.approx([m["loss"] for m in alone], rel=1e-4)


def make_config(folder: Path, **settings: Any) -> SftConfig:
    save_tokenizer(save_model(folder / "model", vocab_size=300))
    documents = [
        {
            "id": str(n),
            "instruction": "Say",
            "document": f'1.<promise topic="t{n}" tokens="10"/><async> {"word " * (3 + n % 3)}</async> end',
        }
        for n in range(8)
    ]
    (folder / "documents.jsonl").write_text("\n".join(map(json.dumps, documents)), encoding="utf-8")
    return SftConfig(
        model=str(folder / "model"),
        documents=[folder / "documents.jsonl"],
        runs=folder / "runs",
        batch_tokens=120,
        batch_packs=2,
        epochs=30,
        lora_rank=2,
        zero_stage=2,
        threads_per_worker=1,
        checkpoint_every=2,
        resize_every_s=3,
        **settings,
    )


def read(config: SftConfig) -> list[dict[str, float]]:
    return RunFolder(config).read_log()
