"""Prefixes that another replica has computed: found by name, moved where moving is cheaper than computing."""

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from pasta_ray.actors.announcements import Holder, Peer
from pasta_ray.actors.costs import TransferCost
from pasta_ray.actors.decode_loop import DecodeLoop
from pasta_ray.actors.messages import ReplicaDiedError
from pasta_ray.actors.neighbours import Neighbours, Parts
from pasta_ray.engine.blocks import BLOCK_TOKENS, block_names
from pasta_ray.engine.curve import StepCurve
from pasta_ray.engine.kv import KVBlock
from pasta_ray.errors import PastaError

if TYPE_CHECKING:
    from pasta_ray.engine.prefix_store import PrefixStore

logger = logging.getLogger(__name__)

FIND_S = 1.0
MAX_FETCH_BYTES = 2**30
"""One fetch moves at most so much; a longer prefix is computed from there on."""


class Transport(Protocol):
    """How KV gets here: through the object store, or whatever stands behind this for tensors on GPUs."""

    async def take_prefix(self, peer: Peer, key: str, ids: Sequence[int], start: int) -> KVBlock | None:
        """The KV of ``ids[start:]`` as far as ``peer`` holds it. Raises ReplicaError where it is gone."""


@dataclass
class PrefixCounts:
    """Fetches, the tokens and bytes that they brought, those that failed, and those that were not worth it."""

    num_fetches: int = 0
    num_tokens: int = 0
    num_bytes: int = 0
    num_failed: int = 0
    num_declined: int = 0


class PrefixFetcher:
    """Before a request is decoded here: what other replicas have of its prompt, and this one has not, comes here."""

    def __init__(
        self, parts: Parts, loop: DecodeLoop, neighbours: Neighbours, transport: Transport, cost: TransferCost
    ) -> None:
        self.counts = PrefixCounts()
        self._parts = parts
        self._loop = loop
        self._neighbours = neighbours
        self._transport = transport
        self._cost = cost

    async def fetch(self, model: str, prompt_ids: Sequence[int], holder: str | None = None) -> None:
        """Never fails: what does not come is computed. ``holder`` is known to have the prompt, if it is a peer."""
        part = self._parts.find(model)
        if part is None or not self._neighbours.peers:
            return
        store, curve = part.store, part.curve
        names = block_names(store.key, prompt_ids[:-1])  # the last token is fed here in any case, for its logits
        num_own = next((i for i, name in enumerate(names) if name not in self._neighbours.names), len(names))
        if num_own == len(names):
            return
        try:
            found = await self._find(names[num_own:], holder)
            if found is not None:
                await self._move(store, curve, prompt_ids, num_own, found)
        except (PastaError, TimeoutError) as error:
            self.counts.num_failed += 1
            logger.warning("a prefix is computed again: %s: %s", type(error).__name__, error)

    async def _find(self, names: Sequence[bytes], holder: str | None) -> Holder | None:
        peer = self._neighbours.peers.get(holder or "")
        if peer is not None:
            return Holder(peer, len(names))
        async with asyncio.timeout(FIND_S):
            return await self._neighbours.find(names)

    async def _move(
        self, store: "PrefixStore", curve: StepCurve | None, prompt_ids: Sequence[int], num_own: int, found: Holder
    ) -> None:
        start = num_own * BLOCK_TOKENS
        num_tokens = min(found.num_blocks * BLOCK_TOKENS, MAX_FETCH_BYTES // store.bytes_per_token)
        expected_s = self._cost.seconds(num_tokens * store.bytes_per_token)
        if curve is not None and expected_s >= curve.prefill_s(num_tokens):
            self.counts.num_declined += 1
            return
        began = time.perf_counter()
        ids = prompt_ids[: start + num_tokens]
        try:
            async with asyncio.timeout(FIND_S + 10 * expected_s):
                block = await self._transport.take_prefix(found.peer, store.key, ids, start)
        except ReplicaDiedError:
            await self._neighbours.lost(found.peer)
            raise
        if block is None:  # evicted since it was announced
            self.counts.num_failed += 1
            return
        put = self._loop.call(lambda _: store.put(ids, start, block))
        self._cost.observe(block.num_bytes, time.perf_counter() - began)
        self.counts.num_fetches += 1
        self.counts.num_tokens += await asyncio.wrap_future(put)
        self.counts.num_bytes += block.num_bytes
