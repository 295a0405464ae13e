"""The parsed answer: a tree of text, promises with their bodies, and syncs."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from pasta_ray.errors import PastaError
from pasta_ray.lang.positions import PRED_10X, PositionStrategy

MAX_TOPIC_WORDS = 3
MAX_TOPIC_CHARS = 64
TOPIC_FORBIDDEN = re.compile(r'["<>\\\x00-\x1f\x7f\u0085\u2028\u2029]')

# A backslash before a tag makes it text; backslashes that stand directly before a tag are doubled.
TAG_OPENING = r"</?(?:promise|async|sync)[ \t\r\n/>]"
_LITERAL_TAG = re.compile(rf"(?<!\\)(\\*)(?={TAG_OPENING})")


class DocumentError(PastaError):
    """A document that the grammar does not allow."""


@dataclass(frozen=True)
class Wrong:
    """What a check found, and what it allows."""

    found: str
    allowed: str

    def __str__(self) -> str:
        return f"{self.found}; allowed: {self.allowed}"


def check_topic(topic: str) -> Wrong | None:
    """One to three words, single spaces between them, no quotes, angle brackets, backslashes or control characters."""
    words = topic.split(" ")
    if not topic or len(words) > MAX_TOPIC_WORDS or topic.split() != words:
        return Wrong(f"topic {topic!r}", f"one to {MAX_TOPIC_WORDS} words with single spaces between them")
    if TOPIC_FORBIDDEN.search(topic):
        return Wrong(f"topic {topic!r}", 'no quotes ("), angle brackets, backslashes or control characters')
    if len(topic) > MAX_TOPIC_CHARS:
        return Wrong(f"a topic of {len(topic)} characters", f"up to {MAX_TOPIC_CHARS}")
    return None


def check_count(num_tokens: int, positions: PositionStrategy) -> Wrong | None:
    """A predicted length N is what the position strategy can write: with Pred-10X a multiple of 10, up to 9,990."""
    return None if positions.allows(num_tokens) else Wrong(f"tokens {num_tokens}", positions.allowed)


def predicted_tokens(body_tokens: int) -> int:
    """The exact N (Pred-10X) of a body of ``body_tokens`` tokens, its tags counted: rounded up to a multiple of 10."""
    return PRED_10X.predict(body_tokens)


@dataclass(frozen=True)
class Text:
    text: str


@dataclass(frozen=True)
class Sync:
    pass


@dataclass(frozen=True)
class Promise:
    """A promise and its body. The body is a tree of its own, ready for nesting; version 1 holds only text in it.

    ``positions`` says which lengths may be predicted; it is no part of what the document says.
    """

    topic: str
    num_tokens: int
    body: tuple["Node", ...]
    positions: PositionStrategy = field(default=PRED_10X, compare=False, repr=False)

    def __post_init__(self) -> None:
        wrong = check_topic(self.topic) or check_count(self.num_tokens, self.positions)
        if wrong:
            raise DocumentError(str(wrong))
        if not all(isinstance(node, Text) for node in self.body):
            raise DocumentError(f"promise {self.topic!r}: version 1 allows no promise or sync inside a body")

    def text(self) -> str:
        """What the reader sees of the body."""
        return _text(self.body)


Node = Text | Promise | Sync


@dataclass(frozen=True)
class Document:
    """An answer. Equal answers are equal documents: neighbouring texts are one, empty ones are dropped."""

    nodes: tuple[Node, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "nodes", _normal(self.nodes))
        num_open = 0
        for node in self.nodes:
            if isinstance(node, Sync):
                if not num_open:
                    raise DocumentError("a sync needs an open promise before it")
                num_open = 0
            num_open += isinstance(node, Promise)

    @property
    def promises(self) -> tuple[Promise, ...]:
        return tuple(node for node in self.nodes if isinstance(node, Promise))

    @property
    def num_syncs(self) -> int:
        return sum(isinstance(node, Sync) for node in self.nodes)

    def text(self) -> str:
        """What the reader sees: bodies in their promises' places, no tags."""
        return _text(self.nodes)

    def linear(self) -> str:
        """The text form; ``parse(document.linear()) == document``, with the promises' position strategy."""
        parts = []
        for node in self.nodes:
            if isinstance(node, Promise):
                tag = f'<promise topic="{node.topic}" tokens="{node.num_tokens}"/>'
                parts.append(f"{tag}<async>{escape(node.text(), before_tag=True)}</async>")
            elif isinstance(node, Sync):
                parts.append("<sync/>")
            else:
                parts.append(escape(node.text, before_tag=node is not self.nodes[-1]))
        return "".join(parts)

    def critical_path(self, count_tokens: Callable[[str], int], *, promise_tokens: Callable[[Promise], int]) -> int:
        """Model steps that must follow one another, the end token's included, with room for every branch at once.

        ``count_tokens`` measures a text, ``promise_tokens`` a promise's tag. Body steps run beside the main branch's;
        a sync waits for the last open body (its close tag and the sync share a step).
        """
        path = CriticalPath()
        for node in self.nodes:
            if isinstance(node, Promise):
                path.main(promise_tokens(node))
                path.fork(count_tokens(node.text()) + 2)
            elif isinstance(node, Sync):
                path.main(1)
                path.sync()
            else:
                path.main(count_tokens(node.text))
        path.main(1)
        path.sync()
        return path.steps

    def to_dict(self) -> dict[str, Any]:
        """The tree as JSON-ready values."""
        return {"nodes": [_node_dict(node) for node in self.nodes]}


@dataclass
class CriticalPath:
    """Counts model steps: ``steps`` until the main branch's last token, ``last_body`` until the last open body's."""

    steps: int = 0
    last_body: int = 0
    num_main: int = 0

    def main(self, num_tokens: int) -> None:
        self.num_main += num_tokens
        self.steps += num_tokens

    def fork(self, body_tokens: int) -> None:
        """A body of ``body_tokens``, tags included; its opening tag is forced, so it samples one token less."""
        self.last_body = max(self.last_body, self.steps + body_tokens - 1)

    def sync(self) -> None:
        self.steps = max(self.steps, self.last_body)


def escape(text: str, *, before_tag: bool) -> str:
    """Text as it stands in the text form. ``before_tag``: a tag follows it directly."""
    if before_tag:
        text += "\\" * (len(text) - len(text.rstrip("\\")))
    return _LITERAL_TAG.sub(r"\1\1\\", text)


def _normal(nodes: tuple[Node, ...]) -> tuple[Node, ...]:
    merged: list[Node] = []
    for node in nodes:
        if isinstance(node, Text):
            if not node.text:
                continue
            if merged and isinstance(merged[-1], Text):
                merged[-1] = Text(merged[-1].text + node.text)
                continue
        elif isinstance(node, Promise):
            node = replace(node, body=_normal(node.body))
        merged.append(node)
    return tuple(merged)


def _text(nodes: tuple[Node, ...]) -> str:
    return "".join(
        node.text if isinstance(node, Text) else node.text() if isinstance(node, Promise) else "" for node in nodes
    )


def _node_dict(node: Node) -> dict[str, Any]:
    if isinstance(node, Text):
        return {"type": "text", "text": node.text}
    if isinstance(node, Sync):
        return {"type": "sync"}
    body = [_node_dict(child) for child in node.body]
    return {"type": "promise", "topic": node.topic, "tokens": node.num_tokens, "body": body}
