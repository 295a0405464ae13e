"""The forward pass of a Llama model over rows of many requests at once.

Axes: T row (token) of the batch, E hidden, L layer, H KV head, G query heads of a KV head, D head dimension,
Q = G × rows of one request, S slot, V vocabulary, R row whose logits are needed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from transformers import PretrainedConfig

from pasta_ray.engine.linear import Linear, make_linear
from pasta_ray.engine.slab import KVShape, Slab
from pasta_ray.errors import ModelError

SUPPORTED = ("LlamaForCausalLM",)


@dataclass(frozen=True)
class RequestRows:
    """Rows ``[start, stop)`` of the batch belong to one request; ``slots`` are where their KV goes. ``masks``
    (additive, [Q, S] with query heads outermost) are what they see of its slots ``[0, S)``, one for each sliding
    window that the model's layers have, under None where a layer has none."""

    slab: Slab
    start: int
    stop: int
    slots: slice | torch.Tensor
    masks: Mapping[int | None, torch.Tensor]


@dataclass(frozen=True)
class Layer:
    """One block's weights; Q, K and V are one product, gate and up another."""

    attention_norm: torch.Tensor
    qkv: Linear
    output: Linear
    mlp_norm: torch.Tensor
    gate_up: Linear
    down: Linear


class LlamaModel:
    """Weights in their fastest form, and the forward pass. Holds no state of any request."""

    def __init__(
        self, config: PretrainedConfig, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype, device: torch.device
    ) -> None:
        check_supported(config)
        self.num_heads: int = config.num_attention_heads
        self.num_kv_heads: int = config.num_key_value_heads
        self.head_dim: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.norm_eps: float = config.rms_norm_eps
        self.max_positions: int = config.max_position_embeddings
        self.windows: tuple[int | None, ...] = (None,)
        exponents_D = torch.arange(0, self.head_dim, 2, dtype=torch.float32, device=device) / self.head_dim
        self.inverse_frequency_D = 1.0 / (config.rope_parameters["rope_theta"] ** exponents_D)
        load = _Weights(tensors, dtype, device)
        self.embedding_VE = load("model.embed_tokens.weight")
        self.vocab_size = len(self.embedding_VE)
        self.layers = [_load_layer(load, index) for index in range(config.num_hidden_layers)]
        self.norm_E = load("model.norm.weight")
        head = "model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"
        self.head = load.linear(head)

    @property
    def kv_shape(self) -> KVShape:
        embedding = self.embedding_VE
        return KVShape(len(self.layers), self.num_kv_heads, self.head_dim, embedding.dtype, embedding.device)

    def forward(
        self,
        ids_T: torch.Tensor,
        positions_T: torch.Tensor,
        requests: Sequence[RequestRows],
        logit_rows_R: torch.Tensor,
    ) -> torch.Tensor:
        """Write the rows' KV into their slabs and give the logits, float32 [R, V], behind ``logit_rows_R``."""
        hidden_TE = self.embedding_VE[ids_T]
        rotation = self._rotation(positions_T)
        for index, layer in enumerate(self.layers):
            normed_TE = self._norm(hidden_TE, layer.attention_norm)
            attended_TE = self._attend(index, layer.qkv(normed_TE), rotation, requests)
            hidden_TE = hidden_TE + layer.output(attended_TE)
            gate_T, up_T = layer.gate_up(self._norm(hidden_TE, layer.mlp_norm)).chunk(2, dim=-1)
            hidden_TE = hidden_TE + layer.down(F.silu(gate_T) * up_T)
        if not len(logit_rows_R):
            return hidden_TE.new_empty((0, self.vocab_size), dtype=torch.float32)
        return self.head(self._norm(hidden_TE[logit_rows_R], self.norm_E)).float()

    def _norm(self, x_TE: torch.Tensor, weight_E: torch.Tensor) -> torch.Tensor:
        """RMSNorm, Zhang and Sennrich 2019 (arXiv 1910.07467), in float32 as the reference has it."""
        x32_TE = x_TE.float()
        scale_T1 = torch.rsqrt(x32_TE.square().mean(-1, keepdim=True) + self.norm_eps)
        return weight_E * (x32_TE * scale_T1).to(x_TE.dtype)

    def _rotation(self, positions_T: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosine and sine for each row, [T, 1, D]; the first half of the sine is negated, for :func:`_rotate`."""
        angle_TD = positions_T[:, None].float() * self.inverse_frequency_D
        cos_TD, sin_TD = angle_TD.cos(), angle_TD.sin()
        dtype = self.embedding_VE.dtype
        cos_T1D = torch.cat((cos_TD, cos_TD), dim=-1)[:, None].to(dtype)
        return cos_T1D, torch.cat((-sin_TD, sin_TD), dim=-1)[:, None].to(dtype)

    def _attend(
        self,
        index: int,
        qkv_TX: torch.Tensor,
        rotation: tuple[torch.Tensor, torch.Tensor],
        requests: Sequence[RequestRows],
    ) -> torch.Tensor:
        num_rows, num_heads, num_kv_heads = len(qkv_TX), self.num_heads, self.num_kv_heads
        qkv_TND = qkv_TX.view(num_rows, num_heads + 2 * num_kv_heads, self.head_dim)
        qk_TND = _rotate(qkv_TND[:, : num_heads + num_kv_heads], *rotation)
        q_HGTD = qk_TND[:, :num_heads].view(num_rows, num_kv_heads, -1, self.head_dim).permute(1, 2, 0, 3)
        k_HTD = qk_TND[:, num_heads:].transpose(0, 1)
        v_HTD = qkv_TND[:, num_heads + num_kv_heads :].transpose(0, 1)
        attended = []
        for request in requests:
            rows, mask_QS = slice(request.start, request.stop), request.masks[None]
            k_HSD, v_HSD = request.slab.keys[index], request.slab.values[index]
            k_HSD[:, request.slots] = k_HTD[:, rows]
            v_HSD[:, request.slots] = v_HTD[:, rows]
            seen = slice(0, mask_QS.shape[1])
            q_HQD = q_HGTD[:, :, rows].reshape(num_kv_heads, -1, self.head_dim)
            out_1HQD = F.scaled_dot_product_attention(
                q_HQD[None], k_HSD[None, :, seen], v_HSD[None, :, seen], attn_mask=mask_QS
            )
            out_HGTD = out_1HQD.view(num_kv_heads, -1, request.stop - request.start, self.head_dim)
            attended.append(out_HGTD.permute(2, 0, 1, 3).reshape(request.stop - request.start, -1))
        return attended[0] if len(attended) == 1 else torch.cat(attended)


def _rotate(x_TND: torch.Tensor, cos_T1D: torch.Tensor, signed_sin_T1D: torch.Tensor) -> torch.Tensor:
    """RoPE, Su et al. 2021 (arXiv 2104.09864), in the half-split form that Llama checkpoints use."""
    return x_TND * cos_T1D + x_TND.roll(x_TND.shape[-1] // 2, dims=-1) * signed_sin_T1D


def check_supported(config: PretrainedConfig) -> None:
    """Raise ModelError unless the forward pass above computes exactly this model."""
    architecture = (config.architectures or ["none"])[0]
    if architecture not in SUPPORTED:
        raise ModelError(f"the model's architecture is {architecture}; supported: {', '.join(SUPPORTED)}")
    rope = config.rope_parameters or {}
    wanted = {
        "hidden_act": (config.hidden_act, "silu"),
        "rope_type": (rope.get("rope_type", "default"), "default"),
        "partial_rotary_factor": (rope.get("partial_rotary_factor") or 1.0, 1.0),
    }
    for name, (value, supported) in wanted.items():
        if value != supported:
            raise ModelError(f"the model's {name} is {value!r}; supported for {architecture}: {supported!r}")


class _Weights:
    """Named tensors, cast and moved as they are asked for; a missing one is a ModelError."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype, device: torch.device) -> None:
        self.tensors, self.dtype, self.device = tensors, dtype, device

    def __call__(self, name: str) -> torch.Tensor:
        if name not in self.tensors:
            raise ModelError(f"the checkpoint has no tensor {name}")
        return self.tensors[name].to(device=self.device, dtype=self.dtype)

    def linear(self, *names: str) -> Linear:
        """The weights one below the other as one product, with their biases where they have any."""
        biases = [name.removesuffix("weight") + "bias" for name in names]
        bias = torch.cat([self(name) for name in biases]) if biases[0] in self.tensors else None
        return make_linear(torch.cat([self(name) for name in names]), bias)


def _load_layer(load: _Weights, index: int) -> Layer:
    layer = f"model.layers.{index}"
    attention, mlp = f"{layer}.self_attn", f"{layer}.mlp"
    return Layer(
        attention_norm=load(f"{layer}.input_layernorm.weight"),
        qkv=load.linear(*(f"{attention}.{part}_proj.weight" for part in "qkv")),
        output=load.linear(f"{attention}.o_proj.weight"),
        mlp_norm=load(f"{layer}.post_attention_layernorm.weight"),
        gate_up=load.linear(f"{mlp}.gate_proj.weight", f"{mlp}.up_proj.weight"),
        down=load.linear(f"{mlp}.down_proj.weight"),
    )
