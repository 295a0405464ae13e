"""The ``syntax`` annotator: an answer's own structure (sections, list items, paragraphs) says where it splits.

What APAR does (arXiv 2401.06761). It looks at form only; whether the parts are truly independent it does not know.
The outermost structure wins: a section keeps its lists, an item its sub-items, because bodies hold no promises.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from pasta_ray.lang.document import MAX_TOPIC_WORDS, Document, Node, Promise, Sync, Text, check_topic, predicted_tokens

Level = Literal["section", "list", "paragraph"]
LEVELS: tuple[Level, ...] = ("section", "list", "paragraph")

MIN_SPEEDUP = 1.1
TAG_TOKENS_IN_PROMISE = 3

_HEADING = re.compile(r"^(?:#{1,6} +\S.*|\*\*[^*\n]+\*\*:?|__[^_\n]+__:?) *$")
_NUMBERED = re.compile(r"^(?P<number>\d{1,3})[.)](?= +\S)")
_BULLET = re.compile(r"^[-*•–](?= +\S)")
_TITLE = re.compile(
    r"^\s*(?:#{1,6} +)?(?:\d+[.)] +)?(?:\*\*|__)?(?P<title>[^:*_\n]{2,60}?)(?:\*\*:?|__:?|:)(?=\s|\*|$)"
)
_WORD = re.compile(r"[^\W_](?:[\w'’./&+-]*[^\W_])?")
_STOP_WORDS = frozenset(
    (
        "a",
        "an",
        "the",
        "of",
        "to",
        "in",
        "on",
        "for",
        "and",
        "or",
        "with",
        "your",
        "you",
        "is",
        "are",
        "be",
        "it",
        "its",
        "this",
        "that",
        "by",
        "as",
        "at",
        "from",
        "if",
    )
)


@dataclass(frozen=True)
class _Part:
    """One body: lines ``[start, end)``; the first ``marker`` characters of its first line stay in the main text."""

    start: int
    end: int
    marker: int


def annotate(answer: str, count_tokens: Callable[[str], int], levels: Sequence[Level] = LEVELS) -> Document:
    """The document of ``answer``; ``document.text() == answer``. Where splitting would gain nothing, it has no promise.

    ``count_tokens`` is the length of a text in the model's tokens.
    """
    lines = answer.split("\n")
    for level in LEVELS:
        if level not in levels:
            continue
        groups = _GROUPERS[level](lines)
        nodes = _build(lines, groups, count_tokens)
        if any(isinstance(node, Promise) for node in nodes):
            return Document(tuple(nodes))
    return Document((Text(answer),))


def has_structure(answer: str) -> bool:
    """Whether an answer is, or holds, a list of two items or more, or has sections."""
    lines = answer.split("\n")
    return bool(_sections(lines) or _lists(lines))


def _sections(lines: Sequence[str]) -> list[list[_Part]]:
    starts = [i for i, line in enumerate(lines) if _HEADING.match(line)]
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
        if outside and (pattern is _BULLET or _HEADING.match(lines[i])):
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


_GROUPERS: dict[Level, Callable[[Sequence[str]], list[list[_Part]]]] = {
    "section": _sections,
    "list": _lists,
    "paragraph": _paragraphs,
}


def _build(lines: Sequence[str], groups: Sequence[list[_Part]], count_tokens: Callable[[str], int]) -> list[Node]:
    """Text and promises in order; a group that gains too little stays text; a sync where text follows its bodies."""
    offsets = [0]
    for line in lines:
        offsets.append(offsets[-1] + len(line) + 1)
    answer = "\n".join(lines)
    nodes: list[Node] = []
    done = 0
    for group in groups:
        spans = [(offsets[part.start] + part.marker, offsets[part.end] - 1) for part in group]
        promises = [_promise(answer[start:end], i + 1, count_tokens) for i, (start, end) in enumerate(spans)]
        if _speedup(promises, count_tokens) < MIN_SPEEDUP:
            continue
        for (start, end), promise in zip(spans, promises, strict=True):
            nodes += [Text(answer[done:start]), promise]
            done = end
        if answer[done:].strip():
            nodes.append(Sync())
    nodes.append(Text(answer[done:]))
    return nodes


def _promise(body: str, number: int, count_tokens: Callable[[str], int]) -> Promise:
    return Promise(topic_of(body, number), predicted_tokens(count_tokens(body) + 2), (Text(body),))


def _speedup(promises: Sequence[Promise], count_tokens: Callable[[str], int]) -> float:
    """Of the group alone: its tokens in turn over its critical path."""
    document = Document(tuple(promises))
    path = document.critical_path(
        count_tokens,
        promise_tokens=lambda p: TAG_TOKENS_IN_PROMISE + count_tokens(p.topic) + len(str(p.num_tokens // 10)),
    )
    return (count_tokens(document.text()) + 1) / path


def topic_of(body: str, number: int) -> str:
    """Up to three words that say what a body is about: of its title if it has one, else of its first line."""
    first_line = next((line for line in body.split("\n") if line.strip()), "")
    title = _TITLE.match(first_line)
    heading = first_line if _HEADING.match(first_line) else None
    words = _WORD.findall(title["title"] if title else heading or first_line)
    while len(words) > 1 and words[0].lower() in _STOP_WORDS:
        words = words[1:]
    words = words[:MAX_TOPIC_WORDS]
    while len(words) > 1 and words[-1].lower() in _STOP_WORDS:
        words = words[:-1]
    topic = " ".join(words)
    return topic if topic and not check_topic(topic) else f"Part {number}"
