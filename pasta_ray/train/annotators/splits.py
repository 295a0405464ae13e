"""Where an answer could split: its sections, list items, paragraphs and sentences, as ranges of characters.

Form only. Whether the parts depend on each other is for the annotators to say.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from pasta_ray.lang.document import Document, Node, Promise, Sync, Text, predicted_tokens
from pasta_ray.train.annotators.topics import HEADING, Namer, first_words

Level = Literal["section", "list", "paragraph", "sentence"]
Span = tuple[int, int]  # [start, end) in the answer: what becomes a body
Group = tuple[Span, ...]  # bodies that are open side by side

MIN_SPEEDUP = 1.1
TAG_TOKENS_IN_PROMISE = 3

_NUMBERED = re.compile(r"^(?P<number>\d{1,3})[.)](?= +\S)")
_BULLET = re.compile(r"^[-*•–](?= +\S)")
# A sentence ends at . ! ? (and closing quotes or brackets) before white space and a capital, digit or opening quote.
_SENTENCE_END = re.compile(r"[.!?]+[\"'”’)\]*_]*(?=\s+[\"'“‘(\[*_]*[A-Z0-9])|[。！？]+")
_ABBREVIATION = re.compile(
    r"(?:\b(?:[A-Za-z]|Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|vs|etc|cf|al|Fig|No|Inc|Ltd|Co|approx|e\.g|i\.e|[ap]\.m)|^\s*\d+)\.$"
)


@dataclass(frozen=True)
class _Part:
    """Lines ``[start, end)``; the first ``marker`` characters of its first line stay in the main text."""

    start: int
    end: int
    marker: int


def find_groups(answer: str, level: Level) -> list[Group]:
    """The groups of bodies into which ``answer`` splits at ``level``, in order; each has two bodies or more."""
    lines = answer.split("\n")
    offsets = [0]
    for line in lines:
        offsets.append(offsets[-1] + len(line) + 1)
    if level == "sentence":
        groups = [_sentences(answer, offsets[part.start], offsets[part.end] - 1) for part in _prose(lines)]
    else:
        groups = [
            tuple((offsets[part.start] + part.marker, offsets[part.end] - 1) for part in parts)
            for parts in _GROUPERS[level](lines)
        ]
    return [group for group in groups if len(group) >= 2]


def has_structure(answer: str) -> bool:
    """Whether an answer is, or holds, a list of two items or more, or has sections."""
    lines = answer.split("\n")
    return bool(_sections(lines) or _lists(lines))


def _sections(lines: Sequence[str]) -> list[list[_Part]]:
    starts = [i for i, line in enumerate(lines) if HEADING.match(line)]
    if len(starts) < 2:
        return []
    if starts[0] == 0 and lines[0].startswith("# ") and not any(lines[i].startswith("# ") for i in starts[1:]):
        starts = starts[1:]  # the title of the whole answer is no section
    ends = [*starts[1:], len(lines)]
    parts = [_Part(start, _trim(lines, start, end), 0) for start, end in zip(starts, ends, strict=True)]
    return [parts] if len(parts) >= 2 else []


def _lists(lines: Sequence[str]) -> list[list[_Part]]:
    groups: list[list[_Part]] = []
    at = 0
    while at < len(lines):
        group = _list_at(lines, at)
        if len(group) >= 2:
            groups.append(group)
        at = max(at + 1, group[-1].end if group else 0)
    return groups


def _list_at(lines: Sequence[str], at: int) -> list[_Part]:
    """The items of the list whose first marker stands on line ``at``."""
    group: list[_Part] = []
    pattern = next((p for p in (_NUMBERED, _BULLET) if p.match(lines[at])), None)
    while pattern and at < len(lines) and (marker := pattern.match(lines[at])):
        if pattern is _NUMBERED and group and int(marker["number"]) != _number(lines[group[-1].start]) + 1:
            break
        following = _next_item(lines, at, pattern)
        end = following if following is not None else _item_end(lines, at)
        group.append(_Part(at, _trim(lines, at, end), marker.end()))
        at = end
    return group


def _number(line: str) -> int:
    match = _NUMBERED.match(line)
    return int(match["number"]) if match else -1


def _next_item(lines: Sequence[str], at: int, pattern: re.Pattern[str]) -> int | None:
    """The line of the item after the one at ``at``; a numbered list runs on over paragraphs, a bulleted does not."""
    for i in range(at + 1, len(lines)):
        if pattern.match(lines[i]):
            return i if pattern is _BULLET or _number(lines[i]) == _number(lines[at]) + 1 else None
        outside = lines[i] and not lines[i].startswith((" ", "\t")) and not lines[i - 1]
        if outside and (pattern is _BULLET or HEADING.match(lines[i])):
            return None
    return None


def _item_end(lines: Sequence[str], at: int) -> int:
    """The line after a last item: the first that is not indented behind a blank one."""
    for i in range(at + 1, len(lines)):
        if lines[i] and not lines[i].startswith((" ", "\t")) and not lines[i - 1]:
            return i
    return len(lines)


def _paragraphs(lines: Sequence[str]) -> list[list[_Part]]:
    starts = [i for i, line in enumerate(lines) if line.strip() and (i == 0 or not lines[i - 1].strip())]
    if len(starts) < 3:
        return []
    ends = [*starts[1:], len(lines)]
    return [[_Part(s, _trim(lines, s, e), 0) for s, e in zip(starts[1:], ends[1:], strict=True)]]


def _trim(lines: Sequence[str], start: int, end: int) -> int:
    """``end`` without the blank lines before it."""
    while end > start + 1 and not lines[end - 1].strip():
        end -= 1
    return end


_GROUPERS: dict[str, Callable[[Sequence[str]], list[list[_Part]]]] = {
    "section": _sections,
    "list": _lists,
    "paragraph": _paragraphs,
}


def _prose(lines: Sequence[str]) -> list[_Part]:
    """The lines that are neither headings nor items nor indented."""
    return [
        _Part(i, i + 1, 0)
        for i, line in enumerate(lines)
        if line.strip()
        and not (HEADING.match(line) or _NUMBERED.match(line) or _BULLET.match(line) or line[0] in " \t|")
    ]


def _sentences(answer: str, start: int, end: int) -> Group:
    """The sentences in [start, end) but for the first, on which the others build; each with the space before it."""
    found = (match.end() for match in _SENTENCE_END.finditer(answer, start, end))
    ends = [at for at in found if at < end and not _ABBREVIATION.search(answer[start:at])]
    return tuple(pairwise([*ends, end]))


def merge_short(
    answer: str, group: Group, count_tokens: Callable[[str], int], min_tokens: int, max_spans: int
) -> Group:
    """Neighbours made one until each has ``min_tokens`` and there are no more than ``max_spans`` of them."""
    while True:
        merged: list[Span] = []
        for start, end in group:
            if merged and count_tokens(answer[slice(*merged[-1])]) < min_tokens:
                merged[-1] = (merged[-1][0], end)
            else:
                merged.append((start, end))
        if len(merged) > 1 and count_tokens(answer[slice(*merged[-1])]) < min_tokens:
            merged[-2:] = [(merged[-2][0], merged[-1][1])]
        if len(merged) <= max_spans:
            return tuple(merged)
        min_tokens *= 2


def build_document(
    answer: str, groups: Sequence[Group], count_tokens: Callable[[str], int], name: Namer = first_words
) -> Document:
    """Text and promises in order, a sync behind each group that text follows; ``text()`` is ``answer``."""
    nodes: list[Node] = []
    done = 0
    for group in groups:
        promises = _promises(answer, group, count_tokens, name)
        for (start, end), promise in zip(group, promises, strict=True):
            nodes += [Text(answer[done:start]), promise]
            done = end
        if answer[done:].strip():
            nodes.append(Sync())
    nodes.append(Text(answer[done:]))
    return Document(tuple(nodes))


def pays(answer: str, group: Group, count_tokens: Callable[[str], int]) -> bool:
    """Whether the bodies of a group, taken alone, are faster side by side than in turn."""
    promises = _promises(answer, group, count_tokens, first_words)
    return speedup(Document(tuple(promises)), count_tokens) >= MIN_SPEEDUP


def _promises(answer: str, group: Group, count_tokens: Callable[[str], int], name: Namer) -> list[Promise]:
    bodies = [answer[start:end] for start, end in group]
    return [
        Promise(topic, predicted_tokens(count_tokens(body) + 2), (Text(body),))
        for topic, body in zip(name(bodies), bodies, strict=True)
    ]


def speedup(document: Document, count_tokens: Callable[[str], int]) -> float:
    """Predicted: the tokens of the text and its end in turn, over the critical path."""
    path = document.critical_path(
        count_tokens,
        promise_tokens=lambda p: TAG_TOKENS_IN_PROMISE + count_tokens(p.topic) + len(str(p.num_tokens // 10)),
    )
    return (count_tokens(document.text()) + 1) / path
