"""Which pending tokens the next step feeds."""

from collections.abc import Sequence
from dataclasses import dataclass

from pasta_ray.engine.branch import Branch


@dataclass(frozen=True)
class Feed:
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
        """Whether the branch's next token is sampled behind this feed."""
        return self.branch.decoding and self.num_tokens == self.branch.num_pending

    @property
    def num_logits(self) -> int:
        """How many of the feed's rows, counted from its end, need logits."""
        if self.branch.keep_logits:
            return self.num_tokens
        return 1 + self.branch.num_draft if self.samples else 0


RequestFeeds = list[Feed]  # all feeds of one slab


class Scheduler:
    """Every branch with one pending token, and its draft, goes into each step; longer runs share ``prefill_chunk``
    tokens, first come first served. A token is fed no earlier than every token it sees, in the same step at best."""

    def __init__(self, prefill_chunk: int) -> None:
        self.prefill_chunk = prefill_chunk

    def schedule(self, requests: Sequence[Sequence[Branch]]) -> list[RequestFeeds]:
        """``requests`` are the branches of each slab, oldest request first."""
        budget = self.prefill_chunk
        batch = []
        for branches in requests:
            feeds = []
            for branch in branches:
                num_tokens = branch.num_pending if not branch.held else 0
                if num_tokens - branch.num_draft > 1:
                    num_tokens = min(num_tokens, budget)
                    budget -= num_tokens
                if num_tokens:
                    feeds.append(Feed(branch, num_tokens))
            if feeds := _without_blocked(branches, feeds):
                batch.append(feeds)
        return batch


def _without_blocked(branches: Sequence[Branch], feeds: RequestFeeds) -> RequestFeeds:
    """Leave out feeds that see a slot that will still be empty, until none does."""
    while feeds:
        feeding = {feed.branch for feed in feeds}
        waiting = [*feeds, *(Feed(branch, 0) for branch in branches if branch not in feeding)]
        empty_slots = [slot for feed in waiting for slot in feed.unfed_slots]
        if not empty_slots:
            break
        # A branch sees its own later tokens in its row, but not in its mask: they block nothing.
        ready = [f for f in feeds if f.branch.visible[empty_slots].sum() == len(f.unfed_slots)]
        if len(ready) == len(feeds):
            break
        feeds = ready
    return feeds
