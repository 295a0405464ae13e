"""The grammar while decoding: after the tokens so far, which kinds of token may come next.

One automaton a branch. It knows the phase, not the vocabulary: what a phase allows is :data:`ALLOWS`, and a decoder
turns that into one mask of its vocabulary for each phase.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, IntEnum, auto
from typing import Protocol

from pasta_ray.lang.document import MAX_TOPIC_CHARS, MAX_TOPIC_WORDS, TOPIC_FORBIDDEN
from pasta_ray.lang.positions import PositionStrategy
from pasta_ray.lang.tags import TagMap

MAX_COUNT_DIGITS = 3
MAX_TOPIC_TOKENS = 12  # a topic of this many tokens takes no more
MAX_TOPIC_TOKEN = 16  # characters of one token that may stand in a topic
MAX_TOPIC_GROWTH = MAX_TOPIC_CHARS - MAX_TOPIC_TOKEN  # a topic of this many characters takes no more


class Kind(Enum):
    """What a token is. ``WORD`` starts with a space and ``PIECE`` does not: both are fit for a topic. ``UNFIT`` could
    be part of one, but is not written in any: half of a character, a space alone, more than a word, a very long one."""

    TEXT = auto()  # any token that is no tag, special ones included
    CONTENT = auto()  # text without special tokens: what a body is made of
    PIECE = auto()
    WORD = auto()
    UNFIT = auto()
    FIRST_DIGITS = auto()  # digits without a leading zero
    DIGITS = auto()
    PROMISE = auto()
    TOKENS = auto()
    PROMISE_END = auto()
    ASYNC_END = auto()
    SYNC = auto()
    FORK = auto()


class Phase(IntEnum):
    """Where a branch stands. The values number the rows of a decoder's mask bank; :func:`free_row` has the others."""

    PLAIN = 0  # no tag at all
    THREAD = auto()  # of APAR, where it may fork
    MAIN = auto()  # no open promise
    MAIN_OPEN = auto()  # some open promise
    MAIN_OPEN_FULL = auto()  # the same, and no further promise allowed
    TOPIC_START = auto()
    TOPIC = auto()
    TOPIC_LAST_WORD = auto()
    TOPIC_END = auto()
    COUNT_START = auto()  # of two digits at most
    COUNT_START_OF_3 = auto()
    COUNT_LAST_2_DIGITS = auto()
    COUNT_LAST_DIGIT = auto()
    COUNT_END = auto()
    BODY_START = auto()
    BODY = auto()
    BODY_END = auto()


ALLOWS: dict[Phase, frozenset[Kind]] = {
    Phase.PLAIN: frozenset({Kind.TEXT}),
    Phase.THREAD: frozenset({Kind.TEXT, Kind.FORK}),
    Phase.MAIN: frozenset({Kind.TEXT, Kind.PROMISE}),
    Phase.MAIN_OPEN: frozenset({Kind.TEXT, Kind.PROMISE, Kind.SYNC}),
    Phase.MAIN_OPEN_FULL: frozenset({Kind.TEXT, Kind.SYNC}),
    Phase.TOPIC_START: frozenset({Kind.PIECE}),
    Phase.TOPIC: frozenset({Kind.PIECE, Kind.WORD, Kind.TOKENS}),
    Phase.TOPIC_LAST_WORD: frozenset({Kind.PIECE, Kind.TOKENS}),
    Phase.TOPIC_END: frozenset({Kind.TOKENS}),
    Phase.COUNT_START: frozenset({Kind.FIRST_DIGITS}),
    Phase.COUNT_START_OF_3: frozenset({Kind.FIRST_DIGITS}),
    Phase.COUNT_LAST_2_DIGITS: frozenset({Kind.DIGITS, Kind.PROMISE_END}),
    Phase.COUNT_LAST_DIGIT: frozenset({Kind.DIGITS, Kind.PROMISE_END}),
    Phase.COUNT_END: frozenset({Kind.PROMISE_END}),
    Phase.BODY_START: frozenset({Kind.CONTENT}),
    Phase.BODY: frozenset({Kind.CONTENT, Kind.ASYNC_END}),
    Phase.BODY_END: frozenset({Kind.ASYNC_END}),
}
# What a branch without the constraint does not write either: limits of the decoder, which break no grammar.
LIMITS: dict[Phase, frozenset[Kind]] = {
    Phase.PLAIN: frozenset({Kind.PROMISE}),
    Phase.MAIN_OPEN_FULL: frozenset({Kind.PROMISE}),
    Phase.TOPIC_START: frozenset({Kind.WORD, Kind.UNFIT}),
    Phase.TOPIC: frozenset({Kind.UNFIT}),
    Phase.TOPIC_LAST_WORD: frozenset({Kind.UNFIT}),
    Phase.TOPIC_END: frozenset({Kind.PIECE, Kind.WORD, Kind.UNFIT}),
    Phase.COUNT_END: frozenset({Kind.DIGITS}),
    Phase.BODY_START: frozenset({Kind.ASYNC_END}),
}
# The most digits that one token may have where digits are allowed.
DIGITS_LEFT = {
    Phase.COUNT_START: 2,
    Phase.COUNT_START_OF_3: 3,
    Phase.COUNT_LAST_2_DIGITS: 2,
    Phase.COUNT_LAST_DIGIT: 1,
}
_COUNT_STARTS = {2: Phase.COUNT_START, 3: Phase.COUNT_START_OF_3}
_COUNT_GOES_ON = {2: Phase.COUNT_LAST_2_DIGITS, 1: Phase.COUNT_LAST_DIGIT, 0: Phase.COUNT_END}


