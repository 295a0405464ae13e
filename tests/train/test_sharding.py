"""DeepSpeed's stages and numbers of workers against one worker without sharding: the same losses."""

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.engine.conftest import save_model
from tests.engine.test_tokenizer import save_tokenizer

STEPS = 5
WAIT_S = 270
ROOT = Path(__file__).parents[2]
ONE = {
    "plain": {"config": {"zero_stage": 0}, "steps": STEPS, "save_at": 2, "save": "written-by-one"},
    "full": {"config": {"zero_stage": 0, "mode": "full", "learning_rate": 1e-3}, "steps": 3},
    "diverging": {"config": {"learning_rate": 1e30, "tag_learning_rate": 1e30}, "steps": STEPS},
    "from two": {"config": {"zero_stage": 1}, "steps": STEPS, "resume": "written-by-two"},
}
TWO = {
    "stage 0": {"config": {"zero_stage": 0}, "steps": STEPS},
    "stage 1": {"config": {"zero_stage": 1}, "steps": STEPS},
    "stage 2": {"config": {"zero_stage": 2}, "steps": STEPS},
    "stage 3": {"config": {"zero_stage": 3}, "steps": STEPS, "save_at": 3, "save": "written-by-two"},
    "offloaded optimizer": {"config": {"zero_stage": 2, "offload": ["optimizer"]}, "steps": STEPS},
    "offloaded parameters": {"config": {"zero_stage": 3, "offload": ["optimizer", "parameters"]}, "steps": STEPS},
    "full": {"config": {"zero_stage": 3, "mode": "full", "learning_rate": 1e-3}, "steps": 3},
    "bf16": {"config": {"zero_stage": 2, "precision": "bf16"}, "steps": STEPS},
    "diverging": {"config": {"learning_rate": 1e30, "tag_learning_rate": 1e30}, "steps": STEPS},
    "from one": {"config": {"zero_stage": 2}, "steps": STEPS, "resume": "written-by-one"},
    "from one, stage 3": {"config": {"zero_stage": 3}, "steps": STEPS, "resume": "written-by-one"},
}
Results = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[Results, Results]:
    """All jobs of one worker, and of two that work at the same time; each group starts once."""
    folder = tmp_path_factory.mktemp("sharding")
    save_tokenizer(save_model(folder / "model", vocab_size=300))
    documents = [
        {
            "id": f"d{n}",
            "instruction": "Say",
            "document": f'1.<promise topic="t{n}" tokens="10"/><async> {"word " * (2 + 5 * (n % 3))}</async> end'
            + "x" * n,
        }
        for n in range(12)
    ]
    for name, lines in (("documents", documents[:8]), ("held-out", documents[8:])):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    config = {
        "name": "run",
        "model": str(folder / "model"),
        "documents": [str(folder / "documents.jsonl")],
        "val_documents": [str(folder / "held-out.jsonl")],
        "batch_tokens": 120,
        "batch_packs": 3,  # so that of two workers one goes through the motions
        "lora_rank": 2,
        "learning_rate": 1e-2,
        "weight_decay": 0.1,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    with ExitStack() as stack:
        workers = []
        for rank, world, jobs in ((0, 1, ONE), (0, 2, TWO), (1, 2, TWO)):
            command = [
                sys.executable,
                "-m",
                "tests.train.workers",
                str(rank),
                str(world),
                str(folder),
                json.dumps(jobs),
            ]
            log = stack.enter_context((folder / f"log-{rank}-of-{world}").open("wb"))
            process = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
            stack.enter_context(process)
            stack.callback(process.kill)
            workers.append((process, Path(log.name)))
        for process, path in workers:
            assert process.wait(WAIT_S) == 0, path.read_text(encoding="utf-8")[-4000:]
    one, two = (json.loads((folder / f"results-of-{world}.json").read_text(encoding="utf-8")) for world in (1, 2))
    return one, two


@pytest.mark.parametrize("name", [name for name in TWO if "stage" in name or "offload" in name])
def test_two_workers_equal_one(results: tuple[Results, Results], name: str) -> None:
    """Guards the global batch: a mean of workers' means, a pack lost or doubled, or a stage that accumulates wrongly
    would give other losses from the second step on. ``from one`` begins in the third."""
    one, two = results[0]["plain"], results[1][name]
    for key in ("losses", "topics", "norms", "fill"):
        assert two[key] == pytest.approx(one[key][-len(two[key]) :], rel=1e-4), key
    assert two["validation"] == pytest.approx(one["validation"], rel=1e-4)
    assert one["losses"][-1] < 0.9 * one["losses"][0], "it learns"
    assert all(0 < fill <= 1 for fill in one["fill"])


def test_a_state_fits_any_number_of_workers(results: tuple[Results, Results]) -> None:
    """Guards elastic runs: ZeRO's own checkpoints fit one number of workers only. From two workers in stage 3 to one in
    stage 1, and from one in stage 0 to two in stage 2."""
    one, two = results
    want = one["plain"]["losses"]
    assert one["from two"]["losses"] == pytest.approx(want[3:], rel=1e-4)
    assert two["from one"]["losses"] == pytest.approx(want[2:], rel=1e-4)
    assert two["from one"]["validation"] == pytest.approx(one["plain"]["validation"], rel=1e-4)


def test_all_weights_may_train(results: tuple[Results, Results]) -> None:
    """Guards full fine-tuning, with tied weights in pieces on two workers."""
    one, two = results[0]["full"], results[1]["full"]
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-4)
    assert one["losses"][-1] < one["losses"][0]
    assert one["losses"][-1] != pytest.approx(results[0]["plain"]["losses"][2], rel=1e-3)


def test_bf16_learns_too(results: tuple[Results, Results]) -> None:
    """Guards the float32 originals beside bfloat16 weights: without them small steps round to nothing."""
    bf16, plain = results[1]["bf16"]["losses"], results[0]["plain"]["losses"]
    assert bf16 == pytest.approx(plain, rel=0.05)


def test_a_loss_that_is_not_finite_names_its_documents(results: tuple[Results, Results]) -> None:
    """Guards against training on after it has broken, and against one worker that stops while the other waits."""
    for group in results:
        error = group["diverging"]["error"]
        assert "not finite" in error
        assert "d1" in error
