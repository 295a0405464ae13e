"""Answers that are cut off and gone on with elsewhere, from what had been said of them by then."""

from dataclasses import replace
from pathlib import Path

import pytest

from pasta_ray.engine.decoder import Decoder
from pasta_ray.engine.messages import Event, Events, Finished, Report, Request, Sampling, Timing
from pasta_ray.engine.progress import Progress, Sampled, Step
from pasta_ray.errors import InputError
from tests.engine import test_apar, test_methods, test_sot
from tests.engine.events import report, run, shown
from tests.engine.test_memory import SLOT_BYTES
from tests.engine.test_methods import request


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("model")


@pytest.fixture(scope="module")
def decoder(folder: Path) -> Decoder:
    return test_methods.make_decoder(folder)


def messages(decoder: Decoder, request: Request, most: int | None = None) -> list[Events]:
    """The first ``most`` messages of an answer, or all; it is cancelled then, and nothing of it is left."""
    decoder.submit(request)
    answer: list[Events] = []
    while decoder.busy and (most is None or len(answer) < most):
        news = decoder.step()
        decoder.engine.check_integrity()
        answer += news
    decoder.cancel(request.id)
    assert (decoder.num_slots, decoder.num_branches, decoder.num_requests) == (0, 0, 0)
    return answer


def events_of(answer: list[Events]) -> list[Event]:
    return [event for message in answer for event in message.events]


def steps_of(answer: list[Events]) -> tuple[Step, ...]:
    return tuple(step for message in answer for step in message.steps)


def untimed(report: Report) -> Report:
    branches = tuple(replace(branch, start_s=0.0, end_s=0.0) for branch in report.branches)
    return replace(report, timing=Timing(0.0, 0.0, 0.0), branches=branches)


def tokens_of(steps: tuple[Step, ...]) -> list[tuple[Sampled, ...]]:
    return [step.sampled for step in steps]


def cut_at_every_step(decoder: Decoder, request: Request, every: int = 1) -> Report:
    """Cut the answer behind each of its messages: what the two halves say together is what the whole one says, event by
    event, token by token, and so is the report."""
    whole = messages(decoder, request)
    expected = report(events_of(whole))
    for num_messages in range(0, len(whole), every):
        begun = messages(decoder, request, num_messages)
        progress = Progress().after(steps_of(begun))
        rest = messages(decoder, replace(request, progress=progress))
        answer = begun + rest
        assert tokens_of(steps_of(answer)) == tokens_of(steps_of(whole))
        assert shown(events_of(answer)) == shown(events_of(whole))
        assert events_of(answer)[:-1] == events_of(whole)[:-1]
        assert untimed(report(events_of(answer))) == untimed(expected)
    return expected


@pytest.mark.parametrize("method", ["sequential", "speculative", "pasta", "pasta+speculative"])
def test_an_answer_that_is_cut_goes_on_as_if_it_had_not_been(decoder: Decoder, method: str) -> None:
    """Guards every answer against the death of its process: sampled answers with open and joined bodies, drafts."""
    num_bodies = num_syncs = num_accepted = 0
    sampled = [request(number, method, max_tokens=60) for number in range(4)]
    for every, asked in zip((2, 5, 5, 5, 3), (*sampled, replace(sampled[0], sampling=Sampling())), strict=True):
        answer = cut_at_every_step(decoder, asked, every)
        num_bodies += answer.parallel.num_promises
        num_syncs += answer.parallel.num_syncs
        num_accepted += answer.parallel.num_accepted
    assert bool(num_bodies) == bool(num_syncs) == method.startswith("pasta")
    assert bool(num_accepted) == method.endswith("speculative")


def test_unconstrained_and_stopped_answers_go_on_too(decoder: Decoder) -> None:
    free = replace(request(2, max_tokens=60), constrained=False)
    assert cut_at_every_step(decoder, free, every=3).parallel.num_violations > 0
    text = report(events_of(messages(decoder, request(3)))).text
    stopped = cut_at_every_step(decoder, replace(request(3), stop=(text[20:23],)), every=3)
    assert stopped.text == text[: text.index(text[20:23])]


