"""`pasta-ray doctor` on this machine, and on machines that lack something."""

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from pasta_ray import doctor
from pasta_ray.cli import main
from pasta_ray.doctor import Finding, examine


@pytest.fixture(autouse=True)
def _healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this machine has, the tests take away from a healthy one."""
    monkeypatch.setattr(doctor, "available_memory", lambda: 2**36)
    monkeypatch.setattr(doctor, "memory_limit", lambda: None)
    monkeypatch.setattr(doctor, "cpu_quota", lambda: None)
    monkeypatch.setattr(doctor, "_unmet", lambda: iter(()))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def found(cache_dir: Path, name: str) -> Finding:
    (finding,) = [each for each in examine(cache_dir, free_port()) if each.name == name]
    return finding


def run(*args: str) -> int:
    try:
        main(["doctor", "--port", str(free_port()), *args])
    except SystemExit as exit_:
        return int(exit_.code or 0)
    return 0


def test_a_healthy_machine_is_told_what_it_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--cache-dir", str(tmp_path), "--json") == 0
    body = json.loads(capsys.readouterr().out)
    assert body["ok"]
    names = [finding["name"] for finding in body["findings"]]
    assert {"instructions", "kernels", "gpu", "ray", "memory", "default model"} <= set(names)
    assert len(names) == len(set(names))
    for finding in body["findings"]:
        assert finding["state"] == "ok" or finding["advice"], f"{finding['name']}: no advice"
    assert run("--cache-dir", str(tmp_path)) == 0
    assert "AVX2" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == [], "looking leaves nothing behind"


@pytest.mark.parametrize(
    ("what", "value", "name", "state", "message"),
    [
        ("available_memory", lambda: 2**20, "memory", "wrong", "need about 2.0 GiB"),
        ("memory_limit", lambda: 2**30, "memory", "wrong", "allow more"),
        ("cpu_quota", lambda: 0.5, "processor", "warning", "--threads 1"),
        ("shipped_adapters", tuple, "adapters", "wrong", "install pasta-ray again"),
        ("_unmet", lambda: iter(["torch>=9 is needed, found 2"]), "packages", "wrong", "pip install"),
        ("LEAST_DISK", 2**80, "cache", "warning", "needs about"),
        ("LEAST_FILES", 2**62, "open files", "warning", "ulimit"),
    ],
)
def test_what_is_missing_comes_with_advice(
    what: str, value: Any, name: str, state: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, what, value)
    finding = found(tmp_path, name)
    assert finding.state == state
    assert message in (finding.advice or "")
    assert run("--cache-dir", str(tmp_path), "--json") == int(state == "wrong")


def test_what_the_package_needs_is_compared_with_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    needs = ["torch>=1", "torch>=999", "no-such-package>=1", 'openai>=999; extra == "train"']
    monkeypatch.setattr(doctor, "requires", lambda _: needs)
    unmet = list(doctor._unmet())
    assert [line.split(",")[0] for line in unmet] == ["torch>=999 is needed", "no-such-package>=1 is needed"]


def test_a_port_that_is_taken_and_a_cache_that_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        (finding,) = [each for each in examine(tmp_path, port) if each.name == "port"]
        assert (finding.state, finding.advice) == ("warning", "serve on another one: --port")
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert found(tmp_path / "not" / "there", "cache").state == "wrong"


def test_the_default_model_is_found_where_it_is_kept(tmp_path: Path) -> None:
    assert "offline put" in (found(tmp_path, "default model").advice or "")
    (tmp_path / doctor.DEFAULT_WHEEL).touch()
    assert found(tmp_path, "default model").found == "downloaded, converted on the first use"
    doctor.model_folder(tmp_path, doctor.DEFAULT_GGUF_SHA256).mkdir(parents=True)
    assert found(tmp_path, "default model").found.startswith("smollm2-135m-instruct is in ")


def test_linuxs_files_are_read_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    file = tmp_path / "file"
    for text, quota in (("max 100000\n", None), ("150000 100000\n", 1.5)):
        file.write_text(text)
        assert doctor.cpu_quota(file) == quota
    for text, limit in (("max\n", None), ("1073741824\n", 2**30)):
        file.write_text(text)
        assert doctor.memory_limit(file) == limit
    file.write_text("MemTotal:  99 kB\nMemAvailable:  12 kB\n")
    assert doctor.available_memory(file) == 12 * 1024
    assert doctor.cpu_quota(tmp_path / "absent") is None
    assert doctor.available_memory(tmp_path / "absent") > 0
