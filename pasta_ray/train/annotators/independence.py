"""The ``independence`` annotator: a part becomes a body where the base model hardly misses its siblings.

Where a part could start is a matter of form (sections, items, paragraphs, runs of sentences: ``splits.py``); whether it
may be written beside the others is measured. Of a candidate document, each body is scored twice by the base model:

- *sequential*: all tokens in order, each seeing all before it;
- *parallel*: the very same tokens under the layout's mask and positions, so that a body sees the main text and the
  topics up to its own promise, the bodies joined before, and itself, but no sibling.

The body's *drop* is the difference of its mean log-likelihoods, in nats a token. A document is valid if each body's
drop is below δ.

The base model knows no tags. A head is therefore written in words that it knows, ``[topic]``, and a body starts with
``:`` as it would with ``<|async|>``: forced, never scored. Both passes get the same tokens, heads included: decoding
has the topics, too, and in one pass alone they would make the bodies look likelier than they are. So all that differs
is what parallel decoding changes: siblings hidden, and positions that leave room for the predicted lengths.

The words that a topic repeats are not scored where its body says them. That bodies start with their topics is a habit
of documents: in order the base model picks it up from the first body, in parallel it cannot know it, and a model that
learns from documents will. Measured (docs/training.md): the first token alone loses several nats, which would drown
what the content loses.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import torch

from pasta_ray.engine.config import EngineConfig
from pasta_ray.errors import InputError
from pasta_ray.lang import Document, Layout, Promise, Sync, Text, TokenDocument, TokenPromise, TokenSync, TokenText
from pasta_ray.lang.layout import layout
from pasta_ray.lang.tokens import TokenNode
from pasta_ray.train.annotators.base import Annotation, CountTokens
from pasta_ray.train.annotators.splits import (
    MIN_SPEEDUP,
    Group,
    Level,
    Span,
    build_document,
    find_groups,
    merge_short,
    pays,
    speedup,
)
from pasta_ray.train.annotators.topics import first_words, key_words, topic_fault
from pasta_ray.train.data import ChatTokenizer, Example, Record
from pasta_ray.train.likelihood import Likelihood
from pasta_ray.train.pairs import Pair

ALL_LEVELS: tuple[Level, ...] = ("section", "list", "paragraph", "sentence")
PROSE: tuple[Level, ...] = ("paragraph", "sentence")  # a part that depends on the one before it becomes one with it
MIN_RUN_TOKENS = 12  # of a run of sentences: a shorter body takes longer to promise than to write
DEFAULT_DELTA = 0.2


@dataclass(frozen=True)
class IndependenceConfig:
    """``delta`` in nats a token. ``max_runs`` bounds the bodies that an answer's sentences and paragraphs become."""

    delta: float = DEFAULT_DELTA
    levels: Sequence[Level] = ALL_LEVELS
    max_runs: int = 8
    device: str = "cpu"
    dtype: str = "float32"
    batch_size: int = 8
    name: ClassVar[str] = "independence"

    def __post_init__(self) -> None:
        EngineConfig(device=self.device, dtype=self.dtype)  # it knows what is allowed
        if math.isnan(self.delta):
            raise InputError("delta is nan; allowed: a number of nats a token")
        if not set(self.levels) <= set(ALL_LEVELS):
            raise InputError(f"levels are {', '.join(self.levels)}; allowed: {', '.join(ALL_LEVELS)}")

    def load(self, model: Path, tokenizer: ChatTokenizer, /) -> "IndependenceAnnotator":
        likelihood = Likelihood.load(model, device=self.device, dtype=self.dtype)
        return IndependenceAnnotator(self, likelihood, tokenizer)


@dataclass(frozen=True)
class Candidate:
    """A document that an answer could become. ``bound`` is its predicted speedup: what is left of it when a body
    turns out to depend on another is no faster."""

    level: Level
    groups: tuple[Group, ...]
    document: Document
    bound: float


