"""A terminal of a fixed size: what stands on it after what was written to it, as far as `rich` goes."""

import io
import re
from dataclasses import dataclass, field

from rich.console import Console

_TOKEN = re.compile(r"\x1b\[([?\d;]*)([A-Za-z])|\r|\n|\t|[^\x00-\x1f]")


@dataclass
class Screen:
    """``lines`` are all that were ever written, those that have scrolled away too. What is drawn above the top of the
    visible part is an error: a terminal could not do it."""

    width: int = 60
    height: int = 20
    lines: list[str] = field(default_factory=lambda: [""])
    _row: int = 0
    _column: int = 0

    def write(self, text: str) -> None:
        at = 0
        while at < len(text):
            match = _TOKEN.match(text, at)
            assert match, f"not understood: {text[at : at + 10]!r}"
            at = match.end()
            if match[2]:
                self._command(match[1], match[2])
            elif match[0] == "\r":
                self._column = 0
            elif match[0] == "\n":
                self._row, self._column = self._row + 1, 0
                if self._row == len(self.lines):
                    self.lines.append("")
            else:
                self._put(match[0])

    def _put(self, letter: str) -> None:
        assert self._column < self.width, "rich wraps lines itself"
        line = self.lines[self._row].ljust(self._column)
        self.lines[self._row] = line[: self._column] + letter + line[self._column + 1 :]
        self._column += 1

    def _command(self, argument: str, kind: str) -> None:
        match kind:
            case "A":
                self._row -= int(argument or 1)
                assert self._row >= max(0, len(self.lines) - self.height), "above the top of the terminal"
            case "K":
                self.lines[self._row] = ""
            case "m" | "h" | "l":
                pass
            case _:
                raise AssertionError(f"unknown command {argument}{kind}")

    @property
    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self.lines)


class ScreenFile(io.StringIO):
    """A file that is a terminal."""

    def __init__(self, screen: Screen) -> None:
        super().__init__()
        self._screen = screen

    def write(self, text: str) -> int:
        self._screen.write(text)
        return len(text)


def terminal(screen: Screen) -> Console:
    return Console(
        file=ScreenFile(screen),
        force_terminal=True,
        width=screen.width,
        height=screen.height,
        color_system="truecolor",
        legacy_windows=False,
        _environ={},
    )
