"""Dynamic int8 on CPU: each output channel of a weight and each row of activations has its own scale.

Activations take two digits of 8 bits, which are two rows of one product: a step of few rows waits for the weights, not
for arithmetic, and one digit alone costs nine times the quality (docs/log.md).

Rows are quantised by us and not by the library, whose dynamic operators take one scale for the whole input: there a
row's result depends on its neighbours. The products themselves are exact sums of integers, so fbgemm and oneDNN agree
bit for bit, and the one that is faster for a number of rows may be taken freely.

Axes: T row, K inputs, N outputs.
"""

import warnings
from typing import cast

import numpy as np
import torch

from pasta_ray.engine import fused
from pasta_ray.errors import InputError

WEIGHT_LEVELS = 127
FEW_ROWS = 1  # up to here fbgemm, which starts faster; beyond it oneDNN, which multiplies faster
MANY_OUTPUTS = 16_384  # a weight of so many outputs is oneDNN's at any number of rows


def has_int8() -> bool:
    """Whether this machine's torch has both libraries' products."""
    return "x86" in torch.backends.quantized.supported_engines and bool(torch._C._has_mkldnn)


def int8_pays() -> bool:
    """Whether int8 is faster than float32 here: without VNNI's products of bytes it is slower (docs/log.md)."""
    return has_int8() and torch.cpu._is_vnni_supported()


def check_int8_supported() -> None:
    """Raise InputError where int8 cannot run."""
    if not has_int8():
        raise InputError("quantization 'int8' needs torch's x86 kernels (fbgemm and oneDNN); allowed here: None")


def activation_levels() -> int:
    """Without VNNI instructions pairs of products are summed in 16 bits, which overflow for more than 7 bits."""
    return 127 if torch.cpu._is_vnni_supported() else 63


class Int8Linear:
    """``x [T, K] -> [T, N]``, symmetric in weights and activations; keeps the weight in both libraries' layouts."""

    def __init__(self, weight_NK: torch.Tensor, bias_N: torch.Tensor | None) -> None:
        self.bias_N = bias_N
        self._levels = activation_levels()
        scale_N = weight_NK.abs().amax(dim=1).float() / WEIGHT_LEVELS
        self._scale_N = torch.where(scale_N > 0, scale_N, torch.ones_like(scale_N))
        int8_NK = (weight_NK / self._scale_N[:, None]).round().to(torch.int8)
        self._few_rows = FEW_ROWS if len(weight_NK) < MANY_OUTPUTS else 0
        self._zero_points_N = torch.zeros(len(weight_NK), dtype=torch.int64)
        self._fbgemm = _pack_fbgemm(int8_NK, self._scale_N) if self._few_rows else None
        self._onednn = torch.ops.onednn.qlinear_prepack(int8_NK, None)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        x_TK, levels = x.numpy(), np.float32(self._levels)
        num_rows, num_inputs = x_TK.shape
        few = num_rows <= self._few_rows
        # fbgemm quantises by itself: rounded values pass it unchanged. oneDNN takes them as they are multiplied.
        digits_2TK = np.empty((2 * num_rows, num_inputs), dtype=np.float32 if few else np.uint8)
        scale_T = np.empty(num_rows, dtype=np.float32)
        fused.quantise(x_TK, levels, np.float32(0) if few else levels + 1, digits_2TK, scale_T)
        digits_2TN = self._multiply(torch.from_numpy(digits_2TK), few)
        y_TN = torch.empty(num_rows, digits_2TN.shape[1])
        fused.combine(digits_2TN.numpy(), scale_T, levels, y_TN.numpy())
        return y_TN if self.bias_N is None else y_TN.add_(self.bias_N)

    def _multiply(self, digits_2TK: torch.Tensor, few: bool) -> torch.Tensor:
        zero_point = self._levels + 1
        if few:
            product = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32.default(
                digits_2TK, 1.0, zero_point, self._fbgemm
            )
        else:
            product = torch.ops.onednn.qlinear_pointwise.default(
                digits_2TK, 1.0, zero_point, self._onednn, self._scale_N, self._zero_points_N,
                None, 1.0, 0, torch.float32, "none", [], "",
            )  # fmt: skip
        return cast(torch.Tensor, product)


def _pack_fbgemm(int8_NK: torch.Tensor, scale_N: torch.Tensor) -> object:
    with warnings.catch_warnings():
        # Quantised tensors are deprecated (https://github.com/pytorch/pytorch/issues/184982); this is their only use.
        warnings.simplefilter("ignore")
        zero_points_N = torch.zeros(len(scale_N), dtype=torch.int64)
        quantised = torch._make_per_channel_quantized_tensor(int8_NK, scale_N.double(), zero_points_N, 0)
        return torch.ops.quantized.linear_prepack(quantised, None)
