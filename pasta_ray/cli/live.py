"""An answer on a terminal while it is written: each open body grows in its own place, in its own colour.

Lines that nothing can change any more are printed once and scroll away; what still grows stands below them and is drawn
anew. Where that is taller than the terminal, each open branch shows its last words in a line of its own.
"""

import time
from dataclasses import dataclass
from types import TracebackType
from typing import Self
from unicodedata import category

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.style import Style
from rich.text import Text

from pasta_ray.engine.messages import MAIN_BRANCH, BranchClosed, Delta, Event, Events, PromiseOpened

COLOURS = ("#3d9be0", "#e0702b", "#b19e67", "#e77ab2", "#6d6ee8", "#ab6f72")
"""Of bodies, in turn: to be read on black and on white, and apart for colour-blind eyes too; numbers say the same."""

DRAW_S = 0.08


@dataclass(eq=False)
class _Segment:
    """A stretch of one branch's text, between two of its promises."""

    branch: str
    text: str = ""
    open: bool = True


class GrowingText:
    """Text in document order of which several places grow, without what has been taken as final."""

    def __init__(self) -> None:
        self._segments = [_Segment(MAIN_BRANCH)]
        self._growing = {MAIN_BRANCH: self._segments[0]}
        self._numbers = {MAIN_BRANCH: 0}

    def see(self, event: Event) -> None:
        match event:
            case PromiseOpened(branch=branch, parent=parent):
                self._fork(branch, parent)
            case Delta(branch=branch, text=text):
                self._growing[branch].text += printable(text)
            case BranchClosed(branch=branch):
                self._growing.pop(branch).open = False

    def close(self) -> None:
        """Nothing grows any more."""
        for segment in self._segments:
            segment.open = False
        self._growing.clear()

    def take_lines(self) -> Text:
        """Remove and return the whole lines that are final; at the end all that is left."""
        num_open = sum(segment.open for segment in self._segments)
        end = next((i + 1 for i, segment in enumerate(self._segments) if segment.open), len(self._segments))
        if num_open:
            while end and "\n" not in self._segments[end - 1].text:
                end -= 1
        if not end:
            return Text()
        taken, last = self._segments[: end - 1], self._segments[end - 1]
        cut = last.text.rindex("\n") + 1 if num_open else len(last.text)
        head = _Segment(last.branch, last.text[:cut], last.open)
        last.text = last.text[cut:]
        self._segments = self._segments[end - 1 :]
        return self._styled([*taken, head])

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = self._styled(self._segments, caret=True).wrap(console, options.max_width)
        if len(lines) < options.size.height - 1:
            yield from lines
            return
        for segment in self._growing.values():
            words = " ".join(segment.text.split())
            label = Text(f"{self._numbers[segment.branch] or ' '} ", self._style(segment))
            room = max(1, options.max_width - len(label) - 2)
            yield label + Text(f"…{words[-room:]}", self._style(segment), no_wrap=True, overflow="crop")

    def _fork(self, branch: str, parent: str) -> None:
        before, body, after = self._growing[parent], _Segment(branch), _Segment(parent)
        before.open = False
        at = self._segments.index(before) + 1
        self._segments[at:at] = [body, after]
        self._growing |= {branch: body, parent: after}
        self._numbers[branch] = len(self._numbers)

    def _styled(self, segments: list[_Segment], caret: bool = False) -> Text:
        text = Text()
        for segment in segments:
            text.append(segment.text, self._style(segment))
            if caret and segment.open:
                text.append("▍", self._style(segment))
        return text

    def _style(self, segment: _Segment) -> Style:
        return branch_style(self._numbers[segment.branch], bold=segment.open)


class LiveAnswer:
    """Shows one answer's messages as they come; a context, at whose end everything stands on the terminal."""

    def __init__(self, console: Console) -> None:
        self.text = ""
        self._console = console
        self._growing = GrowingText()
        self._live = Live(
            console=console, auto_refresh=False, transient=True, get_renderable=lambda: self._growing
        )  # drawn from here alone: a thread of its own would draw half a change
        self._drawn_s = 0.0

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._growing.close()
        rest = self._growing.take_lines()
        self._live.update(Text(), refresh=True)
        self._live.stop()
        self.text += rest.plain
        if rest:
            self._console.print(rest, end="" if rest.plain.endswith("\n") else "\n")

    def see(self, message: Events) -> None:
        for event in message.events:
            self._growing.see(event)
        now = time.monotonic()
        if now - self._drawn_s < DRAW_S:
            return
        self._drawn_s = now
        if lines := self._growing.take_lines():
            self.text += lines.plain
            self._console.print(lines, end="")
        self._live.refresh()


def branch_style(number: int, bold: bool = False) -> Style:
    """Of the main branch (0), which has no colour, or of the body with that number."""
    return Style(color=COLOURS[(number - 1) % len(COLOURS)] if number else None, bold=bold and number > 0)


def printable(text: str) -> str:
    """``text`` without characters that command a terminal, which neither a model nor a server may."""
    return "".join("\ufffd" if category(letter) in ("Cc", "Cs") and letter not in "\n\t" else letter for letter in text)
