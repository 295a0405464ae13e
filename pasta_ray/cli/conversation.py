"""A conversation line by line: what is no command is answered. Ctrl-C ends an answer, not the conversation."""

import asyncio
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from rich.console import Console
from rich.text import Text

from pasta_ray.cli.answering import Shown, shown, take
from pasta_ray.cli.live import printable
from pasta_ray.cli.speaking import Speaker
from pasta_ray.cli.timeline import timeline
from pasta_ray.engine.messages import Report
from pasta_ray.errors import InputError, PastaError

PROMPT = "> "


class Conversation:
    """``runner`` runs the speaker's coroutines; notes and errors go to ``notes``, answers to ``console``."""

    def __init__(
        self,
        speaker: Speaker,
        runner: asyncio.Runner,
        console: Console,
        notes: Console,
        system: str | None = None,
    ) -> None:
        self._speaker = speaker
        self._runner = runner
        self._console = console
        self._notes = notes
        self._start = [("system", system)] if system else []
        self._messages = list(self._start)
        self._with_timeline = True
        self._over = False
        self._commands: dict[str, tuple[str, Callable[[str], None]]] = {
            "help": ("this list", self._help),
            "method": ("[NAME]  how the next answers are decoded", self._method),
            "reset": ("forget what was said", self._reset),
            "timeline": ("show the branches after an answer, or do not", self._timeline),
            "quit": ("end; so does Ctrl-D", self._quit),
        }

    def run(self, read: Callable[[], str]) -> None:
        """Until ``read`` raises EOFError or a command ends it."""
        while not self._over:
            try:
                line = read().strip()
                if line.startswith("/"):
                    self._obey(line)
                elif line:
                    self._say(line)
            except EOFError:
                return
            except KeyboardInterrupt:
                self._note("\nCtrl-D or /quit ends")
            except PastaError as error:
                self._note(f"error: {error}")

    def _say(self, line: str) -> None:
        """Answer ``line``. What was shown of a stopped answer stays in the conversation, of a failed one nothing."""
        messages = [*self._messages, ("user", line)]
        answer: Shown | None = None
        report: Report | None = None

        async def reply() -> None:
            nonlocal answer, report
            with shown(self._console) as answer:
                report = await take(self._speaker.answer(messages), answer.see)

        try:
            with _interruptible():
                self._runner.run(reply())
        except KeyboardInterrupt:
            self._note("stopped")
        text = report.text if report is not None else answer.text if answer is not None else ""
        if text:
            self._messages = [*messages, ("assistant", text)]
        if report is not None and self._console.is_terminal and self._with_timeline:
            self._console.print()
            self._console.print(timeline(report), end="\n\n")

    def _obey(self, line: str) -> None:
        name, _, argument = line[1:].partition(" ")
        if name not in self._commands:
            allowed = ", ".join(f"/{name}" for name in self._commands)
            raise InputError(f"there is no command {f'/{name}'!r}; allowed: {allowed}")
        self._commands[name][1](argument.strip())

    def _help(self, _: str) -> None:
        for name, (what, _do) in self._commands.items():
            self._note(f"/{name}  {what}")
        self._note("Ctrl-C stops an answer")

    def _method(self, name: str) -> None:
        if name:
            self._speaker.use(name)
        self._note(f"method: {self._speaker.method or 'the one that the model is for'}")

    def _reset(self, _: str) -> None:
        self._messages = list(self._start)
        self._note("forgotten")

    def _timeline(self, _: str) -> None:
        self._with_timeline = not self._with_timeline
        self._note(f"timeline {'on' if self._with_timeline else 'off'}")

    def _quit(self, _: str) -> None:
        self._over = True

    def _note(self, text: str) -> None:
        self._notes.print(Text(printable(text), style="dim"))


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C reaches the coroutine that runs: `asyncio.Runner` only sees to it where nobody else handles it, and
    libraries that were started before may have left their own handler."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def read_line() -> str:
    """From the keyboard, with its history, or from a pipe, where nothing asks for it. Raises EOFError at the end."""
    try:
        if not sys.stdin.isatty():
            return input()
        with suppress(ImportError):  # not everywhere: then lines cannot be edited
            import readline  # noqa: F401  # makes input() edit lines
        return input(PROMPT)
    except UnicodeDecodeError as error:
        raise InputError(f"standard input: not UTF-8: {error.reason} at byte {error.start}") from error
