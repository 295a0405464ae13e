"""The KV cache of one request: slots in time order, shared by all its branches, never copied by fork or join.

Axes: H KV head, S slot, D head dimension, B branch.
"""

from dataclasses import dataclass

import numpy as np
import torch

FIRST_CAPACITY = 256
FIRST_BRANCHES = 8


@dataclass(frozen=True)
class KVShape:
    """What one slot holds."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device


class Slab:
    """Slots ``[0, end)`` have been assigned, ``[end, capacity)`` never; a slot stays its token's until it is given back
    or the request ends. ``visible_BS[row]`` says which slots the branch of that row sees, ``positions_S`` where their
    tokens stand. ``keys`` and ``values`` hold one [H, S, D] tensor a layer: growing one needs room for one more, not
    for all."""

    def __init__(self, shape: KVShape, capacity: int = FIRST_CAPACITY) -> None:
        self.shape = shape
        self.end = 0
        self._given_back: list[int] = []  # in order
        self.num_branches = 0
        self.keys = [self._empty(capacity) for _ in range(shape.num_layers)]
        self.values = [self._empty(capacity) for _ in range(shape.num_layers)]
        self.positions_S = np.zeros(capacity, dtype=np.int64)
        self.visible_BS = np.zeros((FIRST_BRANCHES, capacity), dtype=np.bool_)

    @property
    def capacity(self) -> int:
        return self.visible_BS.shape[1]

    @property
    def num_slots(self) -> int:
        """Slots in use."""
        return self.end - len(self._given_back)

    def add_branch(self, parent_row: int | None = None) -> int:
        """A new branch's row: a copy of its parent's, or nothing visible."""
        row = self.num_branches
        if row == len(self.visible_BS):
            self.visible_BS = np.concatenate((self.visible_BS, np.zeros_like(self.visible_BS)))
        if parent_row is not None:
            self.visible_BS[row] = self.visible_BS[parent_row]
        self.num_branches += 1
        return row

    def take(self, num_slots: int) -> list[int]:
        """Assign ``num_slots`` slots: those given back first and in order, so that a lone branch's remain one run."""
        reused, self._given_back = self._given_back[:num_slots], self._given_back[num_slots:]
        end = self.end + num_slots - len(reused)
        if end > self.capacity:
            self._grow(end)
        slots = [*reused, *range(self.end, end)]
        self.end = end
        return slots

    def join(self, row: int, other_rows: list[int]) -> None:
        """From now on ``row`` also sees what ``other_rows`` see."""
        self.visible_BS[row] |= self.visible_BS[other_rows].any(axis=0)

    def give_back(self, slots: list[int]) -> None:
        """No branch sees ``slots`` any more, and other tokens may have them."""
        self.visible_BS[:, slots] = False
        self._given_back = sorted(self._given_back + slots)

    def _grow(self, num_slots: int) -> None:
        capacity = self.capacity
        while capacity < num_slots:
            capacity *= 2
        used = self.end
        for tensors in (self.keys, self.values):
            for layer, old_HSD in enumerate(tensors):
                tensors[layer] = self._empty(capacity)
                tensors[layer][:, :used] = old_HSD[:, :used]
        self.positions_S = np.concatenate((self.positions_S, np.zeros(capacity - self.capacity, dtype=np.int64)))
        visible_BS = np.zeros((len(self.visible_BS), capacity), dtype=np.bool_)
        visible_BS[:, :used] = self.visible_BS[:, :used]
        self.visible_BS = visible_BS

    def _empty(self, capacity: int) -> torch.Tensor:
        """Zeros, not uninitialised memory: a masked slot's weight is 0, and 0 times NaN is NaN."""
        shape = self.shape
        size = (shape.num_kv_heads, capacity, shape.head_dim)
        return torch.zeros(size, dtype=shape.dtype, device=shape.device)
