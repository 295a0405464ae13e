"""Instruction/answer pairs to documents: choose what is worth learning from, annotate it, count what is dropped."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from pasta_ray.errors import InputError
from pasta_ray.lang import Document, Promise, Text
from pasta_ray.lang.document import Node
from pasta_ray.train.annotators.syntax import LEVELS, Level, annotate
from pasta_ray.train.jsonl import explain, read_json_lines

LOOP_WORDS = 6
_NUMBERED = re.compile(r"\s*\W*\d+[.)]")


class Pair(BaseModel):
    """One line of an answers file. ``finished`` is false for an answer that was cut off; it loses its last part."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str
    instruction: str
    output: str
    input: str | None = None
    system: str | None = None
    source: str | None = None
    license: str | None = None
    benchmark: bool = False
    split: str | None = None
    finished: bool = True


@dataclass(frozen=True)
class Selection:
    """Which pairs become documents. Lengths are in tokens of the answer; an answer of more than ``max_promises`` parts
    ends behind the last that is allowed."""

    min_tokens: int = 8
    max_tokens: int = 400
    max_prompt_tokens: int = 200
    max_repetition: float = 0.1
    max_promises: int = 8
    only_promising: bool = False
    levels: Sequence[Level] = LEVELS


@dataclass
class Annotated:
    """What an annotation run made of its input: counts of documents and promises, and of pairs dropped, by reason."""

    num_documents: int = 0
    num_with_promises: int = 0
    num_promises: int = 0
    dropped: Counter[str] = field(default_factory=Counter)


def read_pairs(path: Path) -> Iterator[Pair]:
    """Raises InputError that names file and line."""
    for number, values in read_json_lines(path):
        try:
            yield Pair.model_validate(values)
        except ValidationError as error:
            raise InputError(f"{path}, line {number}: {explain(error)}") from error


def annotate_pairs(
    pairs: Iterable[Pair], count_tokens: Callable[[str], int], selection: Selection, result: Annotated
) -> Iterator[dict[str, Any]]:
    """The document records of ``pairs``, as training reads them; ``result`` is counted up on the way."""
    for pair in pairs:
        document, reason = _choose(pair, count_tokens, selection)
        if reason:
            result.dropped[reason] += 1
            continue
        result.num_documents += 1
        result.num_with_promises += bool(document.promises)
        result.num_promises += len(document.promises)
        origin = pair.model_dump(
            include={"id", "instruction", "input", "system", "source", "license"}, exclude_none=True
        )
        yield origin | {"document": document.linear()}


def _choose(pair: Pair, count_tokens: Callable[[str], int], selection: Selection) -> tuple[Document, str | None]:
    """The document of a pair, and why it is not fit, if it is not. Topics repeat where two are equal, or half of
    them begin with words that others begin with."""
    answer = pair.output.strip()
    document = Document((Text(answer),))
    reason = _unfit(pair, answer, count_tokens, selection)
    if reason:
        return document, reason
    document = annotate(answer, count_tokens, selection.levels)
    if not pair.finished:
        document = _first_parts(document, len(document.promises) - 1)
        if len(document.promises) < 2:
            return document, "cut off"
    document = _first_parts(document, selection.max_promises)
    topics = [promise.topic.lower() for promise in document.promises]
    if any(promise.topic[0].isdigit() or _NUMBERED.match(promise.text()) for promise in document.promises):
        return document, "numbered twice"  # "1. 1. First": a model that learns it counts for ever
    if len(set(topics)) < len(topics) or 2 * len({topic.split()[0] for topic in topics}) <= len(topics) > 1:
        return document, "repeats a topic"
    if selection.only_promising and not topics:
        return document, "no promise"
    return document, None


def _unfit(pair: Pair, answer: str, count_tokens: Callable[[str], int], selection: Selection) -> str | None:
    if pair.benchmark:
        return "benchmark prompt"
    if pair.split not in (None, "train"):
        return f"{pair.split} split"
    if count_tokens(" ".join(filter(None, (pair.system, pair.instruction, pair.input)))) > selection.max_prompt_tokens:
        return "prompt too long"
    num_tokens = count_tokens(answer)
    if num_tokens < selection.min_tokens:
        return "answer too short"
    if num_tokens > selection.max_tokens:
        return "answer too long"
    if repetition(answer) > selection.max_repetition:
        return "repeats itself"
    return None


def repetition(text: str) -> float:
    """Share of a text's runs of six words that have occurred in it before; 0 for a text of fewer words."""
    words = text.lower().split()
    runs = [tuple(words[i : i + LOOP_WORDS]) for i in range(len(words) - LOOP_WORDS + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def _first_parts(document: Document, num: int) -> Document:
    """The document up to its ``num``-th body; the whole of it where it has no more than that."""
    if len(document.promises) <= num:
        return document
    nodes: list[Node] = []
    for node in document.nodes:
        if isinstance(node, Promise):
            num -= 1
            if num < 0:
                break
        nodes.append(node)
    while nodes and not isinstance(nodes[-1], Promise):
        nodes.pop()
    return Document(tuple(nodes))
