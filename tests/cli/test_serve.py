import socket
from dataclasses import replace
from pathlib import Path

import pytest

from pasta_ray.cli import main
from pasta_ray.engine import int8
from pasta_ray.errors import InputError
from pasta_ray.serve.config import ServeConfig, read_config


def run(*args: str) -> int:
    try:
        main(["serve", *args])
    except SystemExit as exit_:
        return int(exit_.code or 0)
    return 0


def test_a_port_that_is_taken_is_said_before_anything_starts(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert run("--port", port) == 2
    assert f"--port {port}: Address already in use" in capsys.readouterr().err


def test_an_adapter_that_is_missing_is_no_silent_fallback(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    assert run("--adapter", "no-such-adapter", "--port", port) == 1
    error = capsys.readouterr().err
    assert "no-such-adapter" in error
    assert "Traceback" not in error


def test_options_go_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text("model: some/model\nadapter: null\nreplicas: 3\n")
    config = read_config(file, {"replicas": 2})
    assert (config.model, config.adapter, config.replicas) == ("some/model", None, 2)
    assert (config.model_name, config.default_method) == ("model", "sequential")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("replicas: 0", r"replicas: .* \(is 0\)"),
        ("max_draft: 0", r"max_draft: .* \(is 0\)"),
        ("colour: red", "colour: Extra inputs"),
        ("[1, 2]", "a mapping of options is expected"),
        ("a: [", "serve.yaml"),
    ],
)
def test_a_bad_file_is_named_with_its_field(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=message) as raised:
        read_config(file, {})
    assert str(file) in str(raised.value)


def test_a_draft_model_runs_as_the_model_does(tmp_path: Path) -> None:
    """Guards against a draft model that gets the adapter, or another cache and other threads than the served one."""
    config = read_config(None, {"draft_model": "small", "max_draft": 7, "cache_dir": tmp_path, "num_threads": 2})
    draft = config.draft_config()
    assert draft.max_draft == 7
    assert draft.engine == replace(
        config.engine_config(), model="small", adapter=None, max_kv_bytes=None, prefix_cache_bytes=0
    )
    assert ServeConfig().draft_config().engine is None


def test_served_weights_are_int8_where_that_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards the default: int8 in float32 on a CPU that is faster with it, and what was asked for everywhere else."""
    assert int8.has_int8()
    monkeypatch.setattr("torch.cpu._is_vnni_supported", lambda: False)
    assert ServeConfig().engine_config().quantization is None
    monkeypatch.setattr("torch.cpu._is_vnni_supported", lambda: True)
    assert ServeConfig().engine_config().quantization == "int8"
    assert ServeConfig(quantization="none").engine_config().quantization is None
    for elsewhere in ({"device": "cuda"}, {"dtype": "bfloat16"}):
        assert ServeConfig(**elsewhere).engine_config().quantization is None
        with pytest.raises(InputError, match="quantization 'int8' runs with"):
            ServeConfig(**elsewhere, quantization="int8").engine_config()


def test_replicas_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pasta_ray.serve.config._num_cores", lambda: 9)
    assert ServeConfig(replicas=2).engine_config().num_threads == 4
    assert ServeConfig(replicas=20).engine_config().num_threads == 1
    assert ServeConfig(replicas=2, num_threads=3).engine_config().num_threads == 3
