"""Who holds which prefixes, and who is there at all. All that it knows replicas tell it again, so it may die."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pasta_ray.actors.announcements import Announcement, Holder, Peer, Reply
from pasta_ray.actors.lease import Lease

IDLE_S = 60.0
LEASE_S = 5.0
"""A replica that has said nothing for so long is forgotten with all that it held."""


@dataclass
class _Member:
    peer: Peer
    number: int
    heard_at: float
    names: set[bytes] = field(default_factory=set)


class Directory:
    """Entries are hints: a holder may have evicted what it announced, and says so when it is asked."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._members: dict[str, _Member] = {}
        self._holders: dict[bytes, set[str]] = {}

    @property
    def num_names(self) -> int:
        return len(self._holders)

    def announce(self, news: Announcement) -> Reply:
        """Take a replica's news in."""
        self._expire()
        peer = Peer(news.replica, news.incarnation, news.actor, news.load)
        member = self._members.get(news.replica)
        if news.base is None or (member is not None and member.peer.incarnation != news.incarnation):
            self.forget(news.replica)
            member = None
        complete = news.base is None or (member is not None and member.number == news.base)
        if member is None:
            member = self._members[news.replica] = _Member(peer, news.number, self._clock())
        if complete:
            member.number = news.number
            self._add(member, news.added)
            self._remove(member, news.removed)
        member.peer, member.heard_at = peer, self._clock()
        return Reply(complete, tuple(m.peer for m in self._members.values() if m is not member))

    def find(self, asker: str, names: Sequence[bytes]) -> Holder | None:
        """Who, beside ``asker``, holds most of a chain of blocks, and of those that do the one with the least to do."""
        self._expire()
        for index in range(len(names) - 1, -1, -1):
            holders = [self._members[name].peer for name in self._holders.get(names[index], ()) if name != asker]
            if holders:
                return Holder(min(holders, key=lambda peer: peer.load.rows), index + 1)
        return None

    def forget(self, replica: str, incarnation: str | None = None) -> None:
        """A replica is gone, and all that it held; with ``incarnation``, only that one is."""
        member = self._members.get(replica)
        if member is not None and incarnation in (None, member.peer.incarnation):
            self._remove(member, frozenset(member.names))
            del self._members[replica]

    def _expire(self) -> None:
        oldest = self._clock() - LEASE_S
        for name in [name for name, member in self._members.items() if member.heard_at < oldest]:
            self.forget(name)

    def _add(self, member: _Member, names: frozenset[bytes]) -> None:
        member.names |= names
        for name in names:
            self._holders.setdefault(name, set()).add(member.peer.name)

    def _remove(self, member: _Member, names: frozenset[bytes]) -> None:
        member.names -= names
        for name in names:
            holders = self._holders.get(name, set())
            holders.discard(member.peer.name)
            if not holders:
                self._holders.pop(name, None)


class DirectoryActor:
    """The Ray rim of `Directory`. Ends itself when no replica has announced anything for a while."""

    def __init__(self) -> None:
        self._directory = Directory()
        self._lease = Lease(IDLE_S, _end)

    async def announce(self, news: Announcement) -> Reply:
        self._lease.renew()
        return self._directory.announce(news)

    async def find(self, asker: str, names: Sequence[bytes]) -> Holder | None:
        return self._directory.find(asker, names)

    async def forget(self, replica: str, incarnation: str) -> None:
        self._directory.forget(replica, incarnation)


def _end() -> None:
    """End this actor's process for good."""
    import ray

    ray.kill(ray.get_runtime_context().current_actor, no_restart=True)
