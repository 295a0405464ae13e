"""Every stage of training for real, with the tiny configuration, on a small random model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pasta_ray.engine.weights import load_tags
from pasta_ray.lang import TagMap, parse
from tests.engine.conftest import save_model
from tests.engine.test_tokenizer import save_tokenizer

ROOT = Path(__file__).parents[2]
ITEMS = (
    "Apples: keep them in a cool place, since warmth makes every sort go soft within a week",
    "Bread: slice what is left over and freeze it, for then it toasts well straight away",
    "Cheese: wrap hard kinds in paper rather than foil, because they have to breathe a little",
)


def write_lines(path: Path, lines: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def judge_without_embedding(path: Path) -> Path:
    """The shipped judge less the feature that needs a package of its own."""
    judge = json.loads((ROOT / "pasta_ray" / "train" / "judges" / "local.json").read_text(encoding="utf-8"))
    for table in ("weights", "spreads"):
        judge[table].pop("similarity")
    path.write_text(json.dumps(judge), encoding="utf-8")
    return path


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_from_answers_to_adapters(tmp_path: Path) -> None:
    """Guards the whole: two rounds and a variant leave adapters that the engine can load, every file between them
    parses, and a second call finds all of it done."""
    model = save_tokenizer(save_model(tmp_path / "model", vocab_size=300))
    answer = "\n".join(f"{i}. {item}" for i, item in enumerate(ITEMS, 1))
    answers = [{"id": f"a{n}", "instruction": f"Say {n}", "output": answer} for n in range(4)]
    prompts = [{"id": f"p{n}", "instruction": f"Tell {n}"} for n in range(3)]
    weights = judge_without_embedding(tmp_path / "judge.json")
    command = [sys.executable, str(ROOT / "jobs" / "pipeline.py"), "--config", str(ROOT / "jobs/configs/tiny.yaml")]
    for setting in (
        f"folder={tmp_path / 'run'}",
        f"model={model}",
        f"answers=[{write_lines(tmp_path / 'answers.jsonl', answers)}]",
        f"prompts={write_lines(tmp_path / 'prompts.jsonl', prompts)}",
        f"score={{judge: local, threads: 1, weights: {weights}}}",
        "annotate={annotator: syntax, max_tokens: 1000}",
    ):
        command += ["--set", setting]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    first = subprocess.run([*command, "--json"], env=environment, capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stderr[-3000:]
    trained = json.loads(first.stdout.splitlines()[-1])
    assert set(trained) == {"sft", "round-1", "round-2", "careful"}
    assert all(isinstance(load_tags(Path(folder)), TagMap) for folder in trained.values())
    lines = (tmp_path / "run" / "samples-2.jsonl").read_text(encoding="utf-8").splitlines()
    samples = [json.loads(line) for line in lines]
    assert len(samples) == 9
    assert all(parse(sample["document"]).text() == sample["text"] for sample in samples)
    second = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "[" not in second.stderr, "a stage was done again"