def kinds_of(text: str, *, special: bool) -> frozenset[Kind]:
    """The kinds of a token that is no tag, by its text."""
    if special or not text:
        return frozenset({Kind.TEXT})
    kinds = {Kind.TEXT, Kind.CONTENT}
    core = text[1:] if text.startswith(" ") else text
    fit = 0 < len(core) <= MAX_TOPIC_TOKEN and core.isprintable() and " " not in core and "\ufffd" not in core
    if not TOPIC_FORBIDDEN.search(core):
        kinds.add(Kind.UNFIT if not fit else Kind.PIECE if core == text else Kind.WORD)
    if text.isascii() and text.isdigit() and len(text) <= MAX_COUNT_DIGITS:
        kinds |= {Kind.DIGITS} if text.startswith("0") else {Kind.DIGITS, Kind.FIRST_DIGITS}
    return frozenset(kinds)


def free_row(row: int) -> int:
    """The row of a decoder's mask bank that masks only the limits of the phase ``row``."""
    return len(Phase) + row


def max_promise_annotation(positions: PositionStrategy) -> int:
    """The tokens of one promise's annotation at most: three tags, topic and digits of its head, two tags of its body, a
    sync."""
    return 3 + MAX_TOPIC_TOKENS + positions.max_decoded_digits + 2 + 1


def body_budget(tokens_predicted: int) -> int:
    """The most tokens a body may have, its tags counted: twice what was predicted, at least 64 more than that."""
    return max(2 * tokens_predicted, tokens_predicted + 64)


class Grammar(Protocol):
    """What a branch is constrained by."""

    @property
    def mask_row(self) -> int: ...

    def advance(self, token: int) -> None: ...


@dataclass
class Unconstrained:
    """A branch that may break its grammar. Only limits are masked, so that as long as it is not ``broken`` it has
    written what it might have written constrained; greedily, the very same.

    ``allows`` says whether a phase's mask lets a token through. Whoever runs the branch ends this when it is broken.
    """

    grammar: Grammar
    allows: Callable[[int, int], bool]
    broken: bool = False

    @property
    def mask_row(self) -> int:
        return free_row(self.grammar.mask_row)

    def advance(self, token: int) -> None:
        """Move on by any token; one that the grammar forbids leaves it where it is."""
        self.broken = not self.allows(self.grammar.mask_row, token)
        if not self.broken:
            self.grammar.advance(token)


@dataclass
class PlainGrammar:
    """Text only: the main branch of a method without tags."""

    @property
    def mask_row(self) -> int:
        return Phase.PLAIN

    def advance(self, token: int) -> None:
        """Nothing changes."""


@dataclass
class MainGrammar:
    """The main branch: text, promises, and syncs where a promise is open.

    ``num_open`` is the number of bodies that are still being decoded, ``positions_left`` how many of the model's
    positions promises may still skip; whoever runs the branch keeps both up to date.
    """

    tags: TagMap
    token_text: Callable[[int], str]
    max_promises: int
    max_branches: int
    positions_left: int
    num_open: int = 0
    num_promises: int = 0
    num_unsynced: int = 0
    phase: Phase = Phase.MAIN
    _topic: str = field(default="", repr=False)
    _num_topic_tokens: int = 0

    @property
    def mask_row(self) -> int:
        if self.phase not in (Phase.MAIN, Phase.MAIN_OPEN):
            return self.phase
        room = self.num_open < self.max_branches and self.positions_left >= self.tags.positions.max_decoded_gap
        may_promise = self.num_promises < self.max_promises and room
        if self.num_unsynced:
            return Phase.MAIN_OPEN if may_promise else Phase.MAIN_OPEN_FULL
        return Phase.MAIN if may_promise else Phase.PLAIN

    def advance(self, token: int) -> None:
        """Move on by a token that the mask allowed."""
        if token == self.tags.promise:
            self.phase, self._topic, self._num_topic_tokens = Phase.TOPIC_START, "", 0
        elif token == self.tags.tokens:
            self.phase = _COUNT_STARTS[self.tags.positions.max_decoded_digits]
        elif token == self.tags.promise_end:
            self.num_promises += 1
            self.num_unsynced += 1
            self.phase = Phase.MAIN_OPEN
        elif token == self.tags.sync:
            self.num_unsynced = 0
            self.phase = Phase.MAIN
        elif self.phase in (Phase.TOPIC_START, Phase.TOPIC, Phase.TOPIC_LAST_WORD):
            self._topic += self.token_text(token)
            self._num_topic_tokens += 1
            self.phase = self._topic_phase()
        elif self.phase in DIGITS_LEFT:
            self.phase = _COUNT_GOES_ON[DIGITS_LEFT[self.phase] - len(self.token_text(token))]

    def _topic_phase(self) -> Phase:
        if len(self._topic) >= MAX_TOPIC_GROWTH or self._num_topic_tokens >= MAX_TOPIC_TOKENS:
            return Phase.TOPIC_END
        last_word = self._topic.count(" ") >= MAX_TOPIC_WORDS - 1
        return Phase.TOPIC_LAST_WORD if last_word else Phase.TOPIC


@dataclass
class BodyGrammar:
    """A body: at least one token of content, then its end, at the latest when ``budget`` is reached (tags counted)."""

    budget: int
    num_tokens: int = 1  # <|async|> is forced

    @property
    def mask_row(self) -> int:
        if self.num_tokens == 1:
            return Phase.BODY_START
        return Phase.BODY if self.num_tokens + 1 < self.budget else Phase.BODY_END

    @property
    def at_budget(self) -> bool:
        """Whether the body was closed by its budget, not by the model."""
        return self.num_tokens >= self.budget

    def advance(self, token: int) -> None:
        """Move on by any token."""
        del token
        self.num_tokens += 1
