"""Who guesses the tokens that a target model then verifies: a lookup in the text so far, or a smaller model.

A drafter may guess anything: :meth:`pasta_ray.engine.engine.Engine.draft` gives the same tokens whatever it says, only
sooner where it is right.
"""

from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from itertools import cycle, islice, takewhile
from typing import Protocol

import torch

from pasta_ray.engine.branch import Branch, num_equal
from pasta_ray.engine.config import DraftConfig
from pasta_ray.engine.engine import Engine
from pasta_ray.errors import ModelError

NGRAM_SIZES = (3, 2)


class Drafter(Protocol):
    """Guesses for many branches of one target engine."""

    @property
    def num_slots(self) -> int:
        """Slots in use beside the target's."""

    def propose(self, branches: Sequence[Branch]) -> list[list[int]]:
        """What may follow the last token of each branch, its pending one included; empty where nothing is known.

        Never a token on which a method acts: what follows it depends on more than the text.
        """

    def forget(self, branches: Sequence[Branch]) -> None:
        """All ``branches`` of a request have ended. Those never proposed for are fine."""


def make_drafter(target: Engine, config: DraftConfig) -> Drafter:
    """Raises ModelError where the draft model does not load, or has another vocabulary than ``target``."""
    if config.engine is None:
        return PromptLookup(acting_ids(target), config.max_draft)
    return DraftModel(target, Engine(config.engine), config.max_draft)


def acting_ids(engine: Engine) -> frozenset[int]:
    """The tokens on which a method acts: those that end an answer, and tags."""
    return frozenset(engine.tokenizer.stop_ids + (engine.tags.ids if engine.tags else ()))


def _before(acting: frozenset[int], ids: Iterable[int]) -> list[int]:
    return list(takewhile(lambda id_: id_ not in acting, ids))


@dataclass
class _History:
    """What a branch has read, and for each n-gram in it where the token stands that followed it last."""

    tokens: list[int] = field(default_factory=list)
    followers: dict[tuple[int, ...], int] = field(default_factory=dict)
    num_own: int = 0  # tokens of the branch itself

    def extend(self, own_tokens: Sequence[int]) -> None:
        """Read what is new of a branch's own tokens."""
        for token in own_tokens[self.num_own :]:
            for size in NGRAM_SIZES:
                if len(self.tokens) >= size:
                    self.followers[tuple(self.tokens[-size:])] = len(self.tokens)
            self.tokens.append(token)
        self.num_own = len(own_tokens)


class PromptLookup:
    """Guesses that a text which repeats goes on repeating: what followed the last three tokens when they occurred last,
    else the last two, in the branch and in what its parent had written when it was forked. A repeat that reaches the
    end of the text is taken to go on in a circle.

    Prompt lookup decoding, Saxena 2023 (https://github.com/apoorvumang/prompt-lookup-decoding).
    """

    num_slots = 0

    def __init__(self, acting: frozenset[int], max_draft: int) -> None:
        self.acting = acting
        self.max_draft = max_draft
        self._histories: dict[Branch, _History] = {}

    def propose(self, branches: Sequence[Branch]) -> list[list[int]]:
        return [self._lookup(self._history(branch)) for branch in branches]

    def forget(self, branches: Sequence[Branch]) -> None:
        for branch in branches:
            self._histories.pop(branch, None)

    def _history(self, branch: Branch) -> _History:
        history = self._histories.get(branch)
        if history is None:
            history = self._histories[branch] = _History()
            history.extend(_inherited(branch))
            history.num_own = 0
        history.extend(branch.tokens)
        return history

    def _lookup(self, history: _History) -> list[int]:
        for size in NGRAM_SIZES:
            start = history.followers.get(tuple(history.tokens[-size:]))
            if start is not None:
                return _before(self.acting, islice(cycle(history.tokens[start:]), self.max_draft))
        return []


def _inherited(branch: Branch) -> list[int]:
    """What the branch's ancestors had written when it was forked, whenever that is asked: a guess behind a fork that is
    taken again is the one that was made then."""
    if branch.parent is None:
        return []
    return _inherited(branch.parent) + branch.parent.tokens[: branch.num_inherited]


@dataclass(eq=False)
class _Mirror:
    """A target's branch, and the draft model's own, whose first ``num_known`` tokens are the target's and whose others
    are guesses. ``children`` are those that the target has not joined yet."""

    target: Branch
    own: Branch
    num_known: int = 0
    children: list["_Mirror"] = field(default_factory=list)


