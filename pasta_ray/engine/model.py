"""The forward pass of a decoder-only model over rows of many requests at once.

Axes: T row (token) of the batch, E hidden, H KV head, G query heads of a KV head, N head (query, key and value heads),
D head dimension, X all N heads' D, Q = G × rows of one request, S slot, V vocabulary, R row whose logits are needed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from transformers import PretrainedConfig

from pasta_ray.engine.architecture import Architecture, LayerKind
from pasta_ray.engine.linear import Linear
from pasta_ray.engine.ops import Ops, Rotation
from pasta_ray.engine.slab import KVShape, Slab
from pasta_ray.errors import ModelError

MakeLinear = Callable[[torch.Tensor, torch.Tensor | None], Linear]
MakeOps = Callable[[Architecture], Ops]


@dataclass(frozen=True)
class RequestRows:
    """Rows ``[start, stop)`` of the batch belong to one request; ``slots`` are where their KV goes. ``masks``
    (additive, [Q, S] with query heads outermost) are what they see of its slots ``[0, S)``, one for each sliding
    window that the model's layers have, under None where a layer has none."""

    slab: Slab
    start: int
    stop: int
    slots: torch.Tensor
    masks: Mapping[int | None, torch.Tensor]


@dataclass(frozen=True)
class Layer:
    """One block's weights; Q, K and V are one product, gate and up another. The norm of the block's input stands in
    ``DecoderModel.input_norms``. ``q_norm`` and ``k_norm``, and the two ``*_out_norm`` of what attention and MLP give,
    are None in families without them."""

    kind: LayerKind
    qkv: Linear
    q_norm: torch.Tensor | None
    k_norm: torch.Tensor | None
    output: Linear
    attention_out_norm: torch.Tensor | None
    mlp_norm: torch.Tensor
    gate_up: Linear
    down: Linear
    mlp_out_norm: torch.Tensor | None


