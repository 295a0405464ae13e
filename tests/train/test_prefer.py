"""Stage 2 through Ray Train and DeepSpeed, on a small random model."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pasta_ray.errors import InputError
from pasta_ray.train.config import PreferConfig, SftConfig, load_config
from pasta_ray.train.loop import load_encoder
from pasta_ray.train.policy import load_policy
from pasta_ray.train.prefer import PAIRS_FILE, PairRow, PreferStage, pack_rows, run_prefer
from pasta_ray.train.preferences import choose_pairs, read_scored
from pasta_ray.train.reference import REFERENCE_FILE
from pasta_ray.train.run_folder import METRICS_FILE, PLAN_FILE, RunFolder
from pasta_ray.train.saving import save_adapter
from tests.engine.conftest import save_model
from tests.engine.test_tokenizer import save_tokenizer

NUM_PROMPTS = 5


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> PreferConfig:
    """A random model, an adapter with random rows and LoRA, and scored samples: the more promises, the faster."""
    folder = tmp_path_factory.mktemp("prefer")
    save_tokenizer(save_model(folder / "model", vocab_size=300))
    first = SftConfig(name="first", model=str(folder / "model"), documents=[folder], lora_rank=2, lora_alpha=4)
    torch.manual_seed(5)
    policy = load_policy(first, load_encoder(first))
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.copy_((torch.randn_like(parameter) * 0.1).bfloat16())
    save_adapter(policy, folder / "first")
    lines = [scored(f"p{prompt}", number) for prompt in range(NUM_PROMPTS) for number in range(3)]
    (folder / "scored.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return PreferConfig(
        name="second",
        model=str(folder / "model"),
        init_adapter=folder / "first",
        scored=[folder / "scored.jsonl"],
        runs=folder / "runs",
        batch_pairs=2,
        batch_tokens=400,
        threads_per_worker=1,
        checkpoint_every=1000,
        report_every=100,
    )


def scored(prompt: str, number: int) -> dict[str, Any]:
    promise = '<promise topic="t" tokens="20"/><async> word word</async>'
    return {
        "id": f"{prompt}#{number}",
        "prompt_id": prompt,
        "instruction": f"Say {prompt}",
        "document": f"x {prompt}" + number * promise,
        "finish_reason": "stop",
        "completion_tokens": 20,
        "speedup": 1.0 + number,
        "quality": 0.5,
    }


@pytest.mark.usefixtures("ray_cluster")
def test_it_comes_to_prefer_the_chosen_and_leaves_an_adapter(config: PreferConfig) -> None:
    """Guards the whole way from scored samples to an adapter: what is relative to the initial model starts at zero and
    grows, the adapter goes on from the first one, the folder tells what was chosen, a second call does no step."""
    config = config.model_copy(update={"epochs": 12, "learning_rate": 1e-2})
    adapter = run_prefer(config)
    run = adapter.parent
    metrics = [json.loads(line) for line in (run / METRICS_FILE).read_text(encoding="utf-8").splitlines()]
    assert [m["step"] for m in metrics] == list(range(1, 12 * 3 + 1))
    assert metrics[0]["delta"] == pytest.approx(0, abs=1e-4)
    target = 2 * (1 + 1 / 2)  # (n−1) H(n−1), n = 3
    assert metrics[0]["loss_contrast"] == pytest.approx(target**2, rel=1e-3)
    assert metrics[-1]["delta"] > 0.5 * target
    assert metrics[-1]["accuracy"] == 1
    for m in metrics:
        assert m["loss"] == pytest.approx(0.005 * m["loss_likelihood"] + 0.995 * m["loss_contrast"], rel=1e-5)
    before, after = (
        load_file(folder / "tag_rows.safetensors")["tag_rows"] for folder in (config.init_adapter, adapter)
    )
    assert 0 < (after - before).abs().max() < 0.5
    report = json.loads((run / PLAN_FILE).read_text(encoding="utf-8"))
    assert (report["num_pairs"], report["chosen"]["speedup"], report["rejected"]["speedup"]) == (NUM_PROMPTS, 3.0, 1.0)
    assert len((run / PAIRS_FILE).read_text(encoding="utf-8").splitlines()) == NUM_PROMPTS
    assert len((run / REFERENCE_FILE).read_text(encoding="utf-8").splitlines()) == 2 * NUM_PROMPTS
    assert run_prefer(config) == adapter
    assert len((run / METRICS_FILE).read_text(encoding="utf-8").splitlines()) == len(metrics)


def test_pairs_stay_together_in_rows(config: PreferConfig) -> None:
    """Guards against a pair whose halves are in two rows, a row that is too long, and a pair lost or doubled."""
    pairs = choose_pairs(read_scored(config.scored, need_quality=True), 1.0).pairs
    encoder = load_encoder(config)
    single = [PairRow.of(pair, encoder) for pair in pairs]
    rows = pack_rows(single, 2 * max(row.num_tokens for row in single))
    assert sorted(len(row.pairs) for row in rows) == [1, 2, 2]
    assert sorted(id_ for row in rows for id_ in row.ids) == sorted(id_ for row in single for id_ in row.ids)
    for row in rows:
        examples = row.encode(encoder)
        assert row.num_tokens == sum(map(len, examples))
        assert row.num_labels == sum(example.num_labels for example in examples)
        assert [e.id for e in examples] == list(row.ids)


def test_settings_are_checked(config: PreferConfig) -> None:
    """Guards against errors that do not name the field, and a λ that YAML reads as text."""
    given = ["name=x", f"init_adapter={config.init_adapter}", "scored=[a.jsonl]"]
    assert load_config(PreferConfig, None, [*given, "lambda=inf"]).quality_weight == float("inf")
    assert load_config(PreferConfig, None, [*given, "lambda=.inf"]).quality_weight == float("inf")
    for setting, field in (
        ("lambda=-1", "lambda"),
        ("alpha=2", "alpha"),
        ("num_samples=1", "num_samples"),
        ("language=apar", "language"),
    ):
        with pytest.raises(InputError, match=field):
            load_config(PreferConfig, None, [*given, setting])
    with pytest.raises(InputError, match="init_adapter: missing"):
        load_config(PreferConfig, None, ["name=x", "scored=[a.jsonl]"])


def test_a_run_goes_on_only_as_it_began(config: PreferConfig, tmp_path: Path) -> None:
    """Guards a run's folder against another λ, whose pairs would be others; an infinite one is written and read."""
    careful = config.model_copy(update={"runs": tmp_path, "quality_weight": float("inf")})
    RunFolder(careful).claim(careful)
    (tmp_path / config.name / "checkpoint_1").mkdir()
    RunFolder(careful).claim(careful)
    other = careful.model_copy(update={"quality_weight": 8.0})
    with pytest.raises(InputError, match=r"quality_weight: run second began with inf, this is 8\.0"):
        RunFolder(other).claim(other)


