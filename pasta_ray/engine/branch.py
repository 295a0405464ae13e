"""One chain of tokens being decoded, and what the engine knows about it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Protocol

import numpy as np
import numpy.typing as npt

from pasta_ray.engine.messages import Sampling
from pasta_ray.engine.slab import Slab


class Constraint(Protocol):
    """A grammar's place in one branch: which row of the engine's mask bank holds now, and how it moves on.

    Where a method drafts, a shallow copy moves on by itself: it is led along the draft.
    """

    @property
    def mask_row(self) -> int: ...

    def advance(self, token: int) -> None: ...


def num_equal(guesses: Sequence[int], tokens: Sequence[int]) -> int:
    """How many guesses, counted from the first, are what came."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(guesses, tokens, strict=False)))


@dataclass(eq=False)
class Branch:
    """``tokens``, ``slots`` and ``positions`` have one entry for each token appended to this branch itself.

    ``[0, num_fed)`` have their KV in the slab, ``[num_fed, len)`` are pending and wait for a step; of these the last
    ``num_draft`` are guesses. A preempted request starts anew at ``num_fed == 0``; ``[0, num_computed)`` have been fed
    at some time, so that others may have seen them, and what they gave has been handed out. ``joins`` are pairs: the
    index of the first token that saw what a join brought, and the slots that were new by it. ``parent`` is the branch
    that it was forked from when that had ``num_inherited`` tokens.
    """

    path: str
    slab: Slab
    row: int
    next_position: int = 0
    sampling: Sampling | None = None
    constraint: Constraint | None = None
    keep_logits: bool = False
    tokens: list[int] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    joins: list[tuple[int, npt.NDArray[np.int64]]] = field(default_factory=list)
    num_fed: int = 0
    num_computed: int = 0
    num_draft: int = 0
    parent: "Branch | None" = field(default=None, repr=False)
    num_inherited: int = 0
    settled: bool = False
    held: bool = False
    closed: bool = False

    @property
    def num_pending(self) -> int:
        return len(self.tokens) - self.num_fed

    @property
    def num_feedable(self) -> int:
        """Pending tokens that nothing holds back; a hold leaves those that have been computed once."""
        return self.num_lost if self.held else self.num_pending

    @property
    def num_lost(self) -> int:
        """Tokens that have been fed before, and must be again."""
        return self.num_computed - self.num_fed

    @property
    def num_plain(self) -> int:
        """How many leading tokens stand at positions 0, 1, ... and saw exactly those before them, in a main branch."""
        stop = self.joins[0][0] if self.joins else len(self.tokens)
        return next((i for i, position in enumerate(self.positions[:stop]) if position != i), stop)

    @property
    def decoding(self) -> bool:
        """Whether a token is sampled once nothing is pending."""
        return self.sampling is not None and not self.settled and not self.closed

    @property
    def draftable(self) -> bool:
        """Whether the next step samples behind a single pending token, so that guesses may follow it."""
        return self.decoding and not self.held and self.num_pending == 1 and self.slab.resident

    @property
    def draft(self) -> list[int]:
        return self.tokens[len(self.tokens) - self.num_draft :]

    @property
    def visible(self) -> npt.NDArray[np.bool_]:
        """This branch's row over the slab's slots, bool [capacity]; pending tokens included."""
        row: npt.NDArray[np.bool_] = self.slab.visible_BS[self.row]
        return row

    def append(self, ids: Sequence[int]) -> None:
        """Pend ``ids`` behind what is there: slots and positions are theirs from now on."""
        self.append_at(ids, range(self.next_position, self.next_position + len(ids)))

    def append_at(self, ids: Sequence[int], positions: Sequence[int]) -> None:
        """As :meth:`append`, at any positions; what comes next stands behind the last of them."""
        slots = self.slab.take(len(ids))
        self.slab.visible_BS[self.row, slots] = True
        self.tokens.extend(ids)
        self.slots.extend(slots)
        self.slab.positions_S[slots] = positions
        self.positions.extend(positions)
        self.next_position = positions[-1] + 1 if positions else self.next_position

    def join(self, children: Sequence["Branch"], first: int | None = None) -> None:
        """See what ``children`` see, from token ``first`` on; unless told, the first that has never been fed."""
        before_S = self.visible.copy()
        self.slab.join(self.row, [child.row for child in children])
        first = self.num_computed if first is None else first
        self.joins.append((first, np.flatnonzero(self.visible & ~before_S)))

    def mark_fed(self, num_tokens: int) -> None:
        """The KV of the next ``num_tokens`` tokens is in the slab."""
        self.num_fed += num_tokens
        self.num_computed = max(self.num_computed, self.num_fed)

    def append_draft(self, ids: Sequence[int]) -> None:
        """Pend guesses behind the pending token."""
        self.append(ids)
        self.num_draft = len(ids)

    def accept_draft(self, num_accepted: int) -> None:
        """The draft's first ``num_accepted`` tokens are tokens like others from now on; the rest has never been."""
        self.rewind(len(self.tokens) - self.num_draft + num_accepted)

    def rewind(self, num_tokens: int) -> None:
        """Forget all but the first ``num_tokens`` tokens: no branch sees them any more, and their slots are reused."""
        dropped = self.slots[num_tokens:]
        if dropped:
            self.slab.give_back(dropped)
            self.next_position -= len(dropped)
            for column in (self.tokens, self.slots, self.positions):
                del column[num_tokens:]
        self.num_fed = min(self.num_fed, num_tokens)
        self.num_computed = min(self.num_computed, num_tokens)
        self.joins = [(min(first, num_tokens), slots) for first, slots in self.joins]
        self.num_draft = 0

    def preempt(self) -> None:
        """The KV is gone; all tokens wait to be fed again. Guesses are not worth it."""
        self.accept_draft(0)
        self.num_fed = 0
