"""A request's events as its reader sees them: plain text in document order, and the report at the end."""

from pasta_ray.engine.messages import BranchClosed, Delta, Event, Events, Finished, PromiseOpened, Report
from pasta_ray.lang.ordered import OrderedText


class Reader:
    """Feed it messages; each gives the text that may be shown now. ``report`` is there once the answer has ended."""

    def __init__(self) -> None:
        self.report: Report | None = None
        self._ordered = OrderedText()

    def read(self, message: Events) -> str:
        return "".join([self._read(event) for event in message.events])

    def _read(self, event: Event) -> str:
        match event:
            case PromiseOpened():
                self._ordered.promise(event.branch, event.parent)
            case Delta():
                return self._ordered.delta(event.branch, event.text)
            case BranchClosed():
                return self._ordered.close(event.branch)
            case Finished():
                self.report = event.report
                return self._ordered.finish()
        return ""
