"""What replicas tell each other through the directory. Nothing here needs torch, so that the directory stays light."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Load:
    """What a replica's next steps look like to others: ``rows`` in them now, and ``curve``, (rows, seconds) points of
    what a step costs. Without a curve it gets no bodies."""

    rows: int = 0
    curve: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Announcement:
    """One replica's news. ``incarnation`` is another one after each restart of its process, ``number`` counts its
    announcements. The prefixes that it holds, by name, are those of announcement ``base`` with ``added`` and without
    ``removed``; without a base, ``added`` are all."""

    replica: str
    incarnation: str
    actor: Any
    load: Load
    number: int
    base: int | None
    added: frozenset[bytes] = frozenset()
    removed: frozenset[bytes] = frozenset()


@dataclass(frozen=True)
class Peer:
    """Another live replica. ``actor`` is its handle."""

    name: str
    incarnation: str
    actor: Any = field(repr=False)
    load: Load


@dataclass(frozen=True)
class Reply:
    """``complete`` is false where the directory does not know the base of the announcement: all must be told again."""

    complete: bool
    peers: tuple[Peer, ...]


@dataclass(frozen=True)
class Holder:
    """A replica that holds the first ``num_blocks`` blocks of what was asked for."""

    peer: Peer
    num_blocks: int
