"""The commands on a random model and tiny sizes: what they print hangs together. No test looks at speed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pasta_ray.cli import main
from pasta_ray.eval.bench import machine
from tests.engine.conftest import save_model
from tests.engine.test_methods import make_decoder

TINY = {
    "step": ("--context", "20", "--rows", "1", "--rows", "3", "--requests", "2", "--reps", "2"),
    "decode": ("--context", "20", "--tokens", "4", "--requests", "2", "--reps", "2"),
    "fork": ("--context", "250", "--children", "3", "--reps", "4"),
}
Run = Callable[..., int]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_model(tmp_path_factory.mktemp("bench-model")))


@pytest.fixture
def run(model: str, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run `bench` on one thread; gives the exit status. Memory bandwidth is measured on a small buffer."""
    monkeypatch.setattr(machine, "buffer_bytes", lambda: 2**20)

    def run(command: str, *args: str) -> int:
        try:
            main(["bench", command, "--model", model, "--threads", "1", *args])
        except SystemExit as exit_:
            return int(exit_.code or 0)
        return 0

    return run


def check(result: dict[str, Any], command: str) -> None:
    assert result["benchmark"] == command
    figures = result["figures"]
    for name, figure in figures.items():
        assert figure["p10"] <= figure["median"] <= figure["p90"], name
        if "copied" not in name:
            assert figure["median"] > 0, name
    assert result["ratios"]
    for name, ratio in result["ratios"].items():
        quotient = figures[ratio["numerator"]]["median"] / figures[ratio["denominator"]]["median"]
        assert ratio["value"] == pytest.approx(quotient), name
    about = result["machine"]
    assert about["threads"] == 1
    assert min(about["cores"], about["usable_cores"], about["bandwidth_gb_s"], about["bandwidth_one_thread_gb_s"]) > 0
    assert about["versions"]["torch"]


@pytest.mark.parametrize("command", TINY)
def test_json_holds_figures_and_their_quotients(
    run: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str
) -> None:
    """Guards a ratio of anything but the printed medians, and progress or warnings amid the JSON."""
    out = tmp_path / "out.json"
    assert run(command, *TINY[command], "--json", "--out", str(out)) == 0
    printed = capsys.readouterr().out
    assert json.loads(printed) == json.loads(out.read_text(encoding="utf-8"))
    check(json.loads(printed), command)


def test_numerics_are_measured_and_compared_in_one_run(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """Guards a second quantisation that is dropped, or compared the wrong way round."""
    assert run("step", *TINY["step"], "--quantization", "none", "--quantization", "int8", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    check(result, "step")
    assert result["settings"]["numerics"] == ["float32", "int8"]
    ratio = result["ratios"]["step, 3 branches: float32 / int8"]
    assert (ratio["numerator"], ratio["denominator"]) == ("float32: step, 3 branches", "int8: step, 3 branches")
    weights = [result["figures"][f"{kind}: weights a step reads"]["median"] for kind in ("float32", "int8")]
    assert weights[0] == 4 * weights[1]


def test_fork_and_join_copy_no_kv(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """Guards the claim itself: a fork or join that moves the KV, and a slot that is larger than the model's KV."""
    assert run("fork", *TINY["fork"], "--json") == 0
    result = json.loads(capsys.readouterr().out)
    copied = [figure["p90"] for name, figure in result["figures"].items() if "KV copied" in name]
    assert copied == [0.0, 0.0]
    assert result["figures"]["float32: KV of a token, exact"]["median"] == 2 * 3 * 2 * 8 * 4
    assert result["ratios"]["float32: KV of a token, stored / exact"]["value"] == 1.0


def test_without_json_the_figures_stand_in_tables(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("decode", *TINY["decode"], "--no-reference") == 0
    printed = capsys.readouterr().out
    assert "2 requests" in printed
    assert "tokens/s" in printed
    assert "transformers float32" not in printed
    assert "machine: processor" in printed


@pytest.mark.parametrize("command", TINY)
def test_help(run: Run, capsys: pytest.CaptureFixture[str], command: str) -> None:
    assert run(command, "--help") == 0
    assert "--quantization" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("step", "--context", "5000"), "exceed the model's 4096 positions"),
        (("step", "--rows", "0"), "greater than or equal to 1"),
        (("step", "--quantization", "int3"), "int3"),
        (("step", "--quantization", "int8", "--dtype", "bfloat16"), "runs with device 'cpu' and dtype 'float32'"),
        (("decode", "--tokens", "1"), "greater than or equal to 2"),
        (("decode", "--context", "4090"), "exceed the model's 4096 positions"),
        (("fork", "--context", "4096"), "exceed the model's 4096 positions"),
        (("fork", "--out", "no/such/folder/out.json"), "no/such/folder/out.json: No such file"),
    ],
    ids=" ".join,
)
def test_bad_options_are_refused(
    run: Run, capsys: pytest.CaptureFixture[str], args: tuple[str, ...], message: str
) -> None:
    """Guards a long run that fails at its end, and a traceback instead of what is allowed."""
    assert run(*args) == 2
    error = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert message in error
    assert "Traceback" not in error


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_farming_is_measured_against_staying(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards the comparison: the same answers by all policies, no body leaves by one and all by another."""
    monkeypatch.setattr(machine, "buffer_bytes", lambda: 2**20)
    make_decoder(tmp_path)
    options = ("--adapter", "none", "--reps", "1", "--max-tokens", "60", "--threads", "1", "--json")
    with pytest.raises(SystemExit) as ended:
        main(["bench", "farm", "--model", str(tmp_path), *options])
    assert not ended.value.code
    figures = json.loads(capsys.readouterr().out)["figures"]
    sent = {policy: figures[f"{policy}: bodies sent away"]["median"] for policy in ("local", "auto", "remote")}
    assert (sent["local"], sent["remote"]) == (0, 1)
    assert 0 <= sent["auto"] <= 1
