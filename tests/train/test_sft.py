"""Stage 1 through Ray Train and DeepSpeed, on a small random model: runs that end, die, go on, and are refused."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import ray
import yaml
from safetensors.torch import load_file
from torch import Tensor
from typer.testing import CliRunner

from pasta_ray.cli.train import train_app
from pasta_ray.errors import InputError
from pasta_ray.train.config import SftConfig
from pasta_ray.train.data import Encoder
from pasta_ray.train.loop import CURVES_FILE, run_stage
from pasta_ray.train.run_folder import METRICS_FILE, PLAN_FILE, RunFolder
from pasta_ray.train.sft import Pack, SftStage, run_sft
from pasta_ray.train.stage import Metrics, Model
from pasta_ray.train.update import TrainingError
from tests.engine.conftest import save_model
from tests.engine.test_tokenizer import save_tokenizer

NUM_STEPS = 9
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> SftConfig:
    folder = tmp_path_factory.mktemp("sft")
    save_tokenizer(save_model(folder / "model", vocab_size=300))
    documents = [
        {
            "id": f"d{n}",
            "instruction": "Say",
            "document": f'1.<promise topic="t{n}" tokens="10"/><async> {"word " * (3 * n)}</async><sync/> end',
        }
        for n in range(2 * NUM_STEPS + 3)
    ]
    for name, lines in (("documents", documents[:-2]), ("held-out", documents[:2])):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.2"  # else each checkpoint waits for two seconds
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    return SftConfig(
        name="undisturbed",
        model=str(folder / "model"),
        documents=[folder / "documents.jsonl"],
        val_documents=[folder / "held-out.jsonl"],
        runs=folder / "runs",
        batch_tokens=220,
        batch_packs=3,
        epochs=3,
        lora_rank=2,
        learning_rate=1e-2,
        zero_stage=2,
        num_workers=2,
        threads_per_worker=1,
        checkpoint_every=4,
        report_every=100,
    )


def losses(run: Path) -> list[float]:
    """In the order of the steps, of which none may be missing or doubled."""
    metrics = [json.loads(line) for line in (run / METRICS_FILE).read_text(encoding="utf-8").splitlines()]
    assert [m["step"] for m in metrics] == list(range(1, len(metrics) + 1))
    return [m["loss"] for m in metrics]


@pytest.fixture(scope="module")
def undisturbed(config: SftConfig, ray_cluster: None) -> Path:
    """The folder of a run that nothing happened to."""
    del ray_cluster
    return run_sft(config).parent


def test_it_learns_and_leaves_an_adapter(config: SftConfig, undisturbed: Path) -> None:
    """Guards the whole way from documents to an adapter: steps, metrics by kind, trained rows, what was left out and
    the curves; and a second call that finds the run finished."""
    metrics = [json.loads(line) for line in (undisturbed / METRICS_FILE).read_text(encoding="utf-8").splitlines()]
    plan = json.loads((undisturbed / PLAN_FILE).read_text(encoding="utf-8"))
    assert len(metrics) == plan["num_steps"] >= NUM_STEPS
    assert plan["num_documents"] + len(plan["too_long"]) == 2 * NUM_STEPS + 1
    assert "d18" in plan["too_long"]
    assert {f"loss_{kind}" for kind in ("text", "tag", "topic", "length")} <= set(metrics[0])
    assert {"lr", "tokens_per_s", "fill", "grad_norm"} <= set(metrics[0])
    assert metrics[-1]["loss"] < metrics[0]["loss"]
    validated = [m["step"] for m in metrics if "val_loss_tag" in m]
    assert validated == sorted({*range(4, len(metrics) + 1, 4), len(metrics)})
    assert metrics[-1]["val_loss"] < metrics[3]["val_loss"]
    assert (undisturbed / CURVES_FILE).read_bytes().startswith(b"\x89PNG")
    rows = load_file(undisturbed / "adapter" / "tag_rows.safetensors")["tag_rows"]
    assert rows.shape == (6, 32)
    tensors = load_file(undisturbed / "adapter" / "adapter_model.safetensors")
    assert any(tensor.abs().max() > 0 for name, tensor in tensors.items() if "lora_B" in name)
    assert run_sft(config) == undisturbed / "adapter"
    assert losses(undisturbed) == [m["loss"] for m in metrics], "a finished run does no step again"


def test_the_command_line_says_what_was_left_out(config: SftConfig, undisturbed: Path, tmp_path: Path) -> None:
    """Guards the way from a YAML file to the run, and documents that disappear without a word."""
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json") | {"epochs": 5}), encoding="utf-8")
    arguments = ["sft", "--config", str(path), "--set", "epochs=3"]
    result = CliRunner().invoke(train_app, arguments)
    assert result.exit_code == 0, result.exception
    assert result.stdout.startswith(f"adapter: {undisturbed / 'adapter'}\n6 documents were left out")
    assert "d13 (230)" in result.stdout
    summary = json.loads(CliRunner().invoke(train_app, [*arguments, "--json"]).stdout)
    assert summary["adapter"] == str(undisturbed / "adapter")
    assert summary["too_long"]["d18"] == 305
    error = CliRunner().invoke(train_app, ["sft", "--config", str(path)]).exception
    assert str(error).startswith("epochs: run undisturbed began with 3, this is 5")


@dataclass(frozen=True)
class Dying(SftStage):
    """Stage 1 whose worker is killed when it meets a document for the second time, once."""

    marks: Path

    def loss(self, model: Model, micro_batch: Pack, encoder: Encoder) -> tuple[Tensor, Metrics]:
        first, died = self.marks / "first", self.marks / "died"
        if "d3" in micro_batch.ids and not died.exists():
            if first.exists():
                died.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            first.touch()
        return super().loss(model, micro_batch, encoder)


def test_a_killed_worker_is_replaced(config: SftConfig, undisturbed: Path, tmp_path: Path) -> None:
    """Guards resuming by itself: one of two workers is killed in the middle of a step, and the losses are the same."""
    result = run_stage(Dying(config.model_copy(update={"name": "bereaved"}), tmp_path))
    assert (tmp_path / "died").exists()
    assert losses(result.parent) == pytest.approx(losses(undisturbed), rel=1e-4)


COMMAND = """
import sys, ray
from pasta_ray.train.config import SftConfig
from pasta_ray.train.sft import run_sft
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 * 2**20)
run_sft(SftConfig.model_validate_json(sys.argv[1]))
"""


def test_killed_and_started_again_it_ends_as_if_undisturbed(config: SftConfig, undisturbed: Path) -> None:
    """Guards resuming after the death of everything, here with another number of workers and another ZeRO stage."""
    killed = config.model_copy(update={"name": "killed", "num_workers": 1, "zero_stage": 1})
    command = [sys.executable, "-c", COMMAND, killed.model_dump_json()]
    run = RunFolder(killed).path
    with subprocess.Popen(
        command, env=os.environ | {"PYTHONPATH": str(ROOT)}, start_new_session=True, stderr=subprocess.DEVNULL
    ) as process:
        deadline = time.monotonic() + 200
        while not any(run.glob("checkpoint_*/*.pt")):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
    assert not (run / "adapter").exists(), "it was killed too late to test anything"
    assert run_sft(killed.model_copy(update={"num_workers": 2, "zero_stage": 2})).parent == run
    assert losses(run) == pytest.approx(losses(undisturbed), rel=1e-4)


def test_a_run_is_not_continued_as_another(config: SftConfig, undisturbed: Path, tmp_path: Path) -> None:
    """Guards against a run whose first half was trained otherwise than its second; what may change may."""
    with pytest.raises(InputError, match=r"learning_rate: run undisturbed began with 0.01, this is 0.02"):
        run_sft(config.model_copy(update={"learning_rate": 0.02}))
    other = tmp_path / "other.jsonl"
    text = config.documents[0].read_text(encoding="utf-8")
    other.write_text(text.replace("word", "world", 1), encoding="utf-8")
    with pytest.raises(InputError, match="documents: run undisturbed began with other files"):
        run_sft(config.model_copy(update={"documents": [other]}))
    other.write_text(text, encoding="utf-8")
    same = config.model_copy(update={"documents": [other], "num_workers": 1, "zero_stage": 3, "checkpoint_every": 1})
    assert run_sft(same) == undisturbed / "adapter"
    with pytest.raises(InputError, match=r"documents: .*nowhere.jsonl"):
        run_sft(config.model_copy(update={"documents": [tmp_path / "nowhere.jsonl"]}))


@pytest.mark.usefixtures("ray_cluster")
def test_a_loss_that_is_not_finite_ends_the_run(config: SftConfig) -> None:
    """Guards against restarts of what no restart mends, and against not saying which documents it was."""
    diverging = config.model_copy(update={"name": "diverging", "learning_rate": 1e30, "tag_learning_rate": 1e30})
    with pytest.raises(TrainingError, match=r"run diverging: step 2: .*not finite.*d\d"):
        run_sft(diverging)


def test_documents_that_do_not_fit_are_refused_before_anything_starts(config: SftConfig, tmp_path: Path) -> None:
    """Guards against a run over nothing."""
    long = tmp_path / "long.jsonl"
    text = config.documents[0].read_text(encoding="utf-8")
    long.write_text(text.replace("Say", "Say " * 60), encoding="utf-8")
    with pytest.raises(InputError, match=r"documents: of 19 documents none has at most 64 tokens"):
        run_sft(config.model_copy(update={"name": "nothing", "documents": [long], "batch_tokens": 64}))
