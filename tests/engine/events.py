"""What tests of the methods do with requests and their events."""

from pasta_ray.engine.decoder import Decoder
from pasta_ray.engine.messages import BranchClosed, Delta, Event, Finished, PromiseOpened, Report, Request
from pasta_ray.lang import OrderedText


def run(decoder: Decoder, requests: list[Request]) -> dict[str, list[Event]]:
    for each in requests:
        decoder.submit(each)
    events: dict[str, list[Event]] = {each.id: [] for each in requests}
    while decoder.busy:
        for news in decoder.step():
            events[news.request_id] += news.events
    return events


def report(events: list[Event]) -> Report:
    assert isinstance(events[-1], Finished)
    assert not any(isinstance(event, Finished) for event in events[:-1])
    return events[-1].report


def answer(decoder: Decoder, request: Request) -> Report:
    return report(run(decoder, [request])[request.id])


def shown(events: list[Event]) -> str:
    """What a client sees: the deltas in document order."""
    ordered, text = OrderedText(), ""
    for event in events:
        match event:
            case PromiseOpened():
                ordered.promise(event.branch, event.parent)
            case Delta():
                text += ordered.delta(event.branch, event.text)
            case BranchClosed():
                text += ordered.close(event.branch)
            case Finished():
                text += ordered.finish()
    return text


def cancel_at_every_step(decoder: Decoder, first: Request, second: Request, steps: range) -> None:
    """Cancel ``first`` after so many steps: ``second`` goes on, and in the end nothing is in use."""
    for num_steps in steps:
        decoder.submit(first)
        decoder.submit(second)
        for _ in range(num_steps):
            decoder.step()
        decoder.cancel(first.id)
        decoder.cancel(first.id)
        assert all(news.request_id == second.id for news in decoder.step())
        decoder.cancel(second.id)
        assert (decoder.num_slots, decoder.num_branches, decoder.num_requests) == (0, 0, 0)
        assert not decoder.busy
