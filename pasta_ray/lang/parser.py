"""Lexemes to events, by a table of transitions, and events to a Document. Takes input, returns events, never waits."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from pasta_ray.lang.document import Document, Node, Promise, Sync, Text
from pasta_ray.lang.lexer import Kind, Lexeme, Lexer, PastaSyntaxError
from pasta_ray.lang.positions import PRED_10X, PositionStrategy


@dataclass(frozen=True)
class TextRead:
    """Text of the main branch or, between BodyStarted and BodyEnded, of a body. Its pieces depend on the input's."""

    text: str


@dataclass(frozen=True)
class PromiseRead:
    topic: str
    num_tokens: int


@dataclass(frozen=True)
class BodyStarted:
    pass


@dataclass(frozen=True)
class BodyEnded:
    pass


@dataclass(frozen=True)
class SyncRead:
    pass


Event = TextRead | PromiseRead | BodyStarted | BodyEnded | SyncRead

# main: no promise is open. open: some are. promised: right behind a promise. body: inside one.
State = Literal["main", "open", "promised", "body", "ended"]

_NEXT: dict[State, dict[Kind, State]] = {
    "main": {"text": "main", "promise": "promised", "end": "ended"},
    "open": {"text": "open", "promise": "promised", "<sync/>": "main", "end": "ended"},
    "promised": {"<async>": "body"},
    "body": {"text": "body", "</async>": "open"},
    "ended": {},
}
_EXPECTED: dict[State, str] = {
    "main": "text or <promise …/> (a <sync/> needs an open promise before it)",
    "open": "text, <promise …/> or <sync/>",
    "promised": "<async> right behind <promise …/>",
    "body": "text or </async> (version 1 has no tags inside a body)",
    "ended": "nothing more: the parser is closed",
}


class Parser:
    """``feed`` pieces of text of any size, then ``close``; each yields the events that are certain by then.

    Read each call's events to their end before the next call. PastaSyntaxError comes in its place among the events,
    at the first thing that does not fit; from then on every call raises it again. ``positions`` says which lengths a
    promise may predict.
    """

    def __init__(self, positions: PositionStrategy = PRED_10X) -> None:
        self._lexer = Lexer(positions)
        self._state: State = "main"
        self._error: PastaSyntaxError | None = None

    def feed(self, piece: str) -> Iterator[Event]:
        return self._run(self._lexer.feed(piece))

    def close(self) -> Iterator[Event]:
        return self._run(self._lexer.close())

    def _run(self, lexemes: Iterator[Lexeme]) -> Iterator[Event]:
        if self._error:
            raise self._error
        try:
            for lexeme in lexemes:
                event = self._step(lexeme)
                if event:
                    yield event
        except PastaSyntaxError as error:
            self._error = error
            raise

    def _step(self, lexeme: Lexeme) -> Event | None:
        following = _NEXT[self._state].get(lexeme.kind)
        if following is None:
            found = "the end" if lexeme.kind == "end" else lexeme.kind
            raise PastaSyntaxError(lexeme.line, lexeme.column, found, _EXPECTED[self._state])
        self._state = following
        return _event(lexeme)


def _event(lexeme: Lexeme) -> Event | None:
    match lexeme.kind:
        case "text":
            return TextRead(lexeme.text)
        case "promise":
            return PromiseRead(lexeme.topic, lexeme.num_tokens)
        case "<async>":
            return BodyStarted()
        case "</async>":
            return BodyEnded()
        case "<sync/>":
            return SyncRead()
        case "end":
            return None


def build_document(events: Iterable[Event], positions: PositionStrategy = PRED_10X) -> Document:
    """The tree of a complete run of events."""
    main: list[Node] = []
    body: list[Node] = []
    promise = PromiseRead("", 0)
    into = main
    for event in events:
        match event:
            case TextRead(text):
                into.append(Text(text))
            case PromiseRead():
                promise = event
            case BodyStarted():
                body = []
                into = body
            case BodyEnded():
                main.append(Promise(promise.topic, promise.num_tokens, tuple(body), positions))
                into = main
            case SyncRead():
                main.append(Sync())
    return Document(tuple(main))


def parse(text: str, positions: PositionStrategy = PRED_10X) -> Document:
    """Linear PASTA-LANG text to its Document. Raises PastaSyntaxError with line, column and what was expected."""
    parser = Parser(positions)
    return build_document([*parser.feed(text), *parser.close()], positions)
