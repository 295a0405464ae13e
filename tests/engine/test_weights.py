"""Checkpoints: adapters, tag rows, errors that name the file."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from pasta_ray.engine import Engine, EngineConfig
from pasta_ray.engine.weights import load_checkpoint
from pasta_ray.errors import InputError, ModelError
from pasta_ray.lang import ControlMap, TagMap, TokenMap
from tests.engine.conftest import VOCAB, prompt, save_model


@pytest.fixture
def base_dir(tmp_path: Path) -> Path:
    return save_model(tmp_path / "base")


@pytest.fixture
def lora_dir(base_dir: Path, tmp_path: Path) -> Path:
    """A LoRA adapter whose B is not zero, so that merging matters."""
    torch.manual_seed(1)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    get_peft_model(LlamaForCausalLM.from_pretrained(base_dir), config).save_pretrained(tmp_path / "lora")
    return tmp_path / "lora"


def add_tags(folder: Path, first: int, width: int = 32, kind: type[TokenMap] = TagMap) -> torch.Tensor:
    kind.after(first).save(folder)
    rows = torch.randn(len(kind.names), width)
    save_file({"tag_rows": rows}, folder / "tag_rows.safetensors")
    return rows


def prompt_logits(model: Path, adapter: Path | None, ids: list[int]) -> tuple[Engine, torch.Tensor]:
    engine = Engine(EngineConfig(model=str(model), adapter=str(adapter) if adapter else None))
    branch = engine.open(ids, keep_logits=True)
    (output,) = engine.step()
    engine.free(branch)
    assert output.logits is not None
    return engine, output.logits


def test_merged_adapter_equals_peft(base_dir: Path, lora_dir: Path) -> None:
    """Guards the merge: the engine's logits are those of PEFT's own unmerged forward pass."""
    from peft import PeftModel

    ids = prompt(1, 20)
    engine, logits = prompt_logits(base_dir, lora_dir, ids)
    with torch.no_grad():
        base = LlamaForCausalLM.from_pretrained(base_dir)
        expected = PeftModel.from_pretrained(base, str(lora_dir))(torch.tensor([ids])).logits[0]
        unmerged = LlamaForCausalLM.from_pretrained(base_dir)(torch.tensor([ids])).logits[0]
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
    assert (logits - unmerged).abs().max() > 1e-2
    assert engine.tags is None


def test_an_engine_keeps_nothing_of_the_checkpoint_beside_its_weights(base_dir: Path, lora_dir: Path) -> None:
    """Guards the memory of a replica: one small tensor that looks into the merged checkpoint would keep all of it."""
    model = Engine(EngineConfig(model=str(base_dir), adapter=str(lora_dir))).model
    for tensor in (model.embedding_VE, *model.input_norms, *(layer.mlp_norm for layer in model.layers)):
        assert tensor.untyped_storage().nbytes() == tensor.nbytes


@pytest.mark.parametrize("first", [VOCAB, VOCAB - 6, VOCAB - 2])
def test_tag_rows(base_dir: Path, lora_dir: Path, first: int) -> None:
    """Guards the tags' rows: behind the vocabulary, inside it or across its end, in the order of the names, in
    embedding and head."""
    rows = add_tags(lora_dir, first)
    engine, logits = prompt_logits(base_dir, lora_dir, [1, first + 2])
    assert engine.tags == TagMap.after(first)
    assert engine.vocab_size == logits.shape[1] == max(VOCAB, first + 6)
    torch.testing.assert_close(engine.model.embedding_VE[first : first + 6], rows)
    hidden_of_first_token = torch.linalg.lstsq(engine.model.embedding_VE, logits[0]).solution
    torch.testing.assert_close(logits[0, first : first + 6], rows @ hidden_of_first_token, atol=1e-3, rtol=0)


def test_control_rows(base_dir: Path, lora_dir: Path) -> None:
    """Guards APAR's adapters: two rows behind the vocabulary, by the same file; and against two languages at once."""
    rows = add_tags(lora_dir, VOCAB, kind=ControlMap)
    engine, logits = prompt_logits(base_dir, lora_dir, [1, VOCAB + 1])
    assert engine.tags == ControlMap(VOCAB, VOCAB + 1)
    assert logits.shape[1] == VOCAB + 2
    torch.testing.assert_close(engine.model.embedding_VE[VOCAB:], rows)
    TagMap.after(VOCAB).save(lora_dir)
    with pytest.raises(ModelError, match=r"pasta.json and apar.json; allowed: one of them"):
        load_checkpoint(EngineConfig(model=str(base_dir), adapter=str(lora_dir)))


