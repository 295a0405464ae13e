"""The pipeline's order, files and skipping, over commands that only write down that they were called."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pasta_ray.cli import main
from pasta_ray.train.pipeline import PipelineConfig

CONFIGS = Path(__file__).parents[2] / "jobs" / "configs"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    values = {
        "folder": str(tmp_path / "run"),
        "answers": ["a.jsonl", "b.jsonl"],
        "prompts": "p.jsonl",
        "variants": {"careful": float("inf")},
        "annotate": {"annotator": "syntax", "level": ["list", "section"], "only_promising": True},
        "score": {"judge": "local"},
    }
    path = tmp_path / "pipeline.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    called: list[list[str]] = []

    def call(args: list[str]) -> int:
        called.append(args[3:])
        return 3 if "fails" in args else 0

    monkeypatch.setattr(subprocess, "call", call)
    return called


def run(*args: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        main(["train", "pipeline", *args])
    assert isinstance(exit_.value.code, int)
    return exit_.value.code


def test_each_stage_reads_what_the_last_one_wrote(
    config: Path, calls: list[list[str]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Guards the chain: documents, stage 1, and rounds that sample from the last round's adapter; and that a second
    run does nothing again."""
    assert run("--config", str(config), "--json") == 0
    folder = tmp_path / "run"
    assert [call[:2] for call in calls] == [["annotate", "a.jsonl"], ["train", "sft"]] + 2 * [
        ["train", "sample"],
        ["train", "score"],
        ["train", "prefer"],
    ] + [["train", "prefer"]]
    annotate, sft, first, scored, round_1, second, *_, careful = map(" ".join, calls)
    assert annotate.startswith(f"annotate a.jsonl b.jsonl --out {folder}/documents.jsonl --model ")
    assert annotate.endswith("--annotator syntax --level list --level section --only-promising")
    assert f"--set documents=[{folder}/documents.jsonl]" in sft
    assert f"--adapter {folder}/runs/sft/adapter" in first
    assert scored == f"train score {folder}/samples-1.jsonl --out {folder}/scored-1.jsonl --judge local"
    assert f"--set init_adapter={folder}/runs/sft/adapter" in round_1
    assert f"--adapter {folder}/runs/round-1/adapter" in second
    assert f"--set init_adapter={folder}/runs/round-1/adapter" in careful
    assert "--set lambda=.inf" in careful
    trained = json.loads(capsys.readouterr().out)
    assert trained["careful"] == f"{folder}/runs/careful/adapter"
    assert set(trained) == {"sft", "round-1", "round-2", "careful"}
    calls.clear()
    assert run("--config", str(config)) == 0
    assert not calls


def test_it_stops_at_a_failure_and_goes_on(
    config: Path, calls: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards against stages that run on what a failed one has left, and against doing again what was done."""
    assert run("--config", str(config), "--set", "prompts=fails") == 1
    assert "sample-1 failed with exit code 3" in capsys.readouterr().err
    assert len(calls) == 3
    calls.clear()
    assert run("--config", str(config)) == 0
    assert calls[0][:2] == ["train", "sample"]


def test_other_settings_are_not_mixed_in(
    config: Path, calls: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards against a result that says it comes of one recipe and comes of two."""
    assert run("--config", str(config)) == 0
    calls.clear()
    assert run("--config", str(config), "--set", "sft={epochs: 3}") == 2
    assert "stage sft: was done with other settings (epochs=3)" in capsys.readouterr().err
    assert not calls


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("sft={epochs: 0}", "epochs"),
        ("sft={epoch: 1}", "epoch"),
        ("annotate={annotator: magic}", "stage annotate: .*annotator.*magic"),
        ("sample={numb: 3}", "stage sample-1: .*--numb"),
        ("rounds=0", "variants: need at least one round"),
        ("variants={round-1: 2}", "variants: 'round-1' is taken"),
        ("variants={slow: -1}", "λ of slow is -1"),
    ],
)
def test_mistakes_are_named_before_anything_runs(
    config: Path, calls: list[list[str]], capsys: pytest.CaptureFixture[str], setting: str, message: str
) -> None:
    """Guards hours of training before the last stage's typing mistake is found."""
    assert run("--config", str(config), "--set", setting) == 2
    assert not calls
    assert re.search(message, capsys.readouterr().err.replace("\n", " "))


@pytest.mark.parametrize("name", ["pipeline", "paper-7b", "tiny"])
def test_shipped_configurations_are_valid(name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Guards the files that people start from: every field and option of every stage exists."""
    assert run("--config", str(CONFIGS / f"{name}.yaml"), "--set", f"folder={tmp_path}", "--dry-run") == 0
    shown = capsys.readouterr().out
    assert "sample-2" in shown
    assert "done  " not in shown


def test_a_model_that_is_trained_whole_takes_the_place_of_adapters() -> None:
    """Guards full fine-tuning: each round starts from the last one's model."""
    config = PipelineConfig(folder=Path("f"), answers=[Path("a")], prompts=Path("p"), sft={"mode": "full"})
    stages = {name: options for name, _, options in config.stages()}
    assert stages["sample-2"]["model"] == "f/runs/round-1/model"
    assert stages["sample-2"]["adapter"] == "none"
    assert "mode=full" in stages["round-1"]["set"]
    assert "model=f/runs/sft/model" in stages["round-1"]["set"]
    assert config.trained()["round-2"] == Path("f/runs/round-2/model")


@pytest.mark.parametrize("job", ["annotate", "sft", "sample", "score", "prefer", "pipeline"])
def test_jobs_are_the_commands(job: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Guards the entry points of `ray job submit`."""
    path = CONFIGS.parent / f"{job}.py"
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    with pytest.raises(SystemExit) as exit_:
        exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), {"__name__": "__main__"})
    assert exit_.value.code == 0
    assert f" {job} [OPTIONS]" in capsys.readouterr().out