def test_pairs_are_held_out_and_too_few_are_an_error(config: PreferConfig) -> None:
    """Guards against learning from what is held out, and against a run without a pair to learn from."""
    encoder = load_encoder(config)
    plan = PreferStage(config.model_copy(update={"val_pairs": 2, "epochs": 2})).plan(encoder)
    held_out = {pair.chosen.prompt_id for row in plan.validation for pair in row.pairs}
    learnt = [pair.chosen.prompt_id for step in plan.steps for row in step for pair in row.pairs]
    assert len(held_out) == 2
    assert not held_out & set(learnt)
    assert sorted(learnt) == sorted([*set(learnt), *set(learnt)])
    assert len(set(learnt)) == NUM_PROMPTS - 2
    with pytest.raises(InputError, match="scored: 5 pairs in 5 prompts, 5 of them to be held out"):
        PreferStage(config.model_copy(update={"val_pairs": NUM_PROMPTS})).plan(encoder)
    with pytest.raises(InputError, match="longer than 64 tokens"):
        PreferStage(config.model_copy(update={"batch_tokens": 64})).plan(encoder)


def run_workers(world: int, folder: Path, jobs: dict[str, Any]) -> dict[str, list[dict[str, float]]]:
    """Each job's metrics, of a group of ``world`` processes without Ray."""
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root), "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    module = [sys.executable, "-m", "tests.train.prefer_workers"]
    arguments = [str(world), str(folder), json.dumps(jobs)]
    logs = [folder / f"log-{rank}-of-{world}" for rank in range(world)]
    workers = []
    for rank, log in enumerate(logs):
        command = [*module, str(rank), *arguments]
        with log.open("wb") as file:
            workers.append(subprocess.Popen(command, env=environment, cwd=root, stdout=file, stderr=file))
    try:
        for worker, log in zip(workers, logs, strict=True):
            assert worker.wait(280) == 0, log.read_text(encoding="utf-8")[-4000:]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    results: dict[str, list[dict[str, float]]] = json.loads((folder / f"results-of-{world}.json").read_text())
    return results


def test_two_workers_equal_one_and_go_on_from_it(config: PreferConfig, tmp_path: Path) -> None:
    """Guards the global batch and the shared reference: pairs lost or doubled, values that one worker lacks, a mean of
    means. An update's two rows go to one worker or to two; the last update has one row, and one of the two is idle."""
    changes = {"learning_rate": 2e-3, "epochs": 2, "val_pairs": 2, "batch_tokens": 200}
    told = config.model_copy(update=changes).model_dump(mode="json", exclude_unset=True)
    one = run_workers(1, tmp_path, {"plain": {"config": told | {"zero_stage": 0}, "save_at": 2}})["plain"]
    two = run_workers(
        2,
        tmp_path,
        {
            "stage 2": {"config": told | {"zero_stage": 2}},
            "stage 3": {"config": told | {"zero_stage": 3}},
            "resumed": {"config": told | {"zero_stage": 2}, "resume": True},
        },
    )
    assert len(one) == 2 * 2 + 1, "three pairs, two an update, two epochs; what is held out"
    for name, steps in (("stage 2", one), ("stage 3", one), ("resumed", one[2:])):
        assert len(two[name]) == len(steps)
        for got, want in zip(two[name], steps, strict=True):
            assert got == pytest.approx(want, rel=1e-4, abs=2e-4), name
    assert one[-2]["loss"] != pytest.approx(one[0]["loss"], rel=1e-2), "something is learnt"
