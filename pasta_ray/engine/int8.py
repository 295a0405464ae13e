"""Dynamic int8 on CPU: each output channel of a weight and each row of activations has its own scale.

Rows are quantised by us and not by the library, whose dynamic operators take one scale for the whole input: there a
row's result depends on its neighbours. The products themselves are exact sums of integers, so the two libraries agree
bit for bit, and the faster one for a number of rows may be taken freely.

Axes: T row, K inputs, N outputs.
"""

import warnings

import numpy as np
import torch

from pasta_ray.engine import fused
from pasta_ray.errors import InputError

WEIGHT_LEVELS = 127
FEW_ROWS = 2  # up to here fbgemm is faster, beyond it oneDNN
MANY_OUTPUTS = 16_384  # a weight this long is oneDNN's at any number of rows


def check_int8_supported() -> None:
    """Raise InputError where this machine's torch has no int8 products."""
    if "x86" not in torch.backends.quantized.supported_engines or not torch._C._has_mkldnn:
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
        x_TK = x.numpy()
        scale_T = np.empty(len(x_TK), dtype=np.float32)
        y_TN = self._few(x_TK, scale_T) if len(x_TK) <= self._few_rows else self._many(x_TK, scale_T)
        fused.rescale(y_TN.numpy(), scale_T)
        return y_TN if self.bias_N is None else y_TN.add_(self.bias_N)

    def _few(self, x_TK: fused.Floats, scale_T: fused.Floats) -> torch.Tensor:
        """Rounded values, which fbgemm's own quantisation (by 1) leaves as they are."""
        rounded_TK = np.empty_like(x_TK)
        fused.quantise(x_TK, np.float32(self._levels), np.float32(0), rounded_TK, scale_T)
        y_TN: torch.Tensor = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
            torch.from_numpy(rounded_TK), 1.0, self._levels + 1, self._fbgemm
        )
        return y_TN

    def _many(self, x_TK: fused.Floats, scale_T: fused.Floats) -> torch.Tensor:
        zero_point = self._levels + 1
        uint8_TK = np.empty(x_TK.shape, dtype=np.uint8)
        fused.quantise(x_TK, np.float32(self._levels), np.float32(zero_point), uint8_TK, scale_T)
        y_TN: torch.Tensor = torch.ops.onednn.qlinear_pointwise(
            torch.from_numpy(uint8_TK), 1.0, zero_point, self._onednn, self._scale_N, self._zero_points_N,
            None, 1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip
        return y_TN


def _pack_fbgemm(int8_NK: torch.Tensor, scale_N: torch.Tensor) -> object:
    with warnings.catch_warnings():
        # Quantised tensors are deprecated (https://github.com/pytorch/pytorch/issues/184982); this is their only use.
        warnings.simplefilter("ignore")
        zero_points_N = torch.zeros(len(scale_N), dtype=torch.int64)
        quantised = torch._make_per_channel_quantized_tensor(int8_NK, scale_N.double(), zero_points_N, 0)
        return torch.ops.quantized.linear_prepack(quantised, None)
