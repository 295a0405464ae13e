"""Stage 1 through Ray Train and DeepSpeed, on a small random model."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from pasta_ray.train.config import SftConfig
from pasta_ray.train.sft import METRICS_FILE, run_sft
from tests.engine.conftest import save_model
from tests.engine.test_tokenizer import save_tokenizer

NUM_STEPS = 8


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> SftConfig:
    folder = tmp_path_factory.mktemp("sft")
    save_tokenizer(save_model(folder / "model", vocab_size=300))
    documents = [
        {
            "id": str(n),
            "instruction": "Say",
            "document": f'1.<promise topic="t{n}" tokens="10"/><async> {"word " * 20}</async><sync/> end',
        }
        for n in range(NUM_STEPS)
    ]
    (folder / "documents.jsonl").write_text("\n".join(map(json.dumps, documents)), encoding="utf-8")
    return SftConfig(
        name="run",
        model=str(folder / "model"),
        documents=[folder / "documents.jsonl"],
        runs=folder / "runs",
        batch_tokens=200,
        lora_rank=2,
        threads_per_worker=1,
        checkpoint_every=2,
        report_every=100,
    )


def losses(run: Path) -> dict[int, float]:
    lines = (run / METRICS_FILE).read_text(encoding="utf-8").splitlines()
    return {metrics["step"]: metrics["loss"] for metrics in map(json.loads, lines)}


@pytest.mark.usefixtures("ray_cluster")
def test_it_learns_and_leaves_an_adapter(config: SftConfig) -> None:
    """Guards the whole way from documents to an adapter: steps, metrics by kind, trained rows, and a second call that
    finds the run finished."""
    config = config.model_copy(update={"learning_rate": 1e-2, "epochs": 2})
    adapter = run_sft(config)
    metrics = [json.loads(line) for line in (adapter.parent / METRICS_FILE).read_text(encoding="utf-8").splitlines()]
    assert [m["step"] for m in metrics] == list(range(1, 2 * NUM_STEPS + 1))
    assert {"loss_text", "loss_tag", "loss_topic", "loss_length", "lr", "tokens_per_s"} <= set(metrics[0])
    assert metrics[-1]["loss"] < metrics[0]["loss"]
    rows = load_file(adapter / "tag_rows.safetensors")["tag_rows"]
    assert rows.shape == (6, 32)
    assert any(
        tensor.abs().max() > 0
        for name, tensor in load_file(adapter / "adapter_model.safetensors").items()
        if "lora_B" in name
    )
    assert run_sft(config) == adapter
    assert len(losses(adapter.parent)) == 2 * NUM_STEPS, "a finished run does no step again"


COMMAND = """
import sys, ray
from pasta_ray.train.config import SftConfig
from pasta_ray.train.sft import run_sft
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 * 2**20)
run_sft(SftConfig.model_validate_json(sys.argv[1]))
"""


def start(config: SftConfig) -> subprocess.Popen[bytes]:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", COMMAND, config.model_dump_json()]
    return subprocess.Popen(command, env=environment, start_new_session=True, stderr=subprocess.DEVNULL)


@pytest.mark.slow
def test_killed_and_started_again_it_ends_as_if_undisturbed(config: SftConfig) -> None:
    """Guards resuming after the death of everything: same losses, step for step."""
    undisturbed = config.model_copy(update={"name": "undisturbed", "epochs": 10})
    killed = config.model_copy(update={"name": "killed", "epochs": 10})
    assert start(undisturbed).wait(600) == 0
    process = start(killed)
    deadline = time.monotonic() + 300
    while len(losses(killed.runs / "killed") if (killed.runs / "killed" / METRICS_FILE).exists() else ()) < 21:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert start(killed).wait(600) == 0
    want, got = losses(undisturbed.runs / "undisturbed"), losses(killed.runs / "killed")
    assert got == pytest.approx(want, rel=1e-5)
