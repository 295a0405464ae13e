"""Dynamic int8 on CPU: each output channel of a weight and each row of activations has its own scale.

Activations take two digits of 8 bits, which are two rows of one product: a step of few rows waits for the weights, not
for arithmetic, and one digit alone costs nine times the quality (docs/log.md).

Rows are quantised by us and not by the library, whose dynamic operators take one scale for the whole input: there a
row's result depends on its neighbours. The products themselves are exact sums of integers, whatever their order.

Axes: T row, K inputs, N outputs.
"""

import platform

import numpy as np
import torch

from pasta_ray.engine import fused
from pasta_ray.errors import InputError

WEIGHT_LEVELS = 127


def has_int8() -> bool:
    """Whether this machine's torch has oneDNN's int8 products."""
    return platform.machine() in ("x86_64", "AMD64") and bool(torch._C._has_mkldnn)


def check_int8_supported() -> None:
    """Raise InputError where int8 cannot run."""
    if not has_int8():
        raise InputError("quantization 'int8' needs an x86-64 CPU and a torch with oneDNN; allowed here: None")


def activation_levels() -> int:
    """Without VNNI instructions pairs of products are summed in 16 bits, which overflow for more than 7 bits."""
    return 127 if torch.cpu._is_vnni_supported() else 63


class Int8Linear:
    """``x [T, K] -> [T, N]``, symmetric in weights and activations."""

    def __init__(self, weight_NK: torch.Tensor, bias_N: torch.Tensor | None) -> None:
        self.bias_N = bias_N
        self._levels = activation_levels()
        scale_N = weight_NK.abs().amax(dim=1).float() / WEIGHT_LEVELS
        self._scale_N = torch.where(scale_N > 0, scale_N, torch.ones_like(scale_N))
        int8_NK = (weight_NK / self._scale_N[:, None]).round().to(torch.int8)
        self._packed = torch.ops.onednn.qlinear_prepack(int8_NK, None)
        self._zero_points_N = torch.zeros(len(weight_NK), dtype=torch.int64)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        x_TK = x.numpy()
        levels, zero_point = np.float32(self._levels), self._levels + 1
        digits_2TK = np.empty((2 * len(x_TK), x_TK.shape[1]), dtype=np.uint8)
        scale_T = np.empty(len(x_TK), dtype=np.float32)
        fused.quantise(x_TK, levels, digits_2TK, scale_T)
        digits_2TN = torch.ops.onednn.qlinear_pointwise(
            torch.from_numpy(digits_2TK), 1.0, zero_point, self._packed, self._scale_N, self._zero_points_N,
            None, 1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip
        y_TN = torch.empty(len(x_TK), digits_2TN.shape[1])
        fused.combine(digits_2TN.numpy(), scale_T, levels, y_TN.numpy())
        return y_TN if self.bias_N is None else y_TN.add_(self.bias_N)
