"""Which replica answers a request soonest: by what it has to do, and by what it is likely to have cached.

Pure, and without asking anybody: what a replica has been sent lately says well enough what its cache holds. What it
lacks it fetches from a replica that has it, or computes.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from pasta_ray.actors.costs import TransferCost
from pasta_ray.actors.placement import View, decode_s
from pasta_ray.engine.blocks import BLOCK_TOKENS, block_names
from pasta_ray.engine.messages import Request

EXPECTED_TOKENS = 128
"""An answer's length is not known beforehand. The longer it is, the more load counts against a prefix."""
MAX_NAMES = 65_536


@dataclass
class Router:
    """Remembers which replicas were sent which prompts, by the names of their blocks, the latest ``max_names``."""

    max_names: int = MAX_NAMES
    transfer: TransferCost = field(default_factory=TransferCost)

    def __post_init__(self) -> None:
        self._sent = OrderedDict[bytes, set[str]]()

    def choose(self, request: Request, replicas: Sequence[View], bytes_per_token: int) -> str:
        """Among at least one replica, of whose KV a token takes so much."""
        names = block_names(request.model, request.prompt_ids)
        cached = {replica.name: self._num_cached(names, replica.name) for replica in replicas}
        most = max(cached.values())

        def seconds(replica: View) -> float:
            """Until the answer's end, were it as long as expected."""
            lacking = most - cached[replica.name]
            fetch_s = self.transfer.seconds(lacking * bytes_per_token) if lacking else 0.0
            prefill_s = replica.curve.prefill_s(max(1, len(request.prompt_ids) - most))
            decoded_s = decode_s(min(request.max_tokens, EXPECTED_TOKENS), replica)
            return min(fetch_s, replica.curve.prefill_s(lacking)) + prefill_s + decoded_s

        chosen = min(replicas, key=seconds).name
        self._remember(chosen, names)
        return chosen

    def forget(self, replica: str) -> None:
        """Its process is gone, and its cache with it."""
        for holders in self._sent.values():
            holders.discard(replica)

    def _num_cached(self, names: Sequence[bytes], replica: str) -> int:
        """Tokens of the prompt's start."""
        absent = (index for index, name in enumerate(names) if replica not in self._sent.get(name, ()))
        return BLOCK_TOKENS * next(absent, len(names))

    def _remember(self, replica: str, names: Sequence[bytes]) -> None:
        for name in names:
            self._sent.setdefault(name, set()).add(replica)
            self._sent.move_to_end(name)
        while len(self._sent) > self.max_names:
            self._sent.popitem(last=False)