@dataclass
class _Search:
    """One answer's candidates, and the best document so far. Candidates that cannot beat it are never scored."""

    pair: Pair
    best: Document
    best_speedup: float = 1.0
    open: list[Candidate] = field(default_factory=list)
    seen: set[tuple[Group, ...]] = field(default_factory=set)

    def next(self) -> Candidate | None:
        self.open.sort(key=lambda candidate: candidate.bound)
        candidate = self.open.pop() if self.open else None
        return candidate if candidate and candidate.bound > self.best_speedup else None


class IndependenceAnnotator:
    def __init__(self, config: IndependenceConfig, likelihood: Likelihood, tokenizer: ChatTokenizer) -> None:
        self._config = config
        self.likelihood = likelihood
        self._tokenizer = tokenizer
        self._count_tokens: CountTokens = lambda text: len(tokenizer.encode(text))

    def annotate(self, pairs: Sequence[Pair]) -> list[Annotation]:
        searches = [self._begin(pair) for pair in pairs]
        while asked := [(search, candidate) for search in searches if (candidate := search.next())]:
            drops = self.drops([(search.pair, candidate.document) for search, candidate in asked])
            for (search, candidate), drop in zip(asked, drops, strict=True):
                self._learn(search, candidate, drop)
        return [Annotation(search.best) for search in searches]

    def candidates(self, pair: Pair) -> list[Candidate]:
        """What an answer could become by its form, one candidate a level at most."""
        return self._begin(pair).open

    def _begin(self, pair: Pair) -> _Search:
        search = _Search(pair, Document((Text(pair.output),)))
        for level in self._config.levels:
            self._propose(search, level, self._split(pair.output, level))
        return search

    def _split(self, answer: str, level: Level) -> list[Group]:
        groups = find_groups(answer, level)
        if level == "sentence":
            most = self._config.max_runs
            groups = [merge_short(answer, group, self._count_tokens, MIN_RUN_TOKENS, most) for group in groups]
        return groups

    def _propose(self, search: _Search, level: Level, groups: Sequence[Group]) -> None:
        answer = search.pair.output
        paying = tuple(g for g in groups if len(g) > 1 and pays(answer, g, self._count_tokens))
        if not paying or paying in search.seen:
            return
        search.seen.add(paying)
        if level in PROSE and sum(map(len, paying)) > self._config.max_runs:
            return
        document = build_document(answer, paying, self._count_tokens, key_words if level in PROSE else first_words)
        bound = speedup(document, self._count_tokens)
        if bound >= MIN_SPEEDUP and not topic_fault(document) and self._fits(search.pair, document):
            search.open.append(Candidate(level, paying, document, bound))

    def _fits(self, pair: Pair, document: Document) -> bool:
        return max(self._layout(pair, document)[0].positions) < self.likelihood.num_positions

    def _learn(self, search: _Search, candidate: Candidate, drops: Sequence[float]) -> None:
        """A valid candidate is the best so far. Of another, what is left is proposed, to be measured as it then stands:
        with a sync before each body that depends on others, or, in prose, with such a body made one with that before.
        """
        independent = iter([drop < self._config.delta for drop in drops])
        verdicts = [[next(independent) for _ in group] for group in candidate.groups]
        if all(map(all, verdicts)):
            search.best, search.best_speedup = candidate.document, candidate.bound
            return
        judged = list(zip(candidate.groups, verdicts, strict=True))
        self._propose(search, candidate.level, [part for g, ok in judged for part in split_where_dependent(g, ok)])
        if candidate.level in PROSE:
            self._propose(search, candidate.level, [join_dependent(g, ok) for g, ok in judged])

    def drops(self, documents: Sequence[tuple[Pair, Document]]) -> list[list[float]]:
        """For each document, how much each body's mean log-likelihood drops in parallel, in nats a token."""
        examples: list[Example] = []
        lengths: list[list[int]] = []
        for pair, document in documents:
            parallel, num_labels = self._layout(pair, document)
            lengths.append(num_labels)
            kinds = (0,) * len(parallel.ids)
            examples += [Example(pair.id, in_order(parallel), kinds), Example(pair.id, parallel, kinds)]
        scores = self.likelihood(examples)
        drops = []
        for sequential, parallel_, num_labels in zip(scores[::2], scores[1::2], lengths, strict=True):
            parts = torch.split(sequential - parallel_, num_labels)
            drops.append([float(part.mean()) if len(part) else 0.0 for part in parts])
        return drops

    def _layout(self, pair: Pair, document: Document) -> tuple[Layout, list[int]]:
        """Layout of prompt and document in the base model's own words, bodies its only labels; and their numbers."""
        record = Record(id=pair.id, instruction=pair.instruction, document="", system=pair.system, input=pair.input)
        prompt = self._tokenizer.encode_chat(record.messages)
        tokens = in_plain_words(document, self._tokenizer)
        laid_out = layout(tokens, prompt)
        sources: list[int | None] = [None] * len(prompt)
        bodies = iter(document.promises)
        lengths: list[int] = []
        for node in tokens.nodes:
            if isinstance(node, TokenPromise):
                sources += [None] * (len(node.head) + 1)  # the forced ":" is part of the body
                scored = self._scored(next(bodies), len(node.body) - 1)
                sources += [len(sources) + i - 1 if counts else None for i, counts in enumerate(scored)]
                lengths.append(sum(scored))
            else:
                sources += [None] * (len(node.ids) if isinstance(node, TokenText) else 1)
        return replace(laid_out, label_source=tuple(sources)), lengths

    def _scored(self, promise: Promise, num_tokens: int) -> list[bool]:
        """Which tokens of a body count: all but those of the words that its topic gives away."""
        body, scored = promise.text(), [True] * num_tokens
        for start, end in given_away(promise.topic, body):
            first = self._count_tokens(body[:start].rstrip())  # a word's token has the space before it
            for i in range(first, min(self._count_tokens(body[:end]), num_tokens)):
                scored[i] = False
        return scored


