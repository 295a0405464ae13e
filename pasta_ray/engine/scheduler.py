"""Which pending tokens the next step feeds."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pasta_ray.engine.branch import Branch


class Feed(NamedTuple):
    """The first ``num_tokens`` pending tokens of a branch."""

    branch: Branch
    num_tokens: int

    @property
    def slots(self) -> list[int]:
        start = self.branch.num_fed
        return self.branch.slots[start : start + self.num_tokens]

    @property
    def unfed_slots(self) -> list[int]:
        return self.branch.slots[self.branch.num_fed + self.num_tokens :]

    @property
    def samples(self) -> bool:
        """Whether the branch's next token is sampled behind this feed: never a second time."""
        branch = self.branch
        return self.num_tokens == branch.num_pending and branch.decoding and branch.num_computed < len(branch.tokens)

    @property
    def num_logits(self) -> int:
        """How many of the feed's rows, counted from its end, need logits: of a branch that keeps them, those that
        have not been handed out before."""
        branch = self.branch
        if branch.keep_logits:
            return min(self.num_tokens, max(0, branch.num_fed + self.num_tokens - branch.num_computed))
        return 1 + branch.num_draft if self.samples else 0


RequestFeeds = list[Feed]  # all feeds of one slab


class Scheduler:
    """Every branch with one pending token, and its draft, goes into each step; longer runs share ``prefill_chunk``
    tokens. A token is fed no earlier than every token it sees, and in the same step at best."""

    def __init__(self, prefill_chunk: int) -> None:
        self.prefill_chunk = prefill_chunk

    def schedule(self, requests: Sequence[Sequence[Branch]]) -> list[RequestFeeds]:
        """``requests`` are the branches of each slab, oldest request first."""
        runs = {branch: run for branches in requests for branch, run in _runs(branches) if run}
        while True:
            shares = self._share(runs)
            blocked = [item for branches in requests for item in _blocked(branches, shares)]
            if not blocked:
                break
            runs.update(blocked)
        batch = ([Feed(branch, shares[branch]) for branch in branches if branch in shares] for branches in requests)
        return [feeds for feeds in batch if feeds]

    def _share(self, runs: Mapping[Branch, int]) -> dict[Branch, int]:
        """How many tokens of its run each branch feeds. Half of the chunk is for the oldest run that is longer than
        that; of the rest, runs that fit whole go first, so that a short one does not wait for a long one's end."""
        shares = {branch: run for branch, run in runs.items() if run == 1 + branch.num_draft}
        if len(shares) == len(runs):
            return shares
        longer = {branch: run for branch, run in runs.items() if run > 1 and branch not in shares}
        half = max(1, self.prefill_chunk // 2)
        oldest = next((branch for branch, run in longer.items() if run > half), None)
        budget = self.prefill_chunk - (half if oldest else 0)
        for branch, run in longer.items():
            if branch is not oldest and run <= budget:
                shares[branch] = run
                budget -= run
        if oldest:
            shares[oldest] = min(longer[oldest], budget + half)
            budget += half - shares[oldest]
        for branch, run in longer.items():
            if branch not in shares and budget:
                shares[branch] = min(run, budget)
                budget -= shares[branch]
        return shares


def _runs(branches: Sequence[Branch]) -> list[tuple[Branch, int]]:
    """How many tokens wait in each branch. After a preemption no branch goes on before all are where they were: a limit
    that they share, such as one of open bodies, must find them side by side as before."""
    if any(branch.num_lost for branch in branches):
        return [(branch, branch.num_lost) for branch in branches]
    return [(branch, branch.num_feedable) for branch in branches]


def _blocked(branches: Sequence[Branch], shares: Mapping[Branch, int]) -> list[tuple[Branch, int]]:
    """The branches that would see a slot which is still empty after this step, with how much of their share would not:
    what is before the first join that brought such a slot, or nothing."""
    feeding = [branch for branch in branches if shares.get(branch)]
    unfed = [branch for branch in branches if branch.num_pending > shares.get(branch, 0)] if feeding else []
    if not unfed:
        return []
    empty_S = np.zeros_like(unfed[0].visible)
    for branch in unfed:
        empty_S[branch.slots[branch.num_fed + shares.get(branch, 0) :]] = True
    ready = [(branch, _num_ready(branch, shares[branch], empty_S)) for branch in feeding]
    return [(branch, num_ready) for branch, num_ready in ready if num_ready < shares[branch]]


def _num_ready(branch: Branch, share: int, empty_S: npt.NDArray[np.bool_]) -> int:
    missing_S = branch.visible & empty_S
    missing_S[branch.slots[branch.num_fed :]] = False  # its row has its own later tokens, its masks have not
    for first, slots in branch.joins:
        if first > branch.num_fed:
            if missing_S[slots].any():
                share = min(share, first - branch.num_fed)
            missing_S[slots] = False
    return 0 if missing_S.any() else share
