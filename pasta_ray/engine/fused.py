"""The element-wise part of a step on CPU, each operation one compiled loop over rows.

A step has some thirty small operations a layer. Dispatched one by one they cost more than an int8 matrix product of one
row; compiled together they cost about a microsecond each. Every loop treats a row by itself, in an order that does not
depend on how many rows there are: a row's bits never depend on its neighbours.

Axes: T row, E hidden, N heads (query, key, value), D head dimension, K inputs of a product.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt
import torch

from pasta_ray.engine.architecture import Architecture
from pasta_ray.engine.ops import Rotation, TorchOps

Floats = npt.NDArray[np.float32]

Loop = TypeVar("Loop", bound=Callable[..., None])


def _compiled(function: Loop) -> Loop:
    """Compiled when first called, and kept on disk for the next process, where anything may be written."""
    compiled = partial(numba.njit, fastmath=True, error_model="numpy", nogil=True)
    try:
        return cast(Loop, compiled(cache=True)(function))
    except RuntimeError:  # neither the package's folder nor the user's cache can be written
        return cast(Loop, compiled()(function))


@_compiled
def norm(x_TE: Floats, weight_E: Floats, eps: np.float32, out_TE: Floats) -> None:
    num_rows, size = x_TE.shape
    for t in range(num_rows):
        total = np.float32(0.0)
        for e in range(size):
            total += x_TE[t, e] * x_TE[t, e]
        scale = np.float32(1.0) / np.sqrt(total / np.float32(size) + eps)
        for e in range(size):
            out_TE[t, e] = x_TE[t, e] * scale * weight_E[e]


@_compiled
def add_norm(hidden_TE: Floats, delta_TE: Floats, weight_E: Floats, eps: np.float32, out_TE: Floats) -> None:
    num_rows, size = hidden_TE.shape
    for t in range(num_rows):
        total = np.float32(0.0)
        for e in range(size):
            value = hidden_TE[t, e] + delta_TE[t, e]
            hidden_TE[t, e] = value
            total += value * value
        scale = np.float32(1.0) / np.sqrt(total / np.float32(size) + eps)
        for e in range(size):
            out_TE[t, e] = hidden_TE[t, e] * scale * weight_E[e]


@_compiled
def place(
    qkv_TND: Floats,
    cos_TD: Floats,
    sin_TD: Floats,
    slots_T: npt.NDArray[np.int64],
    k_HSD: Floats,
    v_HSD: Floats,
    q_HGTD: Floats,
) -> None:
    num_kv_heads, num_groups, num_rows, size = q_HGTD.shape
    first_k, half = num_kv_heads * num_groups, size // 2
    for t in range(num_rows):
        cos_D, sin_D, slot = cos_TD[t], sin_TD[t], slots_T[t]
        for n in range(first_k + num_kv_heads):
            from_D = qkv_TND[t, n]
            is_query = n < first_k
            to_D = q_HGTD[n // num_groups, n % num_groups, t] if is_query else k_HSD[n - first_k, slot]
            for d in range(half):
                to_D[d] = from_D[d] * cos_D[d] - from_D[half + d] * sin_D[d]
            for d in range(half, size):
                to_D[d] = from_D[d] * cos_D[d] + from_D[d - half] * sin_D[d]
        for h in range(num_kv_heads):
            for d in range(size):
                v_HSD[h, slot, d] = qkv_TND[t, first_k + num_kv_heads + h, d]


@_compiled
def silu_gate(gate_up_TX: Floats, out_TI: Floats) -> None:
    """``gate / (1 + exp(-gate)) * up``. The exponential is 2 to a whole number, set as bits, times e to the rest, by
    its series: a call to the library's would keep the loop from taking many elements at a time."""
    num_rows, size = out_TI.shape
    for t in range(num_rows):
        for i in range(size):
            gate = gate_up_TX[t, i]
            exponent = min(max(gate * np.float32(-1.442695041), np.float32(-126.0)), np.float32(126.0))  # log2(e)
            whole = np.rint(exponent)
            rest = (exponent - whole) * np.float32(0.693147181)  # ln(2)
            power = np.float32(1 / 720)
            power = power * rest + np.float32(1 / 120)
            power = power * rest + np.float32(1 / 24)
            power = power * rest + np.float32(1 / 6)
            power = power * rest + np.float32(0.5)
            power = power * rest + np.float32(1.0)
            power = power * rest + np.float32(1.0)
            scale = np.int32((np.int32(whole) + np.int32(127)) << np.int32(23)).view(np.float32)
            out_TI[t, i] = gate / (np.float32(1.0) + power * scale) * gate_up_TX[t, size + i]


