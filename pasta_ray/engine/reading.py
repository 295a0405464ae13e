"""A request's events as its reader sees them: plain text in document order, and the report at the end."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from pasta_ray.engine.messages import (
    BranchClosed,
    Delta,
    Event,
    Events,
    Finished,
    Likelihood,
    PromiseOpened,
    Report,
)
from pasta_ray.lang.ordered import Ordered
from pasta_ray.lang.stops import StopText


@dataclass(frozen=True)
class ReadToken:
    """A token of the text; ``offset`` characters stand before it. Tokens that share a character stand at the same."""

    offset: int
    likelihood: Likelihood


class Reader:
    """Feed it messages; each gives the text that may be shown now, none of it behind the first of the strings in
    ``stop``. ``report`` is there once the answer has ended."""

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self.report: Report | None = None
        self._ordered: Ordered[Delta] = Ordered()
        self._stops = StopText(stop)
        self._num_ordered = 0  # characters that are in order, and of these that have been shown
        self._num_shown = 0
        self._tokens: deque[ReadToken] = deque()

    @property
    def stopped(self) -> str | None:
        """The string in ``stop`` that the text has come to."""
        return self._stops.found

    def read(self, message: Events) -> str:
        return "".join([self.see(event) for event in message.events])

    def see(self, event: Event) -> str:
        """The text that one event makes readable."""
        if isinstance(event, Finished):
            self.report = event.report
        if self.stopped is not None:
            return ""
        match event:
            case PromiseOpened():
                self._ordered.promise(event.branch, event.parent)
            case Delta():
                return self._show(self._ordered.delta(event.branch, event))
            case BranchClosed():
                return self._show(self._ordered.close(event.branch))
            case Finished():
                text = self._show(self._ordered.finish())
                rest = self._stops.finish()
                self._num_shown += len(rest)
                return text + rest
        return ""

    def take_tokens(self) -> tuple[ReadToken, ...]:
        """The tokens whose first character has been shown since the last call, where the request asks for likelihoods.
        A stop string that begins within a token cuts the text, not the token."""
        whole = self.report is not None and self.stopped is None
        taken = []
        while self._tokens and (whole or self._tokens[0].offset < self._num_shown):
            taken.append(self._tokens.popleft())
        return tuple(taken)

    def _show(self, deltas: Sequence[Delta]) -> str:
        for delta in deltas:
            written = b""
            for likelihood in delta.likelihoods:
                offset = self._num_ordered + len(written.decode(errors="ignore"))
                self._tokens.append(ReadToken(offset, likelihood))
                written += likelihood.token
            self._num_ordered += len(delta.text)
        text = self._stops.add("".join([delta.text for delta in deltas]))
        self._num_shown += len(text)
        return text
