"""What a model computes, read from its ``transformers`` configuration.

The supported families differ in a few facts only. They are gathered here, so that the forward pass asks for a fact
and never for a family's name.
"""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import PretrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from pasta_ray.errors import ModelError

SANDWICHED = ("Gemma2ForCausalLM", "Gemma3ForCausalLM")
GEMMA = ("GemmaForCausalLM", *SANDWICHED)
QK_NORM = ("Qwen3ForCausalLM", "Gemma3ForCausalLM")
SUPPORTED = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", *GEMMA)
ACTIVATIONS = ("silu", "gelu_pytorch_tanh")
FULL, SLIDING = "full_attention", "sliding_attention"
ROPE_TYPES = ("default", "linear", "llama3", "yarn")  # those whose frequencies do not change with the length


@dataclass(frozen=True)
class Rotary:
    """RoPE's angle per position for each of the head's D / 2 pairs, and the factor on its sine and cosine."""

    inverse_frequencies: tuple[float, ...]
    scaling: float


@dataclass(frozen=True)
class LayerKind:
    """``window``: a query sees keys that stand less than this before it, None sees all. ``rotary`` points into
    ``Architecture.rotaries``."""

    window: int | None
    rotary: int


@dataclass(frozen=True)
class Architecture:
    """The facts in which the families differ, and the sizes that no weight's shape tells.

    ``norm_offset`` is added to the norms' stored weights. ``attention_cap`` and ``logit_cap`` bound scores and logits
    by ``cap * tanh(x / cap)``. ``embedding_scale`` multiplies embeddings. With ``has_qk_norm`` each query and key head
    is normed before RoPE, with ``has_sandwich_norms`` also what attention and MLP give, before it is added.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    norm_offset: float
    activation: str
    has_qk_norm: bool
    has_sandwich_norms: bool
    attention_scale: float
    attention_cap: float | None
    logit_cap: float | None
    embedding_scale: float | None
    rotaries: tuple[Rotary, ...]
    layers: tuple[LayerKind, ...]
    has_tied_head: bool
    max_positions: int

    @property
    def windows(self) -> tuple[int | None, ...]:
        """The layers' distinct windows."""
        return tuple(dict.fromkeys(layer.window for layer in self.layers))

    @classmethod
    def read(cls, config: PretrainedConfig) -> "Architecture":
        """Raises ModelError for what is not supported, see :func:`check_supported`."""
        check_supported(config)
        name = _name(config)
        is_gemma, is_sandwiched = name in GEMMA, name in SANDWICHED
        head_dim, layer_types = _head_dim(config), _layer_types(config)
        rotary_of_type = {layer_type: _read_rotary(config, layer_type) for layer_type in dict.fromkeys(layer_types)}
        rotaries = tuple(dict.fromkeys(rotary_of_type.values()))
        window_of_type = {FULL: None, SLIDING: getattr(config, "sliding_window", None)}
        return cls(
            num_heads=config.num_attention_heads,
            num_kv_heads=config.num_key_value_heads,
            head_dim=head_dim,
            norm_eps=config.rms_norm_eps,
            norm_offset=1.0 if is_gemma else 0.0,
            activation=getattr(config, _activation_field(name)),
            has_qk_norm=name in QK_NORM,
            has_sandwich_norms=is_sandwiched,
            attention_scale=(config.query_pre_attn_scalar if is_sandwiched else head_dim) ** -0.5,
            attention_cap=config.attn_logit_softcapping if is_sandwiched else None,
            logit_cap=config.final_logit_softcapping if is_sandwiched else None,
            embedding_scale=config.hidden_size**0.5 if is_gemma else None,
            rotaries=rotaries,
            layers=tuple(LayerKind(window_of_type[t], rotaries.index(rotary_of_type[t])) for t in layer_types),
            has_tied_head=bool(config.tie_word_embeddings),
            max_positions=config.max_position_embeddings,
        )


