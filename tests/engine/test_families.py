"""Every supported family against transformers: small random models in which each of the family's features matters."""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from pasta_ray.engine import Engine, EngineConfig
from pasta_ray.engine.architecture import Architecture, check_supported
from pasta_ray.engine.messages import Sampling
from pasta_ray.engine.replaying import replay_tokens
from pasta_ray.errors import ModelError
from pasta_ray.lang import Layout, TagMap, layout
from tests.engine.conftest import SMALL, VOCAB, decode, generate, layout_mask, prompt, random_document

WINDOW = 8
SLIDING, FULL = "sliding_attention", "full_attention"
DEFAULT = {"rope_type": "default", "rope_theta": 1e4}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32}
BOTH = {"layer_types": [SLIDING, FULL, SLIDING], "sliding_window": WINDOW}
QWEN = {"use_sliding_window": True, "max_window_layers": 1, "sliding_window": WINDOW}


@dataclass(frozen=True)
class Family:
    """``settings`` turn every feature on; ``without`` turns each of them off, one at a time."""

    config: type[PretrainedConfig]
    settings: dict[str, Any]
    without: list[dict[str, Any]]


FAMILIES = {
    "llama": Family(
        LlamaConfig,
        {"rope_parameters": LLAMA3, "tie_word_embeddings": True},
        [{"rope_parameters": DEFAULT}],
    ),
    "mistral": Family(
        MistralConfig, {"sliding_window": WINDOW, "tie_word_embeddings": False}, [{"sliding_window": None}]
    ),
    "qwen2": Family(
        Qwen2Config,
        {**QWEN, "rope_parameters": YARN, "tie_word_embeddings": False},
        [{"layer_types": [FULL] * 3}, {"rope_parameters": DEFAULT}],
    ),
    "qwen3": Family(Qwen3Config, {**QWEN, "tie_word_embeddings": True}, [{"layer_types": [FULL] * 3}]),
    "gemma": Family(GemmaConfig, {"tie_word_embeddings": True}, [{"hidden_act": "silu"}]),
    "gemma2": Family(
        Gemma2Config,
        {
            **BOTH,
            "attn_logit_softcapping": 1.0,
            "final_logit_softcapping": 4.0,
            "query_pre_attn_scalar": 3,
            "tie_word_embeddings": True,
        },
        [
            {"attn_logit_softcapping": None},
            {"final_logit_softcapping": None},
            {"query_pre_attn_scalar": 8},
            {"layer_types": [FULL] * 3},
            {"hidden_activation": "silu"},
        ],
    ),
    "gemma3": Family(
        Gemma3TextConfig,
        {
            **BOTH,
            "rope_parameters": {
                FULL: {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
                SLIDING: DEFAULT,
            },
            "query_pre_attn_scalar": 3,
            "tie_word_embeddings": False,
        },
        [
            {"layer_types": [FULL] * 3},
            {
                "rope_parameters": {
                    FULL: DEFAULT,
                    SLIDING: DEFAULT,
                }
            },
        ],
    ),
}


def make_config(family: Family, **changes: object) -> PretrainedConfig:
    return family.config(**(SMALL | {"pad_token_id": None} | family.settings | changes))


def save_family(folder: Path, name: str) -> Path:
    """Norm weights and biases are random too: transformers would start them where they change nothing."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = AutoModelForCausalLM.from_config(make_config(FAMILIES[name]))
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                if "norm" in parameter_name or parameter_name.endswith("bias"):
                    parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


def load_reference(folder: Path, **changes: object) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, **changes)
    return model.eval()


@dataclass(frozen=True)
class Case:
    name: str
    folder: Path
    engine: Engine
    reference: PreTrainedModel


@pytest.fixture(scope="module", params=FAMILIES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tags: TagMap) -> Case:
    folder = save_family(tmp_path_factory.mktemp(request.param), request.param)
    tags.save(folder)
    engine = Engine(EngineConfig(model=str(folder), prefill_chunk=16))
    return Case(request.param, folder, engine, load_reference(folder))


def prompt_logits(engine: Engine, ids: list[int]) -> torch.Tensor:
    branch = engine.open(ids, keep_logits=True)
    rows = []
    while engine.has_work:
        rows += [output.logits for output in engine.step() if output.logits is not None]
    engine.free(branch)
    return torch.cat(rows)


def reference_logits(reference: PreTrainedModel, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return reference(torch.tensor([ids])).logits[0].float()


def layout_logits(case: Case, form: Layout) -> torch.Tensor:
    """One forward pass of transformers with the layout's mask and positions, narrowed where layers have a window."""
    full, sliding = layout_mask(form), layout_mask(form, WINDOW)
    one_mask = {"llama": full, "gemma": full, "mistral": sliding}
    mask = one_mask.get(case.name, {FULL: full, SLIDING: sliding})
    with torch.no_grad():
        ids, positions = torch.tensor([form.ids]), torch.tensor([form.positions])
        return case.reference(ids, attention_mask=mask, position_ids=positions).logits[0]


def test_greedy_equals_transformers(case: Case) -> None:
    """Guards the family's whole forward pass: prompts below, at and far beyond window and chunk, in one batch."""
    prompts = [prompt(seed, length) for seed, length in enumerate((1, 7, 8, 9, 17, 50))]
    branches = [case.engine.open(ids, sampling=Sampling()) for ids in prompts]
    assert decode(case.engine, branches, 20) == [generate(case.reference, ids, 20) for ids in prompts]


def test_prompt_logits_equal_transformers(case: Case) -> None:
    """Guards what an argmax hides: every logit of a prompt that is prefilled in three chunks, each longer than a
    window."""
    ids = prompt(3, 45)
    expected = reference_logits(case.reference, ids)
    torch.testing.assert_close(prompt_logits(case.engine, ids), expected, atol=1e-4, rtol=0)


def test_random_documents(case: Case, tags: TagMap) -> None:
    """Guards fork and join with windows and several masks: a body's window is counted in positions, across the gap
    that its parent leaves and over bodies joined before."""
    rng = random.Random(2)
    worst = 0.0
    for number in range(25):
        document, ids = random_document(rng, tags), prompt(number, rng.randint(1, 40))
        neighbours = [case.engine.open(prompt(i, 9), sampling=Sampling()) for i in range(number % 3)]
        logits = replay_tokens(case.engine, ids, document)
        for branch in neighbours:
            case.engine.free(branch)
        worst = max(worst, float((logits - layout_logits(case, layout(document, ids))).abs().max()))
    assert worst < 1e-4


def test_every_feature_matters(case: Case) -> None:
    """Guards the tests above: a feature that these weights do not feel would be tested by nothing."""
    ids = prompt(3, 45)
    logits = reference_logits(case.reference, ids)
    for change in FAMILIES[case.name].without:
        config = make_config(FAMILIES[case.name], **change)
        changed = reference_logits(load_reference(case.folder, config=config), ids)
        assert (changed - logits).abs().max() > 1e-2, change


def test_bfloat16_stays_close(case: Case) -> None:
    """Guards the second dtype, and Gemma's norms that are float32 in it: logits within bfloat16's own precision."""
    engine = Engine(EngineConfig(model=str(case.folder), dtype="bfloat16"))
    ids = prompt(11, 30)
    logits = prompt_logits(engine, ids)
    for reference in (case.reference, load_reference(case.folder, dtype=torch.bfloat16)):
        expected = reference_logits(reference, ids)
        assert torch.nn.functional.cosine_similarity(logits, expected).min() > 0.98


def test_int8(case: Case, tags: TagMap) -> None:
    """Guards the quantised numerics: documents through fork and join stay close to transformers' float32, and requests
    in one batch that are fed by the same chunks give, to the last bit, what each gives alone."""
    engine = Engine(EngineConfig(model=str(case.folder), quantization="int8", prefill_chunk=64, prefix_cache_bytes=0))
    rng = random.Random(5)
    for number in range(5):
        document, ids = random_document(rng, tags), prompt(number, rng.randint(1, 40))
        expected = layout_logits(case, layout(document, ids))
        logits = replay_tokens(engine, ids, document)
        assert torch.nn.functional.cosine_similarity(logits, expected).mean() > 0.99
    prompts = [prompt(seed, length) for seed, length in enumerate((12, 3, 9))]
    together = [engine.open(ids, keep_logits=True) for ids in prompts]
    crowded = {output.branch: output.logits for output in engine.step()}
    for branch, ids in zip(together, prompts, strict=True):
        engine.free(branch)
        alone, got = prompt_logits(engine, ids), crowded[branch]
        assert got is not None
        assert torch.equal(got, alone[: len(got)])


@pytest.mark.parametrize("name", ["qwen3", "gemma3"])
def test_merged_adapter_and_tag_rows(tmp_path: Path, name: str) -> None:
    """Guards adapters of families other than Llama: LoRA is merged, and tag rows stand in the embedding unscaled,
    behind it and in an untied head, as PEFT and transformers have them."""
    folder, adapter, tags = save_family(tmp_path / "base", name), tmp_path / "lora", TagMap.after(VOCAB - 2)
    torch.manual_seed(1)
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    get_peft_model(load_reference(folder), lora).save_pretrained(adapter)
    rows = {"tag_rows": torch.randn(6, 32), "tag_head_rows": torch.randn(6, 32)}
    save_file(rows, adapter / "tag_rows.safetensors")
    tags.save(adapter)

    model = load_reference(folder)
    model.resize_token_embeddings(VOCAB + 4, mean_resizing=False)
    with torch.no_grad():
        if not model.config.tie_word_embeddings:
            model.get_output_embeddings().weight[list(tags.ids)] = rows["tag_head_rows"]
        model.get_input_embeddings().weight[list(tags.ids)] = rows["tag_rows"]
    ids = [*prompt(1, 20), tags.promise, 3, tags.sync]
    expected = reference_logits(PeftModel.from_pretrained(model, str(adapter)), ids)
    engine = Engine(EngineConfig(model=str(folder), adapter=str(adapter)))
    torch.testing.assert_close(prompt_logits(engine, ids), expected, atol=1e-4, rtol=0)


def test_architecture_of_a_gemma3() -> None:
    """Guards what is read against transformers' meaning of it: a window and a rotary base for each kind of layer."""
    config = make_config(FAMILIES["gemma3"])
    config.architectures = ["Gemma3ForCausalLM"]
    architecture = Architecture.read(config)
    assert architecture.windows == (WINDOW, None)
    assert [layer.window for layer in architecture.layers] == [WINDOW, None, WINDOW]
    local, full = architecture.rotaries
    assert local.inverse_frequencies[:2] == pytest.approx((1.0, 1e4**-0.25))
    assert full.inverse_frequencies[:2] == pytest.approx((1 / 8, 1e6**-0.25 / 8))
    assert [layer.rotary for layer in architecture.layers] == [0, 1, 0]


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        ("llama", {"architectures": ["OPTForCausalLM"]}, "is OPTForCausalLM; supported: LlamaForCausalLM, .*Gemma3For"),
        ("qwen3", {"architectures": ["Qwen3MoeForCausalLM"]}, "is Qwen3MoeForCausalLM; supported: LlamaForCausalLM"),
        ("gemma3", {"architectures": ["Gemma3ForConditionalGeneration"]}, "is Gemma3ForConditionalGeneration; supp"),
        ("llama", {"architectures": None}, "architecture is none; supported"),
        ("llama", {"hidden_act": "relu"}, "hidden_act is 'relu'; .*'silu', 'gelu_pytorch_tanh'"),
        ("gemma2", {"hidden_activation": "gelu"}, "hidden_activation is 'gelu'"),
        ("qwen2", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "rope_type is 'dynamic'; .*'yarn'"),
        ("llama", {"rope_parameters": {"rope_type": "longrope"}}, "rope_type is 'longrope'"),
        ("llama", {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "factor is 0.5"),
        ("gemma3", {"attn_logit_softcapping": 5.0}, "attn_logit_softcapping is 5.0; supported .*: None"),
        ("gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
        ("gemma2", {"sliding_window": None}, "sliding_window is None; its sliding layers need 1 or more"),
        ("mistral", {"sliding_window": 0}, "sliding_window is 0"),
        ("qwen3", {"layer_types": [FULL, "chunked_attention", FULL]}, "layer_types entry is 'chunked_attention'"),
        ("llama", {"num_key_value_heads": 3}, "num_key_value_heads is 3; allowed: a divisor of .* 4"),
        ("llama", {"quantization_config": {"quant_method": "fp8"}}, "quantization_config is .*fp8"),
    ],
)
def test_what_is_not_supported(family: str, change: dict[str, object], message: str) -> None:
    """Guards against wrong text from a model that the forward pass does not compute: it names value and choice."""
    config = make_config(FAMILIES[family])
    config.architectures = [AutoModelForCausalLM.from_config(config).__class__.__name__]
    for field, value in change.items():
        setattr(config, field, value)
    with pytest.raises(ModelError, match=message):
        check_supported(config)
    with pytest.raises(ModelError, match=message):
        Architecture.read(config)


def test_rope_scaling_without_its_number(tmp_path: Path) -> None:
    """Guards against a traceback from inside transformers, which only warns of such a value."""
    save_family(tmp_path, "mistral")
    config = AutoConfig.from_pretrained(tmp_path)
    config.rope_parameters = {"rope_type": "linear", "rope_theta": 1e4, "factor": None}
    config.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"rope_parameters .* cannot be used"):
        Engine(EngineConfig(model=str(tmp_path)))