class DecoderModel:
    """Weights in their fastest form, and the forward pass. Holds no state of any request.

    ``windows`` are the layers' distinct sliding windows. ``input_norms`` are the weights that norm each layer's input,
    and last the head's: adding to the residual and norming the sum is then one operation everywhere.
    """

    def __init__(
        self,
        config: PretrainedConfig,
        tensors: Mapping[str, torch.Tensor],
        dtype: torch.dtype,
        device: torch.device,
        make_linear: MakeLinear,
        make_ops: MakeOps,
    ) -> None:
        self.architecture = architecture = Architecture.read(config)
        self.num_heads = architecture.num_heads
        self.num_kv_heads = architecture.num_kv_heads
        self.max_positions = architecture.max_positions
        self.windows = architecture.windows
        self.ops = make_ops(architecture)
        self.inverse_frequencies = [
            torch.tensor(rotary.inverse_frequencies, dtype=torch.float32, device=device)
            for rotary in architecture.rotaries
        ]
        load = _Weights(tensors, dtype, device, architecture.norm_offset, make_linear)
        self.embedding_VE = load("model.embed_tokens.weight")
        self.vocab_size = len(self.embedding_VE)
        prefixes = [f"model.layers.{index}" for index in range(len(architecture.layers))]
        self.layers = [
            _load_layer(load, prefix, kind, architecture)
            for prefix, kind in zip(prefixes, architecture.layers, strict=True)
        ]
        input_norms = [f"{prefix}.input_layernorm.weight" for prefix in prefixes]
        self.input_norms = [load.norm(name) for name in (*input_norms, "model.norm.weight")]
        self.head = load.linear("model.embed_tokens.weight" if architecture.has_tied_head else "lm_head.weight")

    @property
    def kv_shape(self) -> KVShape:
        embedding = self.embedding_VE
        return KVShape(
            len(self.layers), self.num_kv_heads, self.architecture.head_dim, embedding.dtype, embedding.device
        )

    def forward(
        self,
        ids_T: torch.Tensor,
        positions_T: torch.Tensor,
        requests: Sequence[RequestRows],
        logit_rows_R: torch.Tensor,
    ) -> torch.Tensor:
        """Write the rows' KV into their slabs and give the logits, float32 [R, V], behind ``logit_rows_R``."""
        ops = self.ops
        rotations = self._rotations(positions_T)
        hidden_TE = self._embed(ids_T)
        normed_TE = ops.norm(hidden_TE, self.input_norms[0])
        for index, layer in enumerate(self.layers):
            qkv_TND = layer.qkv(normed_TE).view(len(normed_TE), -1, self.architecture.head_dim)
            if layer.q_norm is not None and layer.k_norm is not None:
                ops.norm_heads(qkv_TND, layer.q_norm, layer.k_norm)
            delta_TE = layer.output(self._attend(index, qkv_TND, rotations[layer.kind.rotary], requests))
            if layer.attention_out_norm is not None:
                delta_TE = ops.norm(delta_TE, layer.attention_out_norm)
            normed_TE = ops.add_norm(hidden_TE, delta_TE, layer.mlp_norm)
            delta_TE = layer.down(ops.gate(layer.gate_up(normed_TE)))
            if layer.mlp_out_norm is not None:
                delta_TE = ops.norm(delta_TE, layer.mlp_out_norm)
            normed_TE = ops.add_norm(hidden_TE, delta_TE, self.input_norms[index + 1])
        return self._logits(normed_TE[logit_rows_R])

    def _embed(self, ids_T: torch.Tensor) -> torch.Tensor:
        hidden_TE = self.embedding_VE[ids_T]
        scale = self.architecture.embedding_scale
        if scale is None:
            return hidden_TE
        # Gemma was trained with the scale rounded to the rows' type, and transformers rounds it too.
        return hidden_TE * torch.tensor(scale, dtype=hidden_TE.dtype)

    def _rotations(self, positions_T: torch.Tensor) -> list[Rotation]:
        """Cosine and sine for each row, both [T, D], with each kind of rotary embedding that the layers have."""
        dtype = self.embedding_VE.dtype
        rotations = []
        for rotary, frequency in zip(self.architecture.rotaries, self.inverse_frequencies, strict=True):
            angle_TD = (positions_T[:, None].float() * frequency).repeat(1, 2)
            rotations.append(((angle_TD.cos() * rotary.scaling).to(dtype), (angle_TD.sin() * rotary.scaling).to(dtype)))
        return rotations

    def _attend(
        self, index: int, qkv_TND: torch.Tensor, rotation: Rotation, requests: Sequence[RequestRows]
    ) -> torch.Tensor:
        """Write the rows' keys and values into the slabs' layer ``index``, and give what the rows attend to, [T, X]."""
        window = self.layers[index].kind.window
        cos_TD, sin_TD = rotation
        attended = []
        for request in requests:
            mask_QS, num_rows = request.masks[window], request.stop - request.start
            k_HSD, v_HSD = request.slab.keys[index], request.slab.values[index]
            rows = slice(request.start, request.stop)
            q_HQD = self.ops.place(qkv_TND[rows], (cos_TD[rows], sin_TD[rows]), request.slots, k_HSD, v_HSD)
            seen = slice(0, mask_QS.shape[1])
            out_HQD = self._attention(q_HQD, k_HSD[:, seen], v_HSD[:, seen], mask_QS)
            out_HGTD = out_HQD.view(self.num_kv_heads, -1, num_rows, self.architecture.head_dim)
            attended.append(out_HGTD.permute(2, 0, 1, 3).reshape(num_rows, -1))
        return attended[0] if len(attended) == 1 else torch.cat(attended)

    def _attention(
        self, q_HQD: torch.Tensor, k_HSD: torch.Tensor, v_HSD: torch.Tensor, mask_QS: torch.Tensor
    ) -> torch.Tensor:
        scale, cap = self.architecture.attention_scale, self.architecture.attention_cap
        if cap is None:
            return F.scaled_dot_product_attention(
                q_HQD[None], k_HSD[None], v_HSD[None], attn_mask=mask_QS, scale=scale
            )[0]
        scores_HQS = _cap(q_HQD @ k_HSD.transpose(1, 2) * scale, cap) + mask_QS
        return scores_HQS.softmax(dim=-1, dtype=torch.float32).to(v_HSD.dtype) @ v_HSD

    def _logits(self, normed_RE: torch.Tensor) -> torch.Tensor:
        if not len(normed_RE):
            return normed_RE.new_empty((0, self.vocab_size), dtype=torch.float32)
        logits_RV = self.head(normed_RE).float()
        cap = self.architecture.logit_cap
        return logits_RV if cap is None else _cap(logits_RV, cap)


