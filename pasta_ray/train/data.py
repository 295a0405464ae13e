"""Documents to packed batches: token ids, positions, mask and labels, all of them from ``lang``'s layout."""

import bisect
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from pydantic import BaseModel, ConfigDict

from pasta_ray.errors import InputError
from pasta_ray.lang import (
    PRED_1X,
    ControlMap,
    Document,
    Layout,
    PastaSyntaxError,
    TagMap,
    TokenDocument,
    TokenText,
    encode_document,
    layout,
    parse,
    thread_layout,
)
from pasta_ray.train.apar import to_thread
from pasta_ray.train.jsonl import read_models
from pasta_ray.train.judges.base import Question

KINDS = ("text", "tag", "topic", "length")

Tags = TagMap | ControlMap


class Record(BaseModel):
    """One line of a documents file. ``document`` is linear PASTA-LANG."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str
    instruction: str
    document: str
    system: str | None = None
    input: str | None = None

    @property
    def messages(self) -> list[dict[str, str]]:
        return Question(self.instruction, self.input, self.system).messages

    def parsed(self) -> Document:
        """``document`` as a tree, whatever its position strategy. Raises InputError where it does not parse."""
        try:
            return parse(self.document, PRED_1X)  # which allows any length
        except PastaSyntaxError as error:
            raise InputError(f"document {self.id}: {error}") from error


class ChatTokenizer(Protocol):
    """What training needs of the engine's tokenizer."""

    @property
    def stop_ids(self) -> Sequence[int]: ...

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...

    def encode_chat(self, messages: Sequence[dict[str, str]]) -> list[int]: ...


@dataclass(frozen=True)
class Example:
    """One document with its prompt: its layout, and for each token what kind of thing it is (an index of KINDS)."""

    id: str
    layout: Layout
    kinds: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.layout.ids)

    @property
    def num_labels(self) -> int:
        return sum(source is not None for source in self.layout.label_source)


@dataclass(frozen=True)
class Batch:
    """One packed row of T tokens and its M labels. Token ``sources[m]``'s logits are to predict ``labels[m]``.

    ids, positions: int64 [1, T]; mask: bool [1, 1, T, T], True where a token (row) sees another (column);
    sources, labels, kinds: int64 [M]; example_ids: the documents in it.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    mask: torch.Tensor
    sources: torch.Tensor
    labels: torch.Tensor
    kinds: torch.Tensor
    example_ids: tuple[str, ...]

    def to(self, device: torch.device) -> "Batch":
        return Batch(
            self.ids.to(device),
            self.positions.to(device),
            self.mask.to(device),
            self.sources.to(device),
            self.labels.to(device),
            self.kinds.to(device),
            self.example_ids,
        )


def read_records(paths: Iterable[Path]) -> list[Record]:
    """All documents of some JSONL files. Raises InputError that names file and line."""
    return [record for path in paths for _, record in read_models(path, Record)]


@dataclass(frozen=True)
class Encoder:
    """Records to examples: a model's tokenizer, and its tags; None for a model that writes none."""

    tokenizer: ChatTokenizer
    tags: Tags | None

    def encode(self, record: Record) -> Example:
        return build_example(record, self.tokenizer, self.tags)


def build_example(
    record: Record, tokenizer: ChatTokenizer, tags: Tags | None, *, exact: bool = True, finished: bool = True
) -> Example:
    """A record in tokens: PASTA-LANG or APAR's threads, by whose ``tags`` these are. Without, it is the answer alone.

    ``exact``: each predicted length is what its body really takes, whatever the document says. ``finished``: the end
    token comes last, and is to be predicted; an answer that was cut off has none.
    """
    document = record.parsed()
    prompt_ids = tokenizer.encode_chat(record.messages)
    if isinstance(tags, ControlMap):
        assert finished, "a thread has its end token"
        threads = thread_layout(to_thread(document, tokenizer, tokenizer.stop_ids[0]), tags, prompt_ids)
        return Example(record.id, threads, _kinds(threads.ids, tags))
    if tags is None:
        tokens = TokenDocument((TokenText(tuple(tokenizer.encode(document.text()))),))
    else:
        tokens = encode_document(document, tokenizer, tags, exact=exact)
    if finished:
        tokens = TokenDocument((*tokens.nodes, TokenText((tokenizer.stop_ids[0],))))
    laid_out = layout(tokens, prompt_ids)
    return Example(record.id, laid_out, _kinds(laid_out.ids, tags))


def _kinds(ids: Sequence[int], tags: Tags | None) -> tuple[int, ...]:
    kinds, inside = [], "text"
    opens = {tags.promise: "topic", tags.tokens: "length"} if isinstance(tags, TagMap) else {}
    for token in ids:
        if tags is None or token not in tags.ids:
            kinds.append(KINDS.index(inside))
            continue
        kinds.append(KINDS.index("tag"))
        inside = opens.get(token, "text")
    return tuple(kinds)


def pack(lengths: Sequence[int], batch_tokens: int, seed: int) -> list[list[int]]:
    """Indices of ``lengths``, none above ``batch_tokens``, in packs of at most that sum.

    In a seeded order each goes where it leaves the least room (best fit), and the packs are shuffled.
    """
    order = list(range(len(lengths)))
    random.Random(seed).shuffle(order)
    packs: list[list[int]] = []
    open_packs: list[tuple[int, int]] = []  # room and pack, ascending
    for index in order:
        assert lengths[index] <= batch_tokens, "what fits no pack is left out before"
        at = bisect.bisect_left(open_packs, (lengths[index], -1))
        if at == len(open_packs):
            room, chosen = batch_tokens, len(packs)
            packs.append([])
        else:
            room, chosen = open_packs.pop(at)
        packs[chosen].append(index)
        if room > lengths[index]:
            bisect.insort(open_packs, (room - lengths[index], chosen))
    random.Random(seed + 1).shuffle(packs)
    return packs


def collate(examples: Sequence[Example]) -> Batch:
    """One pack as tensors: examples side by side, blind to each other."""
    total = sum(map(len, examples))
    mask = torch.zeros(total, total, dtype=torch.bool)
    ids: list[int] = []
    positions: list[int] = []
    sources, labels, kinds = [], [], []
    for example in examples:
        start, laid_out = len(ids), example.layout
        for i, ranges in enumerate(laid_out.visible):
            for first, last in ranges:
                mask[start + i, start + first : start + last] = True
        for i, source in enumerate(laid_out.label_source):
            if source is not None:
                sources.append(start + source)
                labels.append(laid_out.ids[i])
                kinds.append(example.kinds[i])
        ids += laid_out.ids
        positions += laid_out.positions
    return Batch(
        ids=torch.tensor([ids]),
        positions=torch.tensor([positions]),
        mask=mask[None, None],
        sources=torch.tensor(sources),
        labels=torch.tensor(labels),
        kinds=torch.tensor(kinds),
        example_ids=tuple(example.id for example in examples),
    )
