"""Characters to lexemes, in pieces of any size. Knows what a tag looks like, not where it may stand.

Holds back at most one tag (``MAX_TAG_CHARS``), the start of one, and a count of backslashes.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Never

from pasta_ray.errors import PastaError
from pasta_ray.lang.document import TAG_OPENING, check_count, check_topic
from pasta_ray.lang.positions import PRED_10X, PositionStrategy

MAX_TAG_CHARS = 200

Kind = Literal["text", "promise", "<async>", "</async>", "<sync/>", "end"]


class PastaSyntaxError(PastaError):
    """Text that is not PASTA-LANG. ``line`` and ``column`` count from 1; ``expected`` says what may stand there."""

    http_status = 400

    def __init__(self, line: int, column: int, found: str, expected: str) -> None:
        super().__init__(f"line {line}, column {column}: found {found}; expected {expected}")
        self.line = line
        self.column = column
        self.found = found
        self.expected = expected


@dataclass(frozen=True)
class Lexeme:
    kind: Kind
    line: int
    column: int
    text: str = ""
    topic: str = ""
    num_tokens: int = 0


_SPECIAL = re.compile(r"[\\<]")
_BACKSLASHES = re.compile(r"\\*")
_TAG = re.compile(TAG_OPENING)
_TAG_STARTS = tuple(f"<{slash}{name}" for slash in ("", "/") for name in ("promise", "async", "sync"))
_FIXED_TAGS: dict[str, tuple[Kind, re.Pattern[str]]] = {
    "<async": ("<async>", re.compile(r"<async[ \t\r\n]*>")),
    "</async": ("</async>", re.compile(r"</async[ \t\r\n]*>")),
    "<sync": ("<sync/>", re.compile(r"<sync[ \t\r\n]*/>")),
}
_PROMISE_PARTS = (
    (re.compile(r"<promise"), "<promise"),
    (re.compile(r'[ \t\r\n]+topic="'), ' topic="…"'),
    (re.compile(r'(?P<topic>[^"<>]*)"'), 'a topic and its closing "'),
    (re.compile(r'[ \t\r\n]+tokens="'), ' tokens="…"'),
    (re.compile(r'(?P<tokens>0|[1-9][0-9]{0,5})"'), 'a number and its closing "'),
    (re.compile(r"[ \t\r\n]*/>\Z"), "/>"),
)


class Lexer:
    """``feed`` pieces, then ``close``; each yields the lexemes that are certain by then. Read each to its end."""

    def __init__(self, positions: PositionStrategy = PRED_10X) -> None:
        self._positions = positions
        self._tail = ""  # undecided characters, starting at a "<"
        self._num_backslashes = 0  # directly before _tail, not given out yet
        self._line = 1
        self._column = 1

    def feed(self, piece: str) -> Iterator[Lexeme]:
        yield from self._scan(self._tail + piece, final=False)

    def close(self) -> Iterator[Lexeme]:
        yield from self._scan(self._tail, final=True)
        yield Lexeme("end", self._line, self._column)

    def _scan(self, chars: str, *, final: bool) -> Iterator[Lexeme]:
        at = 0
        while at < len(chars):
            if chars[at] == "\\":
                end = _BACKSLASHES.match(chars, at).end()  # type: ignore[union-attr]  # it always matches
                self._num_backslashes += end - at
                at = end
            elif chars[at] != "<":
                yield from self._release_backslashes()
                special = _SPECIAL.search(chars, at)
                end = special.start() if special else len(chars)
                yield self._take("text", chars[at:end])
                at = end
            elif _TAG.match(chars, at):
                if self._num_backslashes % 2:
                    yield from self._release_backslashes(keep_one_in=2)
                    yield self._take("text", "<")
                    at += 1
                    continue
                end = self._tag_end(chars, at, final=final)
                if end is None:
                    break
                yield from self._release_backslashes(keep_one_in=2)
                yield self._tag(chars[at:end])
                at = end
            elif not final and any(start.startswith(chars[at:]) for start in _TAG_STARTS):
                break
            else:
                yield from self._release_backslashes()
                yield self._take("text", "<")
                at += 1
        self._tail = chars[at:]
        if final:
            yield from self._release_backslashes()

    def _release_backslashes(self, *, keep_one_in: int = 1) -> Iterator[Lexeme]:
        """Give out the held backslashes; before a tag every second one."""
        num, self._num_backslashes = self._num_backslashes, 0
        if num:
            lexeme = self._take("text", "\\" * num)
            if num // keep_one_in:
                yield Lexeme("text", lexeme.line, lexeme.column, "\\" * (num // keep_one_in))

    def _tag_end(self, chars: str, at: int, *, final: bool) -> int | None:
        end = chars.find(">", at, at + MAX_TAG_CHARS) + 1
        if end:
            return end
        if final or len(chars) - at >= MAX_TAG_CHARS:
            column = self._column + self._num_backslashes
            raise PastaSyntaxError(self._line, column, "a tag without end", f'">" within {MAX_TAG_CHARS} characters')
        return None

    def _tag(self, tag: str) -> Lexeme:
        name = re.match(r"</?[a-z]+", tag).group()  # type: ignore[union-attr]  # it is a tag's opening
        if name == "<promise":
            return self._promise(tag)
        if name not in _FIXED_TAGS:
            self._fail(tag, 0, "<promise …/>, <async>, </async> or <sync/>")
        kind, pattern = _FIXED_TAGS[name]
        if not pattern.fullmatch(tag):
            self._fail(tag, len(name), kind[len(name) :])
        return self._take(kind, tag)

    def _promise(self, tag: str) -> Lexeme:
        at = 0
        values: dict[str, str] = {}
        for pattern, expected in _PROMISE_PARTS:
            match = pattern.match(tag, at)
            if not match:
                self._fail(tag, at, expected)
            values |= match.groupdict()
            wrong = None
            if "topic" in match.groupdict():
                wrong = check_topic(values["topic"])
            elif "tokens" in match.groupdict():
                wrong = check_count(int(values["tokens"]), self._positions)
            if wrong:
                self._fail(tag, at, wrong.allowed, found=wrong.found)
            at = match.end()
        lexeme = self._take("promise", tag)
        return Lexeme("promise", lexeme.line, lexeme.column, topic=values["topic"], num_tokens=int(values["tokens"]))

    def _fail(self, tag: str, at: int, expected: str, *, found: str | None = None) -> Never:
        self._move(tag[:at])
        raise PastaSyntaxError(self._line, self._column, found or repr(tag[at : at + 20]), expected)

    def _take(self, kind: Kind, chars: str) -> Lexeme:
        lexeme = Lexeme(kind, self._line, self._column, chars if kind == "text" else "")
        self._move(chars)
        return lexeme

    def _move(self, chars: str) -> None:
        lines = chars.count("\n")
        self._line += lines
        self._column = len(chars) - chars.rfind("\n") if lines else self._column + len(chars)
