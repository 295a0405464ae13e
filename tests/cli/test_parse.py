import json
import subprocess
import sys
from pathlib import Path

import pytest

from pasta_ray.cli import main

TEXT = 'a <promise topic="x y" tokens="10"/><async>b</async><sync/> c'


def run(*args: str) -> int:
    """The exit status of a command."""
    try:
        main(args)
    except SystemExit as exit_:
        return int(exit_.code or 0)
    return 0


def test_a_file_becomes_a_tree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.pasta"
    file.write_text(TEXT)
    assert run("parse", str(file)) == 0
    nodes = json.loads(capsys.readouterr().out)["nodes"]
    assert [node["type"] for node in nodes] == ["text", "promise", "sync", "text"]


def test_an_error_names_line_column_and_what_was_expected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.pasta"
    file.write_text('one\ntwo <promise topic="x" tokens="10"/>three')
    assert run("parse", str(file)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: line 2, column 37")
    assert "expected <async>" in captured.err


def test_exact_lengths_are_read_where_they_are_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Guards documents of Pred-1X models, and the default's rule."""
    file = tmp_path / "a.pasta"
    file.write_text(TEXT.replace("10", "17"))
    assert run("parse", str(file)) == 2
    assert "expected a multiple of 10" in capsys.readouterr().err
    assert run("parse", str(file), "--positions", "pred-1x") == 0
    assert json.loads(capsys.readouterr().out)["nodes"][1]["tokens"] == 17
    assert run("parse", str(file), "--positions", "guess") == 2
    assert "allowed: pred-10x, pred-1x, fixed" in capsys.readouterr().err


@pytest.mark.parametrize(("content", "message"), [(None, "No such file"), (b"\xff\xfe", "not UTF-8")])
def test_files_that_cannot_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, message: str
) -> None:
    file = tmp_path / "a.pasta"
    if content is not None:
        file.write_bytes(content)
    assert run("parse", str(file)) == 2
    assert message in capsys.readouterr().err


def test_as_a_module_it_reads_standard_input() -> None:
    command = [sys.executable, "-m", "pasta_ray", "parse"]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, input=TEXT.encode(), capture_output=True, check=True, cwd=root)
    assert json.loads(done.stdout)["nodes"][1]["topic"] == "x y"