def test_threads_go_on(tmp_path: Path) -> None:
    decoder = test_apar.make_decoder(tmp_path)
    answers = [cut_at_every_step(decoder, test_apar.request(number, max_tokens=60), every=2) for number in range(3)]
    assert max(branch.id.count(".") for answer in answers for branch in answer.branches) > 1


def test_skeletons_and_their_points_go_on(tmp_path: Path) -> None:
    decoder = test_sot.make_decoder(tmp_path)
    answers = [cut_at_every_step(decoder, test_sot.request(number, max_branches=1), every=7) for number in range(4)]
    assert max(answer.parallel.num_promises for answer in answers) > 1
    routed = [cut_at_every_step(decoder, test_sot.request(number, router=True), every=9) for number in range(3)]
    assert min(answer.parallel.num_promises for answer in routed) == 0


def test_a_resumed_answer_is_cut_again_among_neighbours_without_room(folder: Path) -> None:
    """Guards against a second death, and against a preemption of what has only just been fed again."""
    decoder = test_methods.make_decoder(folder, max_kv_bytes=420 * SLOT_BYTES)
    asked = [request(number, max_tokens=80) for number in range(6)]
    expected = {id_: untimed(report(events)) for id_, events in run(decoder, asked).items()}
    begun = {each.id: Progress() for each in asked}
    answers: dict[str, list[Events]] = {each.id: [] for each in asked}
    num_cuts = 0
    while asked:
        for each in asked:
            decoder.submit(replace(each, progress=begun[each.id]))
        for _ in range(25):
            for news in decoder.step():
                answers[news.request_id].append(news)
                begun[news.request_id] = begun[news.request_id].after(news.steps)
        for each in asked:
            decoder.cancel(each.id)
        asked = [each for each in asked if not isinstance(answers[each.id][-1].events[-1], Finished)]
        num_cuts += 1
    assert num_cuts > 2
    assert decoder.engine.num_preemptions > 0
    for id_, answer in answers.items():
        assert untimed(report(events_of(answer))) == expected[id_]
        assert shown(events_of(answer)) == expected[id_].text


def test_progress_of_something_else_is_refused(decoder: Decoder) -> None:
    asked = request(0, max_tokens=60)
    whole = Progress().after(steps_of(messages(decoder, asked)))
    stranger = Progress((Step(0.0, (Sampled("0.7", (5,)),)),))
    for progress, wrong in (
        (whole, "of an answer that has ended"),
        (stranger, "does not fit: step 1 gives branch '0.7' 1 tokens; open by then: 0"),
        (whole.after(stranger.steps), "goes on behind its end"),
    ):
        with pytest.raises(InputError, match=wrong):
            decoder.submit(replace(asked, progress=progress))
        assert (decoder.num_slots, decoder.num_branches, decoder.num_requests) == (0, 0, 0)


def test_progress_knows_its_tokens_and_its_time(decoder: Decoder) -> None:
    answer = messages(decoder, request(0, max_tokens=60))
    whole = report(events_of(answer))
    progress = Progress().after(steps_of(answer[:-1]))
    assert progress.branches[0] == "0"
    assert set(progress.branches) <= {branch.id for branch in whole.branches}
    assert progress.num_tokens == sum(len(progress.tokens(branch)) for branch in progress.branches)
    for branch in whole.branches:
        assert len(progress.tokens(branch.id)) <= branch.tokens
    late = replace(progress, elapsed_s=1000.0)
    resumed = report(events_of(messages(decoder, replace(request(0, max_tokens=60), progress=late))))
    assert resumed.timing.wall_s > 1000.0
    assert resumed.timing.ttft_s == pytest.approx(whole.timing.ttft_s, abs=0.05)