def _cap(x: torch.Tensor, cap: float) -> torch.Tensor:
    """Soft cap of Gemma 2 (arXiv 2408.00118, section 2)."""
    return cap * torch.tanh(x / cap)


class _Weights:
    """Named tensors, cast and moved as they are asked for; a missing one is a ModelError. All that is given out is a
    copy: a view into a checkpoint's file would keep the whole file in memory, and what an adapter has changed in it."""

    def __init__(
        self,
        tensors: Mapping[str, torch.Tensor],
        dtype: torch.dtype,
        device: torch.device,
        norm_offset: float,
        make_linear: MakeLinear,
    ) -> None:
        self.tensors, self.dtype, self.device = tensors, dtype, device
        self.norm_offset, self.make_linear = norm_offset, make_linear

    def __call__(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        return self._find(name).to(device=self.device, dtype=dtype or self.dtype, copy=True)

    def norm(self, name: str) -> torch.Tensor:
        """A norm's weight; with an offset it stays float32, since the sum is not exact in less."""
        return self(name, torch.float32) + self.norm_offset if self.norm_offset else self(name)

    def linear(self, *names: str) -> Linear:
        """The weights one below the other as one product, with their biases where they have any."""
        biases = [name.removesuffix("weight") + "bias" for name in names]
        has_bias = any(name in self.tensors for name in biases)
        bias = self._together(biases) if has_bias else None
        return self.make_linear(self._together(names), bias)

    def _together(self, names: Sequence[str]) -> torch.Tensor:
        parts = [self._find(name).to(device=self.device, dtype=self.dtype) for name in names]
        return torch.cat(parts)  # which copies one part too

    def _find(self, name: str) -> torch.Tensor:
        if name not in self.tensors:
            raise ModelError(f"the checkpoint has no tensor {name}")
        return self.tensors[name]


def _load_layer(load: _Weights, layer: str, kind: LayerKind, architecture: Architecture) -> Layer:
    attention, mlp = f"{layer}.self_attn", f"{layer}.mlp"
    qk_norm, sandwich = architecture.has_qk_norm, architecture.has_sandwich_norms
    mlp_norm = "pre_feedforward_layernorm" if sandwich else "post_attention_layernorm"
    return Layer(
        kind=kind,
        qkv=load.linear(*(f"{attention}.{part}_proj.weight" for part in "qkv")),
        q_norm=load.norm(f"{attention}.q_norm.weight") if qk_norm else None,
        k_norm=load.norm(f"{attention}.k_norm.weight") if qk_norm else None,
        output=load.linear(f"{attention}.o_proj.weight"),
        attention_out_norm=load.norm(f"{layer}.post_attention_layernorm.weight") if sandwich else None,
        mlp_norm=load.norm(f"{layer}.{mlp_norm}.weight"),
        gate_up=load.linear(f"{mlp}.gate_proj.weight", f"{mlp}.up_proj.weight"),
        down=load.linear(f"{mlp}.down_proj.weight"),
        mlp_out_norm=load.norm(f"{layer}.post_feedforward_layernorm.weight") if sandwich else None,
    )