def test_fingerprint_follows_weights_and_dtype(base_dir: Path, lora_dir: Path) -> None:
    """Guards the KV key: the same files give the same fingerprint, any difference gives another."""

    def fingerprint(adapter: str | None = None, dtype: str = "float32", quantization: str | None = None) -> str:
        config = EngineConfig(model=str(base_dir), adapter=adapter, dtype=dtype, quantization=quantization)
        return Engine(config).fingerprint

    prints = [
        fingerprint(),
        fingerprint(str(lora_dir)),
        fingerprint(dtype="bfloat16"),
        fingerprint(quantization="int8"),
    ]
    add_tags(lora_dir, VOCAB)
    prints.append(fingerprint(str(lora_dir)))
    assert len(set(prints)) == 5
    assert fingerprint() == prints[0]


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"target_modules": ["q_proj", "lm_head"]}, "trains lm_head"),
        ({"target_modules": ["q_proj"]}, "does not fit the model"),
        ({"target_modules": ["q_proj", "v_proj", "down_proj", "up_proj"]}, "does not fit the model"),
        ({"r": 5}, "does not fit the model"),
    ],
)
def test_adapter_that_does_not_fit(base_dir: Path, lora_dir: Path, change: dict[str, object], message: str) -> None:
    """Guards against an adapter that is applied in part: every misfit is an error that names the file."""
    edit_json(lora_dir / "adapter_config.json", **change)
    with pytest.raises(ModelError, match=message) as error:
        load_checkpoint(EngineConfig(model=str(base_dir), adapter=str(lora_dir)))
    assert str(lora_dir) in str(error.value)


def test_tag_rows_that_do_not_fit(base_dir: Path, lora_dir: Path) -> None:
    """Guards against rows of another model, ids that leave a gap, and tags without rows."""
    config = EngineConfig(model=str(base_dir), adapter=str(lora_dir))
    add_tags(lora_dir, VOCAB, width=31)
    with pytest.raises(ModelError, match=r"shape is \[6, 31\]; expected \[6, 32\]"):
        load_checkpoint(config)
    add_tags(lora_dir, VOCAB + 1)
    with pytest.raises(ModelError, match="leave a gap"):
        load_checkpoint(config)
    (lora_dir / "tag_rows.safetensors").unlink()
    with pytest.raises(ModelError, match="beyond the vocabulary 96"):
        load_checkpoint(config)


def test_models_that_cannot_be_loaded(base_dir: Path, tmp_path: Path) -> None:
    """Guards against wrong results from models that the forward pass does not compute."""
    config = base_dir / "config.json"
    original = config.read_text()
    for change, message in (
        ({"architectures": ["OPTForCausalLM"]}, "architecture is OPTForCausalLM; supported: LlamaForCausalLM, "),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "config.json: .*factor"),
        ({"num_attention_heads": "four"}, "config.json: .*num_attention_heads"),
    ):
        edit_json(config, **change)
        with pytest.raises(ModelError, match=f"(?s){message}"):
            load_checkpoint(EngineConfig(model=str(base_dir)))
        config.write_text(original)
    weights = base_dir / "model.safetensors"
    tensors = load_file(weights)
    save_file({name: t for name, t in tensors.items() if "layers.1.mlp.up_proj" not in name}, weights)
    with pytest.raises(ModelError, match=r"no tensor model.layers.1.mlp.up_proj.weight"):
        Engine(EngineConfig(model=str(base_dir)))
    weights.write_bytes(b"junk")
    with pytest.raises(ModelError, match="not a readable safetensors file"):
        load_checkpoint(EngineConfig(model=str(base_dir)))
    weights.unlink()
    with pytest.raises(ModelError, match=r"no \*.safetensors file"):
        load_checkpoint(EngineConfig(model=str(base_dir)))
    for model in (str(tmp_path / "absent.gguf"), "nobody/nothing-at-all"):
        with pytest.raises(ModelError, match=model):
            load_checkpoint(EngineConfig(model=model, cache_dir=tmp_path))
    with pytest.raises(ModelError, match="adapters shipped"):
        load_checkpoint(EngineConfig(model=str(base_dir), adapter="absent"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": ""}, "model is empty"),
        ({"adapter": ""}, "adapter is empty"),
        ({"device": "tpu"}, "device is 'tpu'; allowed: cpu, cuda"),
        ({"device": "cuda:x"}, "device is 'cuda:x'; allowed: cpu, cuda, cuda:N"),
        ({"dtype": "float16"}, "dtype is 'float16'; allowed: float32, bfloat16"),
        ({"num_threads": 0}, "num_threads is 0"),
        ({"prefill_chunk": 0}, "prefill_chunk is 0"),
    ],
)
def test_config_errors(settings: dict[str, object], message: str) -> None:
    """Guards configuration: a bad value is refused where it is given, with the value and what is allowed."""
    with pytest.raises(InputError, match=message):
        EngineConfig(**settings)  # type: ignore[arg-type]


def test_cache_dir_honours_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Guards against a gigabyte in the wrong home."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert EngineConfig().cache_dir == tmp_path / "pasta-ray"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert EngineConfig().cache_dir == Path.home() / ".cache" / "pasta-ray"
