"""A request's events as its reader sees them: plain text in document order, and the report at the end."""

from collections.abc import Sequence

from pasta_ray.engine.messages import BranchClosed, Delta, Event, Events, Finished, PromiseOpened, Report
from pasta_ray.lang.ordered import OrderedText
from pasta_ray.lang.stops import StopText


class Reader:
    """Feed it messages; each gives the text that may be shown now, none of it behind the first of the strings in
    ``stop``. ``report`` is there once the answer has ended."""

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self.report: Report | None = None
        self._ordered = OrderedText()
        self._stops = StopText(stop)

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
                return self._stops.add(self._ordered.delta(event.branch, event.text))
            case BranchClosed():
                return self._stops.add(self._ordered.close(event.branch))
            case Finished():
                return self._stops.add(self._ordered.finish()) + self._stops.finish()
        return ""
