import json
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pasta_ray.cli import main
from pasta_ray.engine import EngineConfig, int8
from pasta_ray.errors import InputError
from pasta_ray.serve.config import ServeConfig, ServedModel, read_config


def engine(config: ServeConfig) -> EngineConfig:
    """Of the first model."""
    return next(iter(config.engine_configs().values()))


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
    assert run("--adapter", "no-such-adapter", "--port", port) == 2
    error = capsys.readouterr().err
    assert "no-such-adapter" in error
    assert "Traceback" not in error


def test_options_go_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text("model: some/model\nadapter: null\nreplicas: 3\n")
    config = read_config(file, {"replicas": 2})
    assert (config.model, config.adapter, config.replicas) == ("some/model", None, 2)
    assert list(config.served) == ["model"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("replicas: 0", r"replicas: .* \(is 0\)"),
        ("max_draft: 0", r"max_draft: .* \(is 0\)"),
        ("colour: red", "colour: Extra inputs"),
        ("[1, 2]", "a mapping of options is expected"),
        ("models: {}", "models: .* at least 1"),
        ("models: {a: pasta}", "models.a: "),
        ("models: {a: {adapter: pasta, model: other}}", "models.a.model: Extra inputs"),
        ("models: {a: {}}", "models.a.adapter: Field required"),
        ("models: {a: {adapter: x}, b: {adapter: y, aliases: [a]}}", "models: the name 'a' stands for 2 models"),
        ("models: {a: {adapter: pasta}}\nadapter: pasta", "adapter names a single model; allowed: it, or models"),
        ("a: [", "serve.yaml"),
    ],
)
def test_a_bad_file_is_named_with_its_field(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=message) as raised:
        read_config(file, {})
    assert str(file) in str(raised.value)


def test_the_environment_goes_over_the_file_and_options_over_both(tmp_path: Path) -> None:
    """Guards containers, whose file is shared and whose sizes differ."""
    file = tmp_path / "serve.yaml"
    file.write_text("replicas: 3\nmax_queued_requests: 5\nmodel: some/model\n")
    environment = {
        "PASTA_RAY_SERVE__REPLICAS": "4",
        "PASTA_RAY_SERVE__NUM_INGRESS": "2",
        "PASTA_RAY_SERVE__ADAPTER": "null",
        "PASTA_RAY_SERVE__CORS_ORIGINS": "[https://example.org]",
        "PASTA_RAY_SERVE_PORT": "tcp://10.0.0.1:80",
    }
    config = read_config(file, {"num_ingress": 7}, None, environment)
    assert (config.replicas, config.num_ingress, config.max_queued_requests) == (4, 7, 5)
    assert (config.adapter, config.model, config.cors_origins) == (None, "some/model", ("https://example.org",))


@pytest.mark.parametrize(
    ("variable", "text", "message"),
    [
        ("REPLICAS", "many", r"PASTA_RAY_SERVE__REPLICAS: replicas: .* \(is 'many'\)"),
        ("COLOUR", "red", "PASTA_RAY_SERVE__COLOUR: there is no option 'colour'; allowed: model, adapter"),
        ("MODELS", "{a: [", "PASTA_RAY_SERVE__MODELS: "),
    ],
)
def test_a_bad_variable_is_named(variable: str, text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text("max_draft: 3\n")
    with pytest.raises(InputError, match=message) as raised:
        read_config(file, {}, None, {f"PASTA_RAY_SERVE__{variable}": text})
    assert str(file) not in str(raised.value)


def test_the_schema_describes_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["schema"])
    schema = json.loads(capsys.readouterr().out)
    assert set(schema["properties"]) == set(ServeConfig.model_fields)
    assert schema["additionalProperties"] is False
    assert schema["properties"]["replicas"]["maximum"] == 1024


ONE = {"smollm2-pasta": "pasta"}


def served(config: ServeConfig) -> dict[str, str | None]:
    return {name: model.adapter for name, model in config.served.items()}