class DraftModel:
    """A smaller model decodes ahead. It follows each of the target's branches with one of its own, which forks, joins
    and goes back as the target's does, and samples with the target's random numbers and grammar, so that it often draws
    what the target draws. Between two proposals its branches are settled."""

    def __init__(self, target: Engine, engine: Engine, max_draft: int) -> None:
        """Raises ModelError where the vocabularies differ in more than tags."""
        _check_vocabulary(target, engine)
        self.engine = engine
        self.acting = acting_ids(target)
        self.max_draft = max_draft
        assert target.masks is not None, "the target's masks are the draft's too"
        engine.masks = _fit(target.masks, engine.vocab_size)
        self._unknown = engine.tokenizer.encode("\n")[-1]
        self._mirrors: dict[Branch, _Mirror] = {}

    @property
    def num_slots(self) -> int:
        return self.engine.num_slots

    def propose(self, branches: Sequence[Branch]) -> list[list[int]]:
        """As many steps as a guess has tokens; a branch that must read much first guesses less, and stalls nobody."""
        for target in [target for target in self._mirrors if not target.slab.resident]:
            self.engine.free(self._mirrors.pop(target).own)  # preempted: its guesses have no KV either
        followed = [branch for branch in branches if branch.next_position + self.max_draft < self.engine.max_positions]
        mirrors = {branch: self._follow(branch).own for branch in followed}
        for target, own in mirrors.items():
            own.constraint, own.next_position = copy(target.constraint), target.next_position
            self.engine.resume(own)
        for _ in range(self.max_draft):
            self.engine.step()
        return [self._guesses(branch, mirrors[branch]) if branch in mirrors else [] for branch in branches]

    def forget(self, branches: Sequence[Branch]) -> None:
        for branch in branches:
            mirror = self._mirrors.pop(branch, None)
            if mirror is not None:
                self.engine.free(mirror.own)

    def _follow(self, target: Branch) -> _Mirror:
        """The target's mirror, with the target's tokens and sight."""
        mirror = self._mirrors.get(target)
        if mirror is None:
            mirror = self._mirrors[target] = self._make(target)
        self._catch_up(mirror)
        for child in [child for child in mirror.children if target.visible[child.target.slots[0]]]:
            if self._waits_for(child.own, mirror.own):
                continue
            mirror.children.remove(child)
            self._catch_up(child)
            # Where the token before the sync is pending too, it sees the children as well, unlike the target's: one
            # token a little off costs less than a step of its own.
            self.engine.join(mirror.own, [child.own])
        return mirror

    def _waits_for(self, child: Branch, parent: Branch) -> bool:
        """Whether the parent has still to read what the child sees; joined, they would wait for each other."""
        return bool(child.visible[parent.slots[parent.num_computed :]].any())

    def _guesses(self, target: Branch, own: Branch) -> list[int]:
        """What the mirror wrote behind an acting token is taken back: it saw nothing of the target's action."""
        self.engine.settle(own)
        ids = _before(self.acting, own.tokens[len(target.tokens) :])
        self.engine.rewind(own, len(target.tokens) + len(ids))
        return ids

    def _make(self, target: Branch) -> _Mirror:
        ids = self._known(target.tokens)
        sampling = target.sampling and replace(target.sampling, logprobs=None)  # of guesses nobody asks them
        if target.parent is None:
            own = self.engine.open(ids, sampling=sampling, path=target.path)
        else:
            parent = self._follow(target.parent)
            own = self.engine.fork(parent.own, ids, path=target.path, sampling=sampling)
        self.engine.settle(own)
        mirror = _Mirror(target, own, len(ids))
        if target.parent is not None:
            self._mirrors[target.parent].children.append(mirror)
        return mirror

    def _catch_up(self, mirror: _Mirror) -> None:
        """Go back to where the guesses were right, and read on from there; the last token is left to be fed."""
        target, own = mirror.target, mirror.own
        new_ids = self._known(target.tokens[mirror.num_known :])
        num_kept = mirror.num_known + num_equal(own.tokens[mirror.num_known :], new_ids)
        mirror.num_known = len(target.tokens)
        if own.num_fed >= mirror.num_known:
            num_kept = min(num_kept, mirror.num_known - 1)
        self.engine.rewind(own, num_kept)
        for index in range(num_kept, mirror.num_known):
            own.next_position = target.positions[index]  # where the target left a gap, so does its mirror
            self.engine.feed(own, self._known(target.tokens[index : index + 1]))
        own.next_position = target.positions[-1] + 1  # where a child begins, whatever gap the target leaves after it

    def _known(self, ids: Sequence[int]) -> list[int]:
        """Tags that the draft model does not have are a line's end to it."""
        return [id_ if id_ < self.engine.vocab_size else self._unknown for id_ in ids]


def _fit(masks: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """The target's masks, bool [num_masks, V], on another number of logits; a row that allows no token allows all."""
    masks = masks[:, :vocab_size]
    masks = torch.cat((masks, masks.new_zeros(len(masks), vocab_size - masks.shape[1])), dim=1)
    return masks | ~masks.any(dim=1, keepdim=True)


def _check_vocabulary(target: Engine, engine: Engine) -> None:
    theirs, ours = target.tokenizer.vocabulary, engine.tokenizer.vocabulary
    tags = {id_ for tags in (target.tags, engine.tags) if tags for id_ in tags.ids}
    differing = sorted(
        id_ for id_ in theirs.keys() | ours.keys() if id_ not in tags and theirs.get(id_) != ours.get(id_)
    )
    if differing:
        first = differing[0]
        raise ModelError(
            f"draft model {engine.config.model!r} has another vocabulary than {target.config.model!r}:"
            f" {len(differing)} ids differ, the first is {first}: {ours.get(first)!r}, not {theirs.get(first)!r}"
        )
