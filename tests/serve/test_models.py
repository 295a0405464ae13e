"""What is served, as the files of a small random model and its adapters describe it."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import LlamaForCausalLM

from pasta_ray.engine import weights
from pasta_ray.engine.weights import check_adapter
from pasta_ray.errors import ModelError
from pasta_ray.lang import ControlMap, TagMap, TokenMap
from pasta_ray.serve.config import ServeConfig, ServedModel
from pasta_ray.serve.models import Model, read_models
from tests.engine.conftest import VOCAB, save_model

KINDS: dict[str, type[TokenMap] | None] = {"pasta": TagMap, "apar": ControlMap, "plain": None}


def save_adapter(base: Path, folder: Path, kind: type[TokenMap] | None = None, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    config = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    get_peft_model(LlamaForCausalLM.from_pretrained(base), config).save_pretrained(folder)
    if kind:
        kind.after(VOCAB).save(folder)
        save_file({"tag_rows": torch.randn(len(kind.names), 32)}, folder / "tag_rows.safetensors")
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="module")
def adapters(base: Path) -> dict[str, str]:
    return {name: str(save_adapter(base, base.parent / name, kind)) for name, kind in KINDS.items()}


def config(model: Path, /, **adapters: str | None) -> ServeConfig:
    return ServeConfig(model=str(model), models={name: ServedModel(adapter=path) for name, path in adapters.items()})


def test_each_models_default_method_is_what_its_tags_are_for(base: Path, adapters: dict[str, str]) -> None:
    """Guards against a method that an adapter was not trained for, and that its decoder would refuse."""
    models = read_models(config(base, **adapters, base=None))
    assert models.all == (
        Model("pasta", "pasta", "pasta"),
        Model("apar", "apar", "apar"),
        Model("plain", "sequential", "plain"),
        Model("base", "sequential"),
    )


def test_a_models_own_tags_count_where_its_adapter_has_none(tmp_path: Path, adapters: dict[str, str]) -> None:
    whole = save_model(tmp_path / "whole")
    TagMap.after(VOCAB - 6).save(whole)
    models = read_models(config(whole, plain=adapters["plain"], apar=adapters["apar"], base=None))
    assert [model.method for model in models.all] == ["pasta", "apar", "pasta"]


@pytest.mark.parametrize("change", [{"hidden_size": 40}, {"num_hidden_layers": 2}])
def test_an_adapter_of_another_model_is_refused_before_any_weights_are_read(
    change: dict[str, int], tmp_path: Path, adapters: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards the start of a cluster, which should not be where a misfit is found."""
    other = save_model(tmp_path / "other", **change)
    monkeypatch.setattr(weights, "read_tensors", None)
    with pytest.raises(ModelError, match=r"plain/adapter_model.safetensors: does not fit model '.*other'"):
        read_models(config(other, base=None, plain=adapters["plain"]))


def test_a_broken_adapter_is_named(base: Path, tmp_path: Path) -> None:
    broken = save_adapter(base, tmp_path / "broken", TagMap)
    (broken / "pasta.json").write_text("{}")
    with pytest.raises(ModelError, match=r"broken/pasta.json: expected"):
        read_models(config(base, broken=str(broken)))
    settings = json.loads((broken / "adapter_config.json").read_text())
    (broken / "adapter_config.json").write_text(json.dumps(settings | {"peft_type": "IA3"}))
    with pytest.raises(ModelError, match="peft_type is 'IA3'"):
        read_models(config(base, broken=str(broken)))
    (broken / "adapter_model.safetensors").write_bytes(b"junk")
    (broken / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match="not a readable safetensors file"):
        read_models(config(base, broken=str(broken)))
    with pytest.raises(ModelError, match=r"absent.gguf: no such file"):
        read_models(ServeConfig(model=str(tmp_path / "absent.gguf"), adapter=None))


@pytest.mark.real_model
def test_shipped_adapters_fit_the_default_model() -> None:
    """Guards what `make serve` serves, and the rest of what is shipped."""
    shipped = weights.shipped_adapters()
    for model in read_models(ServeConfig()).all:
        assert model.method == "pasta"
    for name in shipped:
        (engine,) = ServeConfig(adapter=name).engine_configs().values()
        check_adapter(engine)
    methods = {name: read_models(ServeConfig(adapter=name)).all[0].method for name in shipped}
    assert methods["baseline-sft"] == "sequential"
