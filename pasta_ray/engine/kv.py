"""KV on its way between engines, as what crosses processes: an array. `moving` takes it out of engines and into them.

Axes: L layer, H KV head, N token, D head dimension. A leading axis of 2 is keys and values.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


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
