"""Bodies on other replicas, as their home sees it: chosen, sent, listened to, and taken back where they are lost."""

import asyncio
import logging
import threading
from collections import Counter
from collections.abc import AsyncGenerator
from concurrent.futures import Future
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol

from pasta_ray.actors.announcements import Peer
from pasta_ray.actors.costs import TransferCost
from pasta_ray.actors.decode_loop import DecodeLoop
from pasta_ray.actors.messages import Policy
from pasta_ray.actors.neighbours import Neighbours, Parts
from pasta_ray.actors.placement import Placement, View
from pasta_ray.engine.curve import StepCurve
from pasta_ray.engine.messages import BodyNews, BodyPlan, BodyRequest, Events

logger = logging.getLogger(__name__)


class Away(Protocol):
    """How a body reaches a peer."""

    def decode_body(self, peer: Peer, body: BodyRequest, home: str) -> AsyncGenerator[Events, None]:
        """Its news up to the last. Raises ReplicaDiedError where the peer is gone, and what it refuses."""


@dataclass
class FarmCounts:
    """Bodies sent and lost; bytes of KV that went, prompts apart, and that came back."""

    num_sent: int = 0
    num_lost: int = 0
    num_bytes_sent: int = 0
    num_bytes_returned: int = 0


class Farmer:
    """The engine's `Farm`: the decoder's thread calls ``choose``, ``send`` and ``end``, and ``events`` is the loop in
    which bodies are listened to."""

    def __init__(
        self,
        policy: Policy,
        parts: Parts,
        loop: DecodeLoop,
        neighbours: Neighbours,
        away: Away,
        cost: TransferCost,
        events: asyncio.AbstractEventLoop,
    ) -> None:
        self.counts = FarmCounts()
        self.policy: Policy = policy
        self._parts = parts
        self._loop = loop
        self._neighbours = neighbours
        self._away = away
        self._cost = cost
        self._events = events
        self._lock = threading.Lock()  # of the two below, which both threads change
        self._listening: dict[str, dict[str, Future[None]]] = {}  # by request, then by path
        self._num_at: Counter[str] = Counter()  # bodies of this replica, by peer
        self._prompts_at: dict[str, set[str]] = {}  # peers that have the prompt, by request

    def choose(self, plan: BodyPlan) -> str | None:
        """The peer where the body is done soonest; None is here."""
        part = self._parts.find(plan.model)
        if part is None or part.curve is None:
            return None
        home = View(self._neighbours.replica, part.curve, part.num_rows - 1)  # which counts the body itself
        known = self._prompts_at.get(plan.request_id, set())
        peers = [
            View(peer.name, StepCurve(list(peer.load.curve)), self._rows(peer), peer.name in known)
            for peer in self._neighbours.peers.values()
            if peer.load.curve
        ]
        return Placement(self.policy, part.store.bytes_per_token).choose(plan, home, peers, self._cost)

    def send(self, replica: str, body: BodyRequest) -> None:
        """Have the body decoded there; what comes of it goes to the decoder."""
        peer = self._neighbours.peers.get(replica)
        with self._lock:
            self._num_at[replica] += 1
            self._prompts_at.setdefault(body.request_id, set()).add(replica)
            listening = asyncio.run_coroutine_threadsafe(self._listen(peer, body), self._events)
            self._listening.setdefault(body.request_id, {})[body.path] = listening
        listening.add_done_callback(lambda _: self._left(replica))
        self.counts.num_sent += 1
        self.counts.num_bytes_sent += body.context.block.num_bytes

    def end(self, request_id: str) -> None:
        """Stop listening, which stops decoding there too."""
        with self._lock:
            listening = self._listening.pop(request_id, {})
            self._prompts_at.pop(request_id, None)
        for future in listening.values():
            future.cancel()

    def _rows(self, peer: Peer) -> int:
        """What its next step is expected to have: bodies sent a moment ago are not announced yet."""
        return max(peer.load.rows, self._num_at[peer.name])

    def _left(self, replica: str) -> None:
        with self._lock:
            self._num_at[replica] -= 1

    async def _listen(self, peer: Peer | None, body: BodyRequest) -> None:
        try:
            if peer is not None and await self._follow(peer, body):
                return
        except Exception as error:  # whatever it is, a body that nobody decodes would be waited for without end
            logger.warning("body %s comes home: %s: %s", body.id, type(error).__name__, error)
        self.counts.num_lost += 1
        await self._hand_over(body, None)

    async def _follow(self, peer: Peer, body: BodyRequest) -> bool:
        """Whether the body came to its end there."""
        async with aclosing(self._away.decode_body(peer, body, self._neighbours.replica)) as messages:
            async for message in messages:
                for news in message.events:
                    assert isinstance(news, BodyNews)
                    if news.block is not None:
                        self.counts.num_bytes_returned += news.block.num_bytes
                    await self._hand_over(body, news)
                    if news.block is not None:
                        return True
        return False

    async def _hand_over(self, body: BodyRequest, news: BodyNews | None) -> None:
        handed = self._loop.call(lambda decoder: decoder.receive(body.request_id, body.path, news))
        await asyncio.wrap_future(handed)
