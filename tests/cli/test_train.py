"""`train sft` and `train prefer`, as far as they come without Ray."""

import sys
from pathlib import Path

import pytest

from pasta_ray import cli


def run(*args: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(["train", *args])
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.mark.parametrize(
    "args",
    [
        ("sft", "--set", "documents=[none.jsonl]"),
        ("sft", "--set", f"documents=[{__file__}]", "--set", "val_documents=[none.jsonl]"),
        ("prefer", "--set", "scored=[none.jsonl]", "--set", "init_adapter=pasta-sft"),
    ],
)
def test_a_file_that_is_not_there_is_missed_before_ray_starts(
    args: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*args, "--set", "name=x") == 2
    assert capsys.readouterr().err == "error: none.jsonl: no such file\n"


def test_packages_that_are_missing_are_named_with_their_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Guards a traceback for whoever has installed the package without what training needs."""
    monkeypatch.setitem(sys.modules, "pasta_ray.train.sft", None)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")  # which the command would set for the rest of the session
    documents = tmp_path / "documents.jsonl"
    documents.touch()
    assert run("sft", "--set", f"documents=[{documents}]", "--set", "name=x") == 2
    assert "pip install 'pasta-ray[train]'" in capsys.readouterr().err