@_compiled
def quantise(x_TK: Floats, levels: np.float32, offset: np.float32, digits_2TK: Any, scale_T: Floats) -> None:
    """Two digits a value: ``x = scale * (high + low / (2 * levels))``, both rounded to ``[-levels, levels]`` and stored
    with ``offset`` added. All rows' high digits stand above all rows' low ones."""
    num_rows, size = x_TK.shape
    bits_TK = x_TK.view(np.int32)  # magnitudes order as their bits do, and integers reduce many at a time
    for t in range(num_rows):
        largest_bits = np.int32(0)
        for k in range(size):
            largest_bits = max(largest_bits, bits_TK[t, k] & np.int32(0x7FFFFFFF))
        largest = np.int32(largest_bits).view(np.float32)
        scale_T[t] = largest / levels
        inverse = levels / largest if largest > 0.0 else np.float32(0.0)
        for k in range(size):
            value = x_TK[t, k] * inverse
            high = np.rint(value)
            digits_2TK[t, k] = high + offset
            digits_2TK[num_rows + t, k] = np.rint((value - high) * (np.float32(2.0) * levels)) + offset


@_compiled
def combine(digits_2TN: Floats, scale_T: Floats, levels: np.float32, out_TN: Floats) -> None:
    """The other way for the digits' products."""
    num_rows, size = out_TN.shape
    low_scale = np.float32(0.5) / levels
    for t in range(num_rows):
        for n in range(size):
            out_TN[t, n] = scale_T[t] * (digits_2TN[t, n] + low_scale * digits_2TN[num_rows + t, n])


class FusedOps(TorchOps):
    """:class:`~pasta_ray.engine.ops.Ops` in float32 on CPU."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__(architecture)
        self._eps = np.float32(architecture.norm_eps)
        self._has_silu = architecture.activation == "silu"

    def norm(self, x_TE: torch.Tensor, weight_E: torch.Tensor) -> torch.Tensor:
        out_TE = torch.empty_like(x_TE)
        norm(x_TE.numpy(), weight_E.numpy(), self._eps, out_TE.numpy())
        return out_TE

    def add_norm(self, hidden_TE: torch.Tensor, delta_TE: torch.Tensor, weight_E: torch.Tensor) -> torch.Tensor:
        out_TE = torch.empty_like(hidden_TE)
        add_norm(hidden_TE.numpy(), delta_TE.numpy(), weight_E.numpy(), self._eps, out_TE.numpy())
        return out_TE

    def place(
        self,
        qkv_TND: torch.Tensor,
        rotation: Rotation,
        slots_T: torch.Tensor,
        k_HSD: torch.Tensor,
        v_HSD: torch.Tensor,
    ) -> torch.Tensor:
        num_kv_heads, num_groups = self.num_kv_heads, self.num_heads // self.num_kv_heads
        q_HGTD = torch.empty((num_kv_heads, num_groups, len(slots_T), self.head_dim))
        cos_TD, sin_TD = rotation
        place(
            qkv_TND.numpy(),
            cos_TD.numpy(),
            sin_TD.numpy(),
            slots_T.numpy(),
            k_HSD.numpy(),
            v_HSD.numpy(),
            q_HGTD.numpy(),
        )
        return q_HGTD.view(num_kv_heads, -1, self.head_dim)

    def gate(self, gate_up_TX: torch.Tensor) -> torch.Tensor:
        if not self._has_silu:
            return super().gate(gate_up_TX)
        out_TI = torch.empty(len(gate_up_TX), gate_up_TX.shape[1] // 2)
        silu_gate(gate_up_TX.numpy(), out_TI.numpy())
        return out_TI