def in_plain_words(document: Document, tokenizer: ChatTokenizer) -> TokenDocument:
    """A document without tags: ``[topic]`` for a promise, ``:`` for the start of its body, a line's end for a sync."""
    colon, newline = tokenizer.encode(":")[-1], tokenizer.encode("\n")[-1]
    nodes: list[TokenNode] = []
    for node in document.nodes:
        if isinstance(node, Promise):
            body = (colon, *tokenizer.encode(node.text()))
            nodes.append(TokenPromise(tuple(tokenizer.encode(f"[{node.topic}]")), node.num_tokens, body))
        elif isinstance(node, Sync):
            nodes.append(TokenSync(newline))
        else:
            nodes.append(TokenText(tuple(tokenizer.encode(node.text))))
    return TokenDocument(tuple(nodes))


def given_away(topic: str, body: str) -> list[Span]:
    """Where a body says its topic's words, in their order, the first with the mark-up before it; nowhere if not all."""
    spans: list[Span] = []
    for word in topic.split():
        found = re.compile(rf"(?<!\w){re.escape(word)}(?!\w)").search(body, spans[-1][1] if spans else 0)
        if not found:
            return []
        spans.append(found.span())
    if not re.search(r"\w", body[: spans[0][0]]):
        spans[0] = (0, spans[0][1])
    return spans


def in_order(parallel: Layout) -> Layout:
    """The same tokens one after the other, each seeing all before it."""
    num = len(parallel.ids)
    return replace(parallel, positions=tuple(range(num)), visible=tuple(((0, i + 1),) for i in range(num)))


def split_where_dependent(group: Group, independent: Sequence[bool]) -> list[Group]:
    """Groups with a sync before each body that depends on those before it. A first body that is not independent, though
    it sees all that is before it, is left to the main text."""
    parts: list[list[tuple[int, int]]] = []
    for index, (span, alone) in enumerate(zip(group, independent, strict=True)):
        if not alone and index == 0:
            continue
        if not parts or not alone:
            parts.append([])
        parts[-1].append(span)
    return [tuple(part) for part in parts if len(part) > 1]


def join_dependent(group: Group, independent: Sequence[bool]) -> Group:
    """The group with each body that depends on those before it made one with the last of them."""
    joined: list[tuple[int, int]] = []
    for span, alone in zip(group, independent, strict=True):
        if alone or not joined:
            joined.append(span)
        else:
            joined[-1] = (joined[-1][0], span[1])
    return tuple(joined)
