"""Pairs to lines: choose what is worth learning from, annotate it, check it, say why the rest is dropped."""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from pasta_ray.lang import Document, PastaSyntaxError, Promise, parse
from pasta_ray.lang.document import Node
from pasta_ray.train.annotators.base import Annotation, Annotator, CountTokens
from pasta_ray.train.annotators.splits import speedup
from pasta_ray.train.annotators.topics import topic_fault
from pasta_ray.train.endpoint import Usage
from pasta_ray.train.pairs import Pair

LOOP_WORDS = 6
ORIGIN = {"id", "instruction", "input", "system", "source", "license"}

# A document's record, as training reads it, with its predicted "speedup"; or the "id" of a dropped pair with its
# "reason" and, where there is one, a "detail". Both may hold the "usage" of an endpoint.
Line = dict[str, Any]


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


@dataclass
class Counts:
    """What annotating made of its input. ``speedup`` is the geometric mean of the documents' predicted speedups."""

    num_documents: int = 0
    num_with_promises: int = 0
    num_promises: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    usage: Usage = field(default_factory=Usage)
    _log_speedup: float = 0.0

    @property
    def speedup(self) -> float:
        return math.exp(self._log_speedup / max(self.num_documents, 1))

    def add(self, line: Line) -> None:
        self.usage += Usage(**line.get("usage", {}))
        if "reason" in line:
            self.dropped[line["reason"]] += 1
            return
        num_promises = len(parse(line["document"]).promises)
        self.num_documents += 1
        self.num_with_promises += num_promises > 0
        self.num_promises += num_promises
        self._log_speedup += math.log(line["speedup"])


def annotate_pairs(
    pairs: Iterable[Pair], annotator: Annotator, count_tokens: CountTokens, selection: Selection
) -> list[Line]:
    """One line a pair, in order."""
    stripped = [pair.model_copy(update={"output": pair.output.strip()}) for pair in pairs]
    reasons = [unfit(pair, count_tokens, selection) for pair in stripped]
    annotations = iter(annotator.annotate([p for p, reason in zip(stripped, reasons, strict=True) if not reason]))
    lines = []
    for pair, reason in zip(stripped, reasons, strict=True):
        annotation = Annotation(reason=reason) if reason else next(annotations)
        line = _line(pair, _checked(pair, annotation, selection), count_tokens)
        lines.append(line | ({"usage": asdict(annotation.usage)} if annotation.usage else {}))
    return lines


def _line(pair: Pair, annotation: Annotation, count_tokens: CountTokens) -> Line:
    if annotation.document is None:
        return {"id": pair.id, "reason": annotation.reason} | (
            {"detail": annotation.detail} if annotation.detail else {}
        )
    return pair.model_dump(include=ORIGIN, exclude_none=True) | {
        "document": annotation.document.linear(),
        "speedup": round(speedup(annotation.document, count_tokens), 3),
    }


def _checked(pair: Pair, annotation: Annotation, selection: Selection) -> Annotation:
    """The annotation, its document shortened where it must be; or why the pair is dropped. Whoever wrote the document:
    it has to parse, and to say what the answer says."""
    document = annotation.document
    if document is None:
        return annotation
    try:
        parsed = parse(document.linear())
    except PastaSyntaxError as error:
        return Annotation(reason="the document does not parse", detail=str(error))
    if parsed != document or document.text() != pair.output:
        return Annotation(reason="the document changes the text")
    if not pair.finished:
        document = _first_parts(document, len(document.promises) - 1)
        if len(document.promises) < 2:
            return Annotation(reason="cut off")
    document = _first_parts(document, selection.max_promises)
    fault = topic_fault(document)
    if fault:
        return Annotation(reason=fault)
    if selection.only_promising and not document.promises:
        return Annotation(reason="no promise")
    return Annotation(document)


def unfit(pair: Pair, count_tokens: CountTokens, selection: Selection) -> str:
    """Why a pair is no use, whatever its annotation; empty where it is fit."""
    if pair.benchmark:
        return "benchmark prompt"
    if pair.split not in (None, "train"):
        return f"{pair.split} split"
    if count_tokens(" ".join(filter(None, (pair.system, pair.instruction, pair.input)))) > selection.max_prompt_tokens:
        return "prompt too long"
    num_tokens = count_tokens(pair.output)
    if num_tokens < selection.min_tokens:
        return "answer too short"
    if num_tokens > selection.max_tokens:
        return "answer too long"
    if repetition(pair.output) > selection.max_repetition:
        return "repeats itself"
    return ""


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
