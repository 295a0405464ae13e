"""Text in document order from branches that grow at the same time: the first open body streams, the rest waits."""

from dataclasses import dataclass, field
from typing import Generic, TypeVar

from pasta_ray.errors import PastaError

T = TypeVar("T")


class UnknownBranchError(PastaError):
    """A delta or close for a branch that was never opened, or is closed."""


@dataclass(eq=False)
class _Segment(Generic[T]):
    """A stretch of one branch between two of its promises."""

    branch: str
    pending: list[T] = field(default_factory=list)
    closed: bool = False


class Ordered(Generic[T]):
    """Pieces of an answer, whatever they are. Segments are in document order; everything before ``_shown`` has been
    given out completely."""

    def __init__(self, main: str = "0") -> None:
        first: _Segment[T] = _Segment(main)
        self._segments = [first]
        self._growing = {main: first}
        self._shown = 0

    def promise(self, branch: str, parent: str) -> None:
        """``parent`` has promised ``branch``: the parent's later pieces stand behind the body's."""
        before = self._open(parent)
        body: _Segment[T] = _Segment(branch)
        after: _Segment[T] = _Segment(parent)
        before.closed = True
        at = self._segments.index(before) + 1
        self._segments[at:at] = [body, after]
        self._growing |= {branch: body, parent: after}

    def delta(self, branch: str, piece: T) -> list[T]:
        """Add to a branch; returns what may be shown now."""
        self._open(branch).pending.append(piece)
        return self._advance()

    def close(self, branch: str) -> list[T]:
        """A branch has ended; returns what may be shown now."""
        self._open(branch).closed = True
        del self._growing[branch]
        return self._advance()

    def finish(self) -> list[T]:
        """The answer has ended: everything that is left."""
        for segment in self._segments:
            segment.closed = True
        self._growing.clear()
        return self._advance()

    def _open(self, branch: str) -> _Segment[T]:
        try:
            return self._growing[branch]
        except KeyError:
            raise UnknownBranchError(f"branch {branch!r} is not open; open: {sorted(self._growing)}") from None

    def _advance(self) -> list[T]:
        ready: list[T] = []
        while self._shown < len(self._segments):
            segment = self._segments[self._shown]
            ready += segment.pending
            segment.pending.clear()
            if not segment.closed:
                break
            self._shown += 1
        return ready


class OrderedText:
    """`Ordered` pieces of text, joined."""

    def __init__(self, main: str = "0") -> None:
        self._ordered: Ordered[str] = Ordered(main)

    def promise(self, branch: str, parent: str) -> None:
        self._ordered.promise(branch, parent)

    def delta(self, branch: str, text: str) -> str:
        return "".join(self._ordered.delta(branch, text))

    def close(self, branch: str) -> str:
        return "".join(self._ordered.close(branch))

    def finish(self) -> str:
        return "".join(self._ordered.finish())
