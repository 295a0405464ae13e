"""The token form of a document, and its conversion to and from the text form, without loss."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from pasta_ray.errors import PastaError
from pasta_ray.lang.document import Document, DocumentError, Node, Promise, Sync, Text, check_count
from pasta_ray.lang.positions import PRED_10X, PositionStrategy
from pasta_ray.lang.tags import TagMap

_COUNT = re.compile(r"0|[1-9][0-9]{0,5}")


class TextTokenizer(Protocol):
    """What the codec needs of a tokenizer: plain text only, special tokens neither read nor written."""

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


class TokenFormError(PastaError):
    """Tokens that are not the token form of a document. ``index`` is the place of the offending token."""

    def __init__(self, index: int, found: str, expected: str) -> None:
        super().__init__(f"token {index}: found {found}; expected {expected}")
        self.index = index
        self.expected = expected


@dataclass(frozen=True)
class TokenText:
    ids: tuple[int, ...]


@dataclass(frozen=True)
class TokenPromise:
    """``head`` is ``<|promise|> T <|tokens|> N/unit <|/promise|>``, ``body`` is ``<|async|> … <|/async|>``.

    ``positions`` is what the head was written with, and says where the main branch goes on.
    """

    head: tuple[int, ...]
    num_tokens: int
    body: tuple[int, ...]
    positions: PositionStrategy = PRED_10X

    @property
    def gap(self) -> int:
        """The positions that the main branch skips behind the promise."""
        return self.positions.gap(self.num_tokens)


@dataclass(frozen=True)
class TokenSync:
    id: int


TokenNode = TokenText | TokenPromise | TokenSync


@dataclass(frozen=True)
class TokenDocument:
    """A document in tokens. ``ids`` is its linear form, each body right behind its promise."""

    nodes: tuple[TokenNode, ...]

    @property
    def ids(self) -> list[int]:
        ids: list[int] = []
        for node in self.nodes:
            if isinstance(node, TokenPromise):
                ids += node.head + node.body
            elif isinstance(node, TokenSync):
                ids.append(node.id)
            else:
                ids += node.ids
        return ids


def encode_document(
    document: Document, tokenizer: TextTokenizer, tags: TagMap, *, exact: bool = False
) -> TokenDocument:
    """Text form to token form. With ``exact`` each N is what its body really takes, whatever the document says.

    Raises DocumentError for an N that the tags' position strategy cannot write, such as 15 with Pred-10X.
    """
    nodes: list[TokenNode] = []
    for node in document.nodes:
        if isinstance(node, Promise):
            content = tokenizer.encode(node.text())
            body = (tags.async_, *content, tags.async_end)
            num_tokens = tags.positions.predict(len(body)) if exact else node.num_tokens
            head = _encode_head(node.topic, num_tokens, tokenizer, tags)
            nodes.append(TokenPromise(head, num_tokens, body, tags.positions))
        elif isinstance(node, Sync):
            nodes.append(TokenSync(tags.sync))
        else:
            nodes.append(TokenText(tuple(tokenizer.encode(node.text))))
    return TokenDocument(tuple(nodes))


def _encode_head(topic: str, num_tokens: int, tokenizer: TextTokenizer, tags: TagMap) -> tuple[int, ...]:
    if wrong := check_count(num_tokens, tags.positions):
        raise DocumentError(f"promise {topic!r}: {wrong} (position strategy {tags.positions.name})")
    count = tokenizer.encode(str(num_tokens // tags.positions.unit))
    return (tags.promise, *tokenizer.encode(topic), tags.tokens, *count, tags.promise_end)


def read_tokens(ids: Sequence[int], tokenizer: TextTokenizer, tags: TagMap) -> TokenDocument:
    """Linear token form to its parts. Raises TokenFormError with the place of the first token that does not fit."""
    nodes: list[TokenNode] = []
    num_open = index = 0
    while index < len(ids):
        token = ids[index]
        if token == tags.promise:
            node = _read_promise(ids, index, tokenizer, tags)
            nodes.append(node)
            num_open += 1
            index += len(node.head) + len(node.body)
        elif token == tags.sync:
            if not num_open:
                raise TokenFormError(index, "<|sync|>", "an open promise before it")
            nodes.append(TokenSync(token))
            num_open = 0
            index += 1
        elif token in tags.ids:
            raise TokenFormError(index, f"tag token {token}", "text, <|promise|> or <|sync|>")
        else:
            end = next((i for i in range(index, len(ids)) if ids[i] in tags.ids), len(ids))
            nodes.append(TokenText(tuple(ids[index:end])))
            index = end
    return TokenDocument(tuple(nodes))


def _read_promise(ids: Sequence[int], start: int, tokenizer: TextTokenizer, tags: TagMap) -> TokenPromise:
    count_at = _next_tag(ids, start + 1, tags.tokens, tags, "<|tokens|> after a topic")
    end = _next_tag(ids, count_at + 1, tags.promise_end, tags, "<|/promise|> after a count")
    _, num_tokens = read_head(ids[start : end + 1], tokenizer, tags, at=start)
    if end + 1 >= len(ids) or ids[end + 1] != tags.async_:
        raise TokenFormError(end + 1, "no body", "<|async|> right after <|/promise|>")
    body_end = _next_tag(ids, end + 2, tags.async_end, tags, "<|/async|>; version 1 has no tags inside a body")
    head, body = tuple(ids[start : end + 1]), tuple(ids[end + 1 : body_end + 1])
    return TokenPromise(head, num_tokens, body, tags.positions)


def _next_tag(ids: Sequence[int], start: int, wanted: int, tags: TagMap, expected: str) -> int:
    index = next((i for i in range(start, len(ids)) if ids[i] in tags.ids), len(ids))
    if index == len(ids) or ids[index] != wanted:
        raise TokenFormError(index, "the end" if index == len(ids) else f"tag token {ids[index]}", expected)
    return index


def read_head(head: Sequence[int], tokenizer: TextTokenizer, tags: TagMap, *, at: int = 0) -> tuple[str, int]:
    """Topic and N of ``<|promise|> T <|tokens|> N/unit <|/promise|>``. Raises TokenFormError; the head starts at
    ``at``."""
    split = list(head).index(tags.tokens)
    topic, count = tokenizer.decode(head[1:split]).strip(" "), tokenizer.decode(head[split + 1 : -1])
    unit = tags.positions.unit
    if not _COUNT.fullmatch(count):
        expected = f"digits without a leading zero: the predicted length divided by {unit}"
        raise TokenFormError(at + split + 1, repr(count), expected)
    num_tokens = int(count) * unit
    try:
        Promise(topic, num_tokens, (), tags.positions)
    except DocumentError as error:
        raise TokenFormError(at, f"topic {topic!r} and count {count!r}", str(error)) from error
    return topic, num_tokens


def decode_document(tokens: TokenDocument, tokenizer: TextTokenizer, tags: TagMap) -> Document:
    """Token form to text form."""
    nodes: list[Node] = []
    for node in tokens.nodes:
        if isinstance(node, TokenPromise):
            topic, num_tokens = read_head(node.head, tokenizer, tags)
            body = (Text(tokenizer.decode(node.body[1:-1])),)
            nodes.append(Promise(topic, num_tokens, body, tags.positions))
        elif isinstance(node, TokenSync):
            nodes.append(Sync())
        else:
            nodes.append(Text(tokenizer.decode(node.ids)))
    return Document(tuple(nodes))
