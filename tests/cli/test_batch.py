from pathlib import Path

import pytest

from pasta_ray.cli import main


def run(*args: str) -> int:
    try:
        main(["batch", *args])
    except SystemExit as exit_:
        return int(exit_.code or 0)
    return 0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("none.jsonl", "--out", "out.jsonl"), "none.jsonl: no such file"),
        (("in.csv", "--out", "out.jsonl"), "in.csv: its name ends with '.csv'; allowed: .jsonl, .parquet"),
        (("in.jsonl", "--out", "notes.jsonl"), "notes.jsonl, line 1: no answer of an earlier run"),
        (("in.jsonl", "--out", "out.jsonl", "--method", "magic"), "method"),
        (("in.jsonl", "--out", "out.jsonl", "--temperature", "3"), "temperature is 3"),
    ],
)
def test_what_cannot_work_is_said_before_ray_is_started(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    args: tuple[str, ...],
    message: str,
) -> None:
    """Guards against half a minute of starting for a misspelt name."""
    monkeypatch.chdir(tmp_path)
    Path("in.jsonl").write_text('{"id": "a", "instruction": "hi"}\n')
    Path("in.csv").touch()
    Path("notes.jsonl").write_text("mine\n")
    monkeypatch.setattr("pasta_ray.cli.ray_session.connect", lambda: pytest.fail("Ray was started"))
    monkeypatch.setattr("pasta_ray.engine.weights.find_tags", lambda _: None)
    assert run(*args) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert Path("notes.jsonl").read_text() == "mine\n"
