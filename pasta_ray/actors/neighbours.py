"""One replica among others: it tells the directory what it holds and does, and hears who else is there.

Plain asyncio over protocols; the Ray rim is in `sharing`.
"""

import asyncio
import logging
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from pasta_ray.actors.announcements import Announcement, Holder, Load, Peer, Reply
from pasta_ray.actors.decode_loop import DecodeLoop, step_curve
from pasta_ray.actors.messages import DecoderLike
from pasta_ray.errors import PastaError

if TYPE_CHECKING:
    from pasta_ray.engine.decoder import Decoder

logger = logging.getLogger(__name__)

PERIOD_S = 0.25
ANSWER_S = 2.0


class DirectoryLike(Protocol):
    """`pasta_ray.actors.directory.Directory` at the far end of a call. All raise ReplicaError while it is away."""

    async def announce(self, news: Announcement) -> Reply: ...
    async def find(self, asker: str, names: Sequence[bytes]) -> Holder | None: ...
    async def forget(self, replica: str, incarnation: str) -> None: ...


@dataclass(frozen=True)
class Parts:
    """A replica's decoders by model. One alone answers to any name."""

    by_model: "Mapping[str, Decoder]"

    def find(self, model: str) -> "Decoder | None":
        alone = next(iter(self.by_model.values())) if len(self.by_model) == 1 else None
        return self.by_model.get(model, alone)

    def holding(self, key: str) -> "Decoder | None":
        """The one whose KV has that key."""
        return next((part for part in self.by_model.values() if part.store.key == key), None)


class Neighbours:
    """``peers`` are the other live replicas, as of the last announcement; ``names`` are this one's own blocks.

    Everything but ``peers``, which is replaced as a whole, belongs to the event loop that :meth:`run` is in.
    """

    def __init__(self, replica: str, actor: Any, loop: DecodeLoop, directory: DirectoryLike) -> None:
        self.replica = replica
        self.incarnation = secrets.token_hex(8)
        self.peers: dict[str, Peer] = {}
        self.names: frozenset[bytes] = frozenset()
        self.draining = False  # announces no curve, and who has none gets no bodies
        self._actor = actor
        self._loop = loop
        self._directory = directory
        self._versions: tuple[int, ...] = ()
        self._number = 0
        self._announced: frozenset[bytes] | None = None  # what the directory knows of this replica

    async def run(self) -> None:
        """Announce for ever. A directory that is away is told everything once it is back."""
        while True:
            try:
                async with asyncio.timeout(ANSWER_S):
                    await self.announce()
            except (PastaError, TimeoutError) as error:
                told = f"{type(error).__name__}: {error}"
                logger.warning("replica %s does not reach the directory, and tries again: %s", self.replica, told)
                self._announced = None
            await asyncio.sleep(PERIOD_S)

    async def announce(self) -> None:
        """Tell what has changed, and hear who is there."""
        load, names, self._versions = await asyncio.wrap_future(self._loop.call(_state_since(self._versions)))
        if self.draining:
            load = replace(load, curve=())
        self.names = self.names if names is None else names
        known = self._announced
        base = None if known is None else self._number
        added, removed = (self.names, frozenset()) if known is None else (self.names - known, known - self.names)
        self._number += 1
        news = Announcement(
            self.replica, self.incarnation, self._actor, load, self._number, base, frozenset(added), frozenset(removed)
        )
        self._announced = None
        reply = await self._directory.announce(news)
        self._announced = self.names if reply.complete else None
        self.peers = {peer.name: peer for peer in reply.peers}

    async def find(self, names: Sequence[bytes]) -> Holder | None:
        """Which other replica holds most of a chain of blocks."""
        return await self._directory.find(self.replica, names)

    async def lost(self, peer: Peer) -> None:
        """A peer turned out to be gone."""
        self.peers = {name: other for name, other in self.peers.items() if other.incarnation != peer.incarnation}
        try:
            await self._directory.forget(peer.name, peer.incarnation)
        except PastaError:
            logger.info("replica %s is gone, and so is the directory, which need not forget it", peer.name)


State = tuple[Load, frozenset[bytes] | None, tuple[int, ...]]


def _state_since(versions: tuple[int, ...]) -> Callable[[DecoderLike], State]:
    """Load and, where the caches are not those of ``versions`` any more, the names of all their blocks."""

    def state(decoder: DecoderLike) -> State:
        parts = tuple(decoder.parts.values())
        now = tuple(part.store.version for part in parts)
        names = None if now == versions else frozenset().union(*(part.store.names() for part in parts))
        return Load(sum(part.num_rows for part in parts), step_curve(parts)), names, now

    return state
