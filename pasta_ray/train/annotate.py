"""Instruction/answer pairs to documents: choose what is worth learning from, annotate it, count what is dropped."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from pasta_ray.errors import InputError
from pasta_ray.lang import Document, Promise, Sync, Text
from pasta_ray.train.annotators.syntax import LEVELS, Level, annotate

LOOP_WORDS = 6


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
    finished: bool = True


@dataclass(frozen=True)
class Selection:
    """Which pairs become documents. Lengths are in tokens of the answer."""

    min_tokens: int = 8
    max_tokens: int = 400
    max_prompt_tokens: int = 200
    max_repetition: float = 0.25
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
    if not path.is_file():
        raise InputError(f"{path}: no such answers file")
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield Pair.model_validate(json.loads(line))
            except (json.JSONDecodeError, ValidationError) as error:
                raise InputError(f"{path}, line {number}: not an instruction/output pair: {error}") from error


def annotate_pairs(
    pairs: Iterable[Pair], count_tokens: Callable[[str], int], selection: Selection, result: Annotated
) -> Iterator[dict[str, Any]]:
    """The document records of ``pairs``, as training reads them; ``result`` is counted up on the way."""
    for pair in pairs:
        answer = pair.output.strip()
        reason = _unfit(pair, answer, count_tokens, selection)
        document = Document((Text(answer),)) if reason else annotate(answer, count_tokens, selection.levels)
        if not reason and not pair.finished:
            cut = _without_last_part(document)
            reason, document = ("cut off", document) if cut is None else (None, cut)
        if not reason and selection.only_promising and not document.promises:
            reason = "no promise"
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


def _unfit(pair: Pair, answer: str, count_tokens: Callable[[str], int], selection: Selection) -> str | None:
    if pair.benchmark:
        return "benchmark prompt"
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


def _without_last_part(document: Document) -> Document | None:
    """An answer that was cut off, up to its last complete body; None where that leaves fewer than two."""
    nodes = list(document.nodes)
    while nodes and not isinstance(nodes[-1], Promise):
        nodes.pop()
    nodes = nodes[:-1]
    while nodes and not isinstance(nodes[-1], Promise):
        nodes.pop()
    if sum(isinstance(node, Promise) for node in nodes) < 2 or isinstance(nodes[-1], Sync):
        return None
    return Document(tuple(nodes))
