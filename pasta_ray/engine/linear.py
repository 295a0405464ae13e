"""The matrix products of a step, one class for each way to compute them.

On CPU ``F.linear`` reads the weights fastest for up to three rows, and wastes most of the machine for four to sixteen;
oneDNN with weights laid out once does not.
"""

from typing import Protocol, cast

import torch
import torch.nn.functional as F

FEW_ROWS = 3
ROWS_HINT = 8  # rows of a typical decode step, which oneDNN lays the weights out for


class Linear(Protocol):
    """``x [rows, in] -> [rows, out]``."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor: ...


class PlainLinear:
    """``F.linear``, for every device."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.weight = weight.contiguous()
        self.bias = bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight, self.bias)


class PackedLinear:
    """oneDNN on CPU, over a laid-out copy of the weight. In float32 the plain weight stays too: for up to three rows
    ``F.linear`` reads it faster."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        weight = weight.contiguous()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS_HINT)
        self.few = PlainLinear(weight, bias) if weight.dtype == torch.float32 else None
        self.bias = bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self.few is not None and len(x) <= FEW_ROWS:
            return self.few(x)
        y = torch.ops.mkldnn._linear_pointwise.default(x, self.weight, self.bias, "none", [], "")
        return cast(torch.Tensor, y)


def make_linear(weight: torch.Tensor, bias: torch.Tensor | None) -> Linear:
    """The fastest exact form for the weight's device and type. weight: [out, in]."""
    packs = weight.device.type == "cpu" and torch._C._has_mkldnn
    if packs and weight.dtype == torch.bfloat16:
        packs = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return PackedLinear(weight, bias) if packs else PlainLinear(weight, bias)
