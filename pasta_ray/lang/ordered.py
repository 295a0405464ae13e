"""Text in document order from branches that grow at the same time: the first open body streams, the rest waits."""

from dataclasses import dataclass, field

from pasta_ray.errors import PastaError


class UnknownBranchError(PastaError):
    """A delta or close for a branch that was never opened, or is closed."""


@dataclass(eq=False)
class _Segment:
    """A stretch of one branch's text between two of the main branch's promises."""

    branch: str
    pending: list[str] = field(default_factory=list)
    closed: bool = False


class OrderedText:
    """Segments in document order; everything before ``_shown`` has been given out completely."""

    def __init__(self, main: str = "0") -> None:
        self._segments = [_Segment(main)]
        self._growing = {main: self._segments[0]}
        self._shown = 0

    def promise(self, branch: str, parent: str) -> None:
        """``parent`` has promised ``branch``: the parent's later text stands behind the body's."""
        before = self._open(parent)
        body, after = _Segment(branch), _Segment(parent)
        before.closed = True
        at = self._segments.index(before) + 1
        self._segments[at:at] = [body, after]
        self._growing |= {branch: body, parent: after}

    def delta(self, branch: str, text: str) -> str:
        """Add to a branch; returns what may be shown now."""
        self._open(branch).pending.append(text)
        return self._advance()

    def close(self, branch: str) -> str:
        """A branch has ended; returns what may be shown now."""
        self._open(branch).closed = True
        del self._growing[branch]
        return self._advance()

    def finish(self) -> str:
        """The answer has ended: everything that is left."""
        for segment in self._segments:
            segment.closed = True
        self._growing.clear()
        return self._advance()

    def _open(self, branch: str) -> _Segment:
        try:
            return self._growing[branch]
        except KeyError:
            raise UnknownBranchError(f"branch {branch!r} is not open; open: {sorted(self._growing)}") from None

    def _advance(self) -> str:
        ready: list[str] = []
        while self._shown < len(self._segments):
            segment = self._segments[self._shown]
            ready += segment.pending
            segment.pending.clear()
            if not segment.closed:
                break
            self._shown += 1
        return "".join(ready)
