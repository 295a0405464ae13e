"""KV out of a slab as an array, and into another slab or prefix cache.

Axes: L layer, H KV head, N token, S slot, D head dimension.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.dlpack import from_dlpack

from pasta_ray.engine.kv import KVBlock
from pasta_ray.engine.slab import KVShape, Slab

_STORED_AS = {torch.bfloat16: torch.int16}  # numpy has no bfloat16: its bits travel


def fits(block: KVBlock, shape: KVShape) -> bool:
    """Whether slots of that shape can hold the block's tokens."""
    dtype = from_dlpack(block.data[:0]).dtype
    layers_and_heads = (2, shape.num_layers, shape.num_kv_heads)
    same_axes = block.data.shape[:3] == layers_and_heads and block.data.shape[4] == shape.head_dim
    return same_axes and dtype == _STORED_AS.get(shape.dtype, shape.dtype)


def tensors_of(block: KVBlock, dtype: torch.dtype) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Keys and values, one [H, N, D] view a layer; not to be written to."""
    keys, values = ([from_dlpack(layer).view(dtype) for layer in part] for part in block.data)
    return keys, values


def take_kv(slab: Slab, slots: list[int]) -> KVBlock:
    """A copy of what ``slots`` hold, in their order."""
    index = slab.index(slots)
    parts = [[tensor[:, index] for tensor in tensors] for tensors in (slab.keys, slab.values)]
    return pack(parts[0], parts[1])


def put_kv(slab: Slab, slots: list[int], block: KVBlock) -> None:
    """Write ``block`` into ``slots``."""
    assert block.num_tokens == len(slots), "as many slots as tokens"
    index = slab.index(slots)
    for own, given in zip((slab.keys, slab.values), tensors_of(block, slab.shape.dtype), strict=True):
        for own_HSD, given_HND in zip(own, given, strict=True):
            own_HSD[:, index] = given_HND.to(own_HSD.device)


def pack(keys: Sequence[torch.Tensor], values: Sequence[torch.Tensor]) -> KVBlock:
    """One array of [H, N, D] tensors, one a layer."""
    num_heads, num_tokens, head_dim = keys[0].shape
    stored = _STORED_AS.get(keys[0].dtype, keys[0].dtype)
    numpy_dtype = torch.empty(0, dtype=stored).numpy().dtype
    data = np.empty((2, len(keys), num_heads, num_tokens, head_dim), dtype=numpy_dtype)
    for part, tensors in enumerate((keys, values)):
        for layer, tensor in enumerate(tensors):
            data[part, layer] = tensor.view(stored).cpu().numpy()
    return KVBlock(data)
