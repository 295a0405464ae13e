"""The KV cache of one request: slots in time order, shared by all its branches, never copied by fork or join.

Axes: H KV head, S slot, D head dimension, B branch.
"""

from dataclasses import dataclass

import numpy as np
import torch

FIRST_SLOTS = 256
FIRST_BRANCHES = 8


@dataclass(frozen=True)
class KVShape:
    """What one slot holds."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device

    @property
    def bytes_per_slot(self) -> int:
        """Keys and values of all layers."""
        return self.num_layers * 2 * self.num_kv_heads * self.head_dim * self.dtype.itemsize


class Slab:
    """Slots ``[0, end)`` have been assigned; a slot stays its token's until it is given back or the request ends.
    ``visible_BS[row]`` says which slots the branch of that row sees, ``positions_S`` where their tokens stand. Both
    hold whether or not the KV is there: ``keys`` and ``values`` have one [H, capacity, D] tensor a layer (growing one
    needs room for one more, not for all) while the slab is resident, and none while it is not. ``bytes_copied`` counts
    what growing has cost."""

    def __init__(self, shape: KVShape) -> None:
        self.shape = shape
        self.end = 0
        self._given_back: list[int] = []  # in order
        self.num_branches = 0
        self.bytes_copied = 0
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []
        self.positions_S = np.zeros(FIRST_SLOTS, dtype=np.int64)
        self.visible_BS = np.zeros((FIRST_BRANCHES, FIRST_SLOTS), dtype=np.bool_)

    @property
    def capacity(self) -> int:
        """Slots that there is KV for."""
        return self.keys[0].shape[1] if self.keys else 0

    @property
    def resident(self) -> bool:
        return bool(self.keys)

    @property
    def kv_bytes(self) -> int:
        """What the slab holds, used or not."""
        return self.capacity * self.shape.bytes_per_slot

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
        """Assign ``num_slots`` slots: those given back first and in order, so that a lone branch's remain one run.
        Their KV may come later, by :meth:`allocate`."""
        reused, self._given_back = self._given_back[:num_slots], self._given_back[num_slots:]
        end = self.end + num_slots - len(reused)
        while end > len(self.positions_S):
            self.positions_S = np.concatenate((self.positions_S, np.zeros_like(self.positions_S)))
            self.visible_BS = np.concatenate((self.visible_BS, np.zeros_like(self.visible_BS)), axis=1)
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

    def index(self, slots: list[int]) -> slice | torch.Tensor:
        """What picks ``slots`` out of a layer's tensors: a slice where they are one run, which is faster."""
        if slots and slots == list(range(slots[0], slots[0] + len(slots))):
            return slice(slots[0], slots[0] + len(slots))
        return torch.tensor(slots, dtype=torch.int64, device=self.shape.device)

    def allocate(self, capacity: int) -> None:
        """Hold KV for ``capacity`` slots, more than before; what is there stays."""
        old = self.capacity
        assert capacity > old, "a slab only grows"
        for tensors in (self.keys, self.values):
            tensors.extend([self._empty(0)] * (self.shape.num_layers - len(tensors)))
            for layer, old_HSD in enumerate(tensors):
                tensors[layer] = self._empty(capacity)
                tensors[layer][:, :old] = old_HSD
        self.bytes_copied += old * self.shape.bytes_per_slot

    def release(self) -> None:
        """Give all KV back."""
        self.keys, self.values = [], []

    def _empty(self, capacity: int) -> torch.Tensor:
        """Zeros, not uninitialised memory: a masked slot's weight is 0, and 0 times NaN is NaN."""
        shape = self.shape
        size = (shape.num_kv_heads, capacity, shape.head_dim)
        return torch.zeros(size, dtype=shape.dtype, device=shape.device)
