"""What moving KV between replicas costs, from what it has cost so far."""

from dataclasses import dataclass

FIXED_S = 0.005
BYTES_PER_S = 5e8
SMALL_BYTES = 2**20
WEIGHT = 0.3


@dataclass
class TransferCost:
    """``fixed_s`` a transfer, however small, and its bytes at ``bytes_per_s``. Starts with a cautious guess, which the
    first transfers correct: small ones the first figure, large ones the second."""

    fixed_s: float = FIXED_S
    bytes_per_s: float = BYTES_PER_S

    def seconds(self, num_bytes: int) -> float:
        return self.fixed_s + num_bytes / self.bytes_per_s

    def observe(self, num_bytes: int, seconds: float) -> None:
        """A transfer has taken so long."""
        if num_bytes < SMALL_BYTES:
            self.fixed_s += WEIGHT * (seconds - num_bytes / self.bytes_per_s - self.fixed_s)
            self.fixed_s = max(0.0, self.fixed_s)
        else:
            rate = num_bytes / max(seconds - self.fixed_s, 0.1 * seconds, 1e-6)
            self.bytes_per_s *= (rate / self.bytes_per_s) ** WEIGHT
