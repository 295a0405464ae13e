"""The element-wise part of a layer, behind one interface: here in torch's own operations, for every device and type.

Axes: T row (token), E hidden, N head (query heads, then key heads, then value heads), D head dimension, I intermediate;
X is all N heads' D one after the other, or gate and then up; H KV head, Q query rows, S slot of a request.
"""

from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch
import torch.nn.functional as F

from pasta_ray.engine.architecture import Architecture

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": F.silu,
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
}


Rotation = tuple[torch.Tensor, torch.Tensor]
"""Cosine and sine, each [T, D]."""


class Ops(Protocol):
    """A norm's weight may be float32 where the rows are not: its product is then rounded once, not twice."""

    def norm(self, x_TE: torch.Tensor, weight_E: torch.Tensor) -> torch.Tensor:
        """RMSNorm, Zhang and Sennrich 2019 (arXiv 1910.07467), in float32. Gives [T, E] of the type of ``x_TE``."""
        ...

    def add_norm(self, hidden_TE: torch.Tensor, delta_TE: torch.Tensor, weight_E: torch.Tensor) -> torch.Tensor:
        """Add ``delta_TE`` to ``hidden_TE`` in place, and give the norm of the sum."""
        ...

    def norm_heads(self, qkv_TND: torch.Tensor, q_norm_D: torch.Tensor, k_norm_D: torch.Tensor) -> None:
        """Norm each query head and each key head, in place."""
        ...

    def place(
        self,
        qkv_TND: torch.Tensor,
        rotation: Rotation,
        slots_T: torch.Tensor,
        k_HSD: torch.Tensor,
        v_HSD: torch.Tensor,
    ) -> torch.Tensor:
        """Turn one request's query and key heads by RoPE, Su et al. 2021 (arXiv 2104.09864), in the half-split form: d
        pairs with d + D / 2, and both halves of the cosine and of the sine are equal. Write the keys, and the values as
        they are, into their slots of one layer, and give the queries, [H, Q, D]: the rows of all query heads of a KV
        head one below the other. May change ``qkv_TND``."""
        ...

    def gate(self, gate_up_TX: torch.Tensor) -> torch.Tensor:
        """``activation(gate) * up``, [T, I]."""
        ...


class TorchOps:
    """Ops for every device and type."""

    def __init__(self, architecture: Architecture) -> None:
        self.num_heads = architecture.num_heads
        self.num_kv_heads = architecture.num_kv_heads
        self.head_dim = architecture.head_dim
        self.norm_eps = architecture.norm_eps
        self.activation = ACTIVATIONS[architecture.activation]

    def norm(self, x_TE: torch.Tensor, weight_E: torch.Tensor) -> torch.Tensor:
        x32_TE = x_TE.float()
        scale_T1 = torch.rsqrt(x32_TE.square().mean(-1, keepdim=True) + self.norm_eps)
        return (weight_E * (x32_TE * scale_T1).to(weight_E.dtype)).to(x_TE.dtype)

    def add_norm(self, hidden_TE: torch.Tensor, delta_TE: torch.Tensor, weight_E: torch.Tensor) -> torch.Tensor:
        return self.norm(hidden_TE.add_(delta_TE), weight_E)

    def norm_heads(self, qkv_TND: torch.Tensor, q_norm_D: torch.Tensor, k_norm_D: torch.Tensor) -> None:
        q_TND, k_TND, _ = self._split(qkv_TND)
        for heads_TND, weight_D in ((q_TND, q_norm_D), (k_TND, k_norm_D)):
            flat_XD = heads_TND.reshape(-1, self.head_dim)
            heads_TND.copy_(self.norm(flat_XD, weight_D).view_as(heads_TND))

    def place(
        self,
        qkv_TND: torch.Tensor,
        rotation: Rotation,
        slots_T: torch.Tensor,
        k_HSD: torch.Tensor,
        v_HSD: torch.Tensor,
    ) -> torch.Tensor:
        cos_TD, sin_TD = rotation
        qk_TND = qkv_TND[:, : self.num_heads + self.num_kv_heads]
        first_TND, second_TND = qk_TND.chunk(2, dim=-1)
        turned_TND = torch.cat((-second_TND, first_TND), dim=-1)
        qk_TND.mul_(cos_TD[:, None]).addcmul_(turned_TND, sin_TD[:, None])
        q_TND, k_TND, v_TND = self._split(qkv_TND)
        k_HSD[:, slots_T] = k_TND.transpose(0, 1)
        v_HSD[:, slots_T] = v_TND.transpose(0, 1)
        q_HGTD = q_TND.reshape(len(q_TND), self.num_kv_heads, -1, self.head_dim).permute(1, 2, 0, 3)
        return q_HGTD.reshape(self.num_kv_heads, -1, self.head_dim)

    def _split(self, qkv_TND: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.split(qkv_TND, [self.num_heads, self.num_kv_heads, self.num_kv_heads], dim=1)

    def gate(self, gate_up_TX: torch.Tensor) -> torch.Tensor:
        gate_TI, up_TI = gate_up_TX.chunk(2, dim=-1)
        return self.activation(gate_TI) * up_TI