@pytest.mark.parametrize("shipped", [("pasta",), ("pasta", "pasta-fast", "pasta-careful", "apar")])
def test_by_default_the_shipped_variants_are_served(shipped: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards the names that clients send, and the older one that scripts send."""
    monkeypatch.setattr("pasta_ray.engine.weights.shipped_adapters", lambda: shipped)
    variants = {f"smollm2-{name}": name for name in ("pasta-fast", "pasta-careful") if name in shipped}
    config = read_config(None, {"replicas": 2})
    assert served(config) == ONE | variants
    assert config.served["smollm2-pasta"].aliases == ("smollm2-135m-instruct-pasta",)
    assert list(config.engine_configs()) == list(config.served)


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"adapter": "pasta"}, {"smollm2-135m-instruct-pasta": "pasta"}),
        ({"adapter": None}, {"smollm2-135m-instruct": None}),
        ({"adapter": "runs/mine", "model": "hub/small"}, {"small-mine": "runs/mine"}),
        ({"served_model_name": "mine"}, {"mine": "pasta"}),
        ({"models": {"mine": {"adapter": "runs/mine"}}, "model": "hub/small"}, {"mine": "runs/mine"}),
    ],
)
def test_a_single_model_keeps_its_name_and_others_come_behind_it(
    options: dict[str, Any], names: dict[str, str | None]
) -> None:
    assert served(read_config(None, options)) == names
    more = read_config(None, options, {"sft": "baseline-sft", "base": None})
    assert list(served(more).items()) == [*names.items(), ("sft", "baseline-sft"), ("base", None)]
    assert more.model == read_config(None, options).model


def test_more_models_go_over_the_file_and_none_twice(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text("models: {a: {adapter: pasta, aliases: [b]}}\n")
    assert served(read_config(file, {}, {"c": "baseline-sft"})) == {"a": "pasta", "c": "baseline-sft"}
    for name in "ab":
        with pytest.raises(InputError, match=f"'{name}' (is served already|stands for 2 models)"):
            read_config(file, {}, {name: "baseline-sft"})


@pytest.mark.parametrize("pair", ["pasta-fast", "=pasta-fast", "name="])
def test_a_pair_without_name_or_adapter_is_refused(pair: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--also", pair) == 2
    assert f"--also is '{pair}'; allowed: NAME=ADAPTER" in capsys.readouterr().err


def test_a_replicas_memory_is_shared_among_its_models() -> None:
    """Guards the bounds, which are a replica's and not a model's."""
    models = {name: ServedModel(adapter=None) for name in "abc"}
    engines = ServeConfig(models=models, max_kv_bytes=3000, prefix_cache_bytes=301).engine_configs().values()
    assert {(config.max_kv_bytes, config.prefix_cache_bytes) for config in engines} == {(1000, 100)}
    unbounded = ServeConfig(models=models, max_kv_bytes=None, prefix_cache_bytes=0).engine_configs().values()
    assert {(config.max_kv_bytes, config.prefix_cache_bytes) for config in unbounded} == {(None, 0)}


def test_a_draft_model_runs_as_the_model_does(tmp_path: Path) -> None:
    """Guards against a draft model that gets the adapter, or another cache and other threads than the served one."""
    config = read_config(None, {"draft_model": "small", "max_draft": 7, "cache_dir": tmp_path, "num_threads": 2})
    draft = config.draft_config()
    assert draft.max_draft == 7
    assert draft.engine == replace(engine(config), model="small", adapter=None, max_kv_bytes=None, prefix_cache_bytes=0)
    assert ServeConfig().draft_config().engine is None


def test_served_weights_are_int8_where_that_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards the default: int8 in float32 on a CPU that is faster with it, and what was asked for everywhere else."""
    assert int8.has_int8()
    monkeypatch.setattr("torch.cpu._is_vnni_supported", lambda: False)
    assert engine(ServeConfig()).quantization is None
    monkeypatch.setattr("torch.cpu._is_vnni_supported", lambda: True)
    assert engine(ServeConfig()).quantization == "int8"
    assert engine(ServeConfig(quantization="none")).quantization is None
    for elsewhere in ({"device": "cuda"}, {"dtype": "bfloat16"}):
        assert engine(ServeConfig(**elsewhere)).quantization is None
        with pytest.raises(InputError, match="quantization 'int8' runs with"):
            engine(ServeConfig(**elsewhere, quantization="int8"))


def test_replicas_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pasta_ray.serve.config._num_cores", lambda: 9)
    assert engine(ServeConfig(replicas=2)).num_threads == 4
    assert engine(ServeConfig(replicas=20)).num_threads == 1
    assert engine(ServeConfig(replicas=2, num_threads=3)).num_threads == 3
