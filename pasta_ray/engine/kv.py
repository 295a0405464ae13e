"""KV on its way between engines: numpy arrays out of a slab, and into another one.

Axes: L layer, H KV head, N token, S slot, D head dimension. A leading axis of 2 is keys and values.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.dlpack import from_dlpack

from pasta_ray.engine.slab import KVShape, Slab

_STORED_AS = {torch.bfloat16: torch.int16}  # numpy has no bfloat16: its bits travel


@dataclass(frozen=True, eq=False)
class KVBlock:
    """Keys and values of ``num_tokens`` tokens, [2, L, H, N, D]. The array may be read-only: another process's
    memory. A view of it costs nothing, so that a block is copied once on its way out and once on its way in."""

    data: npt.NDArray[Any]

    @property
    def num_tokens(self) -> int:
        return int(self.data.shape[3])

    @property
    def num_bytes(self) -> int:
        return int(self.data.nbytes)

    @classmethod
    def joined(cls, blocks: "Sequence[KVBlock]") -> "KVBlock":
        """All tokens of ``blocks``, in order."""
        return cls(np.concatenate([block.data for block in blocks], axis=3))

    def fits(self, shape: KVShape) -> bool:
        """Whether slots of that shape can hold these tokens."""
        dtype = from_dlpack(self.data[:0]).dtype
        layers_and_heads = (2, shape.num_layers, shape.num_kv_heads)
        same_axes = self.data.shape[:3] == layers_and_heads and self.data.shape[4] == shape.head_dim
        return same_axes and dtype == _STORED_AS.get(shape.dtype, shape.dtype)

    def tensors(self, dtype: torch.dtype) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Keys and values, one [H, N, D] view a layer; not to be written to."""
        keys, values = ([from_dlpack(layer).view(dtype) for layer in part] for part in self.data)
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
    for own, given in zip((slab.keys, slab.values), block.tensors(slab.shape.dtype), strict=True):
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
