"""Text that ends before the first of some strings, however it is cut into pieces."""

from collections.abc import Iterable, Sequence


def unfinished(text: str, wholes: Iterable[str]) -> int:
    """How many characters at the end of ``text`` are the start of one of ``wholes``, and not yet all of it."""
    return max(
        (n for whole in wholes for n in range(1, min(len(whole), len(text) + 1)) if text.endswith(whole[:n])), default=0
    )


class StopText:
    """``add`` pieces, get what may be shown by then; ``finish`` gives the rest. ``found`` is the string that ended it.

    Of several strings the one that is complete first ends the text; of those complete at the same character, the
    longest. So the text does not depend on its pieces. Held back is no more than what may be the start of a string.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        assert all(stops), "an empty string is found everywhere"
        self.found: str | None = None
        self._stops = tuple(stops)
        self._held = ""

    def add(self, piece: str) -> str:
        """What may be shown of the text so far; nothing once a string has been found."""
        if self.found is not None:
            return ""
        text = self._held + piece
        ends = [(start + len(stop), -len(stop), stop) for stop in self._stops if (start := text.find(stop)) >= 0]
        if ends:
            end, _, self.found = min(ends)
            self._held = ""
            return text[: end - len(self.found)]
        return self._release(text)

    def finish(self) -> str:
        """The text has ended by itself: what was held back."""
        rest, self._held = self._held, ""
        return rest

    def _release(self, text: str) -> str:
        end = len(text) - unfinished(text, self._stops)
        self._held = text[end:]
        return text[:end]
