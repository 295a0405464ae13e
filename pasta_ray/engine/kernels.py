"""Which implementation of a step's parts fits a config."""

from dataclasses import dataclass

import torch

from pasta_ray.engine.config import EngineConfig
from pasta_ray.engine.fused import FusedOps
from pasta_ray.engine.int8 import Int8Linear, check_int8_supported
from pasta_ray.engine.linear import make_linear
from pasta_ray.engine.model import MakeLinear, MakeOps
from pasta_ray.engine.ops import TorchOps
from pasta_ray.errors import InputError


@dataclass(frozen=True)
class Kernels:
    """The matrix products, and everything between them."""

    make_linear: MakeLinear
    make_ops: MakeOps


def choose_kernels(config: EngineConfig) -> Kernels:
    """Raises InputError where this machine cannot compute what the config asks for."""
    if config.device != "cpu" and not torch.cuda.is_available():
        raise InputError(f"device is {config.device!r}, but torch finds no GPU; allowed here: cpu")
    if config.quantization == "int8":
        check_int8_supported()
        return Kernels(Int8Linear, FusedOps)
    fuses = config.device == "cpu" and config.dtype == "float32"
    return Kernels(make_linear, FusedOps if fuses else TorchOps)