def check_supported(config: PretrainedConfig) -> None:
    """Raise ModelError, naming the value and what is supported, unless the forward pass computes exactly this model."""
    name = _name(config)
    if name not in SUPPORTED:
        raise ModelError(f"the model's architecture is {name}; supported: {', '.join(SUPPORTED)}")
    activation = _activation_field(name)
    _check(name, activation, getattr(config, activation), ACTIVATIONS)
    _check(name, "quantization_config", getattr(config, "quantization_config", None), (None,))
    _check(name, "use_bidirectional_attention", getattr(config, "use_bidirectional_attention", None), (None, False))
    if name == "Gemma3ForCausalLM":
        # transformers reads this value for Gemma3 but does not apply it.
        _check(name, "attn_logit_softcapping", config.attn_logit_softcapping, (None,))
    if config.num_key_value_heads < 1 or config.num_attention_heads % config.num_key_value_heads:
        raise ModelError(
            f"the model's num_key_value_heads is {config.num_key_value_heads}; allowed: a divisor of its"
            f" num_attention_heads, {config.num_attention_heads}"
        )
    layer_types = _layer_types(config)
    for layer_type in dict.fromkeys(layer_types):
        _check(name, "layer_types entry", layer_type, (FULL, SLIDING))
        rope = _rope_parameters(config, layer_type)
        _check(name, "rope_type", rope.get("rope_type"), ROPE_TYPES)
        _check(name, "partial_rotary_factor", rope.get("partial_rotary_factor") or 1.0, (1.0,))
    if SLIDING in layer_types and (config.sliding_window is None or config.sliding_window < 1):
        raise ModelError(f"the model's sliding_window is {config.sliding_window}; its sliding layers need 1 or more")


def _check(name: str, field: str, value: object, supported: tuple[object, ...]) -> None:
    if value not in supported:
        raise ModelError(
            f"the model's {field} is {value!r}; supported for {name}: {', '.join(repr(one) for one in supported)}"
        )


def _name(config: PretrainedConfig) -> str:
    return (config.architectures or ["none"])[0]


def _activation_field(name: str) -> str:
    return "hidden_activation" if name in SANDWICHED else "hidden_act"


def _head_dim(config: PretrainedConfig) -> int:
    head_dim: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return head_dim


def _layer_types(config: PretrainedConfig) -> tuple[str, ...]:
    """Llama and the first Gemma have no windows whatever their configuration says, and Mistral one for all layers."""
    num_layers: int = config.num_hidden_layers
    if _name(config) in ("LlamaForCausalLM", "GemmaForCausalLM"):
        return (FULL,) * num_layers
    if _name(config) == "MistralForCausalLM":
        return (FULL if config.sliding_window is None else SLIDING,) * num_layers
    return tuple(config.layer_types)


def _rope_parameters(config: PretrainedConfig, layer_type: str) -> dict[str, Any]:
    """Gemma3's stand under each layer type; the other families have one set for all."""
    parameters: dict[str, Any] = config.rope_parameters or {}
    return parameters[layer_type] or {} if _name(config) == "Gemma3ForCausalLM" else parameters


def _read_rotary(config: PretrainedConfig, layer_type: str) -> Rotary:
    """RoPE, Su et al. 2021 (arXiv 2104.09864), with the frequencies scaled as ``transformers`` scales them."""
    parameters = _rope_parameters(config, layer_type)
    nested = {"layer_type": layer_type} if layer_type in config.rope_parameters else {}
    try:
        if parameters["rope_type"] == "default":
            head_dim = _head_dim(config)
            exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
            frequencies, scaling = 1.0 / (parameters["rope_theta"] ** exponents), 1.0
        else:
            frequencies, scaling = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config, **nested)
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise ModelError(f"the model's rope_parameters {parameters} cannot be used: {error!r}") from error
    return Rotary(tuple(frequencies.tolist()), scaling)
