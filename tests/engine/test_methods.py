"""The methods, on a small random model that writes tags often: what comes out is well-formed, and nothing is left."""

from dataclasses import replace
from pathlib import Path

import pytest

from pasta_ray.engine import Engine, EngineConfig
from pasta_ray.engine.decoder import Decoder
from pasta_ray.engine.messages import Events, Request, Sampling, Synced
from pasta_ray.engine.reading import Reader
from pasta_ray.errors import InputError
from pasta_ray.lang import PRED_10X, PositionStrategy, TagMap, parse
from tests.engine.conftest import save_model
from tests.engine.events import cancel_at_every_step, report, run, shown
from tests.engine.test_tokenizer import save_tokenizer
from tests.narrow import load_narrow

VOCAB = 320


def make_decoder(folder: Path, positions: PositionStrategy = PRED_10X, **settings: int) -> Decoder:
    """A decoder over a random model that writes tags often."""
    save_tokenizer(save_model(folder, vocab_size=VOCAB, initializer_range=0.1))
    TagMap.after(VOCAB - 6, positions).save(folder)
    return load_narrow(folder, **settings)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    return make_decoder(tmp_path_factory.mktemp("model"))


@pytest.fixture
def decoder(shared: Decoder) -> Decoder:
    assert (shared.num_slots, shared.num_branches, shared.num_requests) == (0, 0, 0)
    return shared


def request(number: int, method: str = "pasta", *, max_tokens: int = 150, **limits: int) -> Request:
    prompt = tuple(range(4, 10 + number % 40))
    sampling = Sampling(temperature=2.0, top_p=1.0, seed=number)
    return Request(
        f"r{number}", prompt, method, max_tokens=max_tokens, sampling=sampling, **({"max_promises": 5} | limits)
    )


def test_random_answers_are_documents_and_leave_nothing(decoder: Decoder) -> None:
    """Guards against tags that do not parse, text out of order or lost, counts that do not add up, slots that stay."""
    forked = synced = 0
    for start in range(0, 60, 6):
        for events in run(decoder, [request(number) for number in range(start, start + 6)]).values():
            answer = report(events)
            document = parse(answer.document)
            assert document.text() == answer.text == shown(events)
            assert answer.parallel.num_promises == len(document.promises) == len(answer.branches) - 1
            assert answer.usage.completion_tokens <= 151
            assert sum(isinstance(event, Synced) for event in events) <= answer.parallel.num_syncs
            forked += answer.parallel.max_branches > 2
            synced += answer.parallel.num_syncs > 0
        assert (decoder.num_slots, decoder.num_branches) == (0, 0)
    assert forked > 20
    assert synced > 10


def test_steps_taken_are_the_critical_path(decoder: Decoder) -> None:
    """Guards against a fork or join that costs a step of its own, and against a flattering formula."""
    num_forked = 0
    for number in range(40):
        decoder.submit(request(number))
        run_ = next(iter(decoder._runs.values()))
        while decoder.busy:
            decoder.step()
        num_forked += len(run_.tracks) > 1
        assert run_.critical_path() == run_.num_steps
    assert num_forked > 20


def test_neighbours_change_no_answer(decoder: Decoder) -> None:
    """Guards against branches that see another request's slots, and against seeds that depend on the batch."""
    together = run(decoder, [request(number) for number in range(8)])
    for number in range(8):
        alone = run(decoder, [request(number)])[f"r{number}"]
        assert report(alone).document == report(together[f"r{number}"]).document


def test_a_body_runs_beside_the_main_branch(decoder: Decoder) -> None:
    """Guards against bodies decoded in turn: a body's first step is the one right after its promise."""
    for number in range(40):
        answer = report(run(decoder, [request(number)])[f"r{number}"])
        for body in answer.branches[1:]:
            assert body.parent == "0"
            assert body.first_step <= body.last_step
            assert body.tokens == body.last_step - body.first_step + 2


def test_budget_and_limits(decoder: Decoder) -> None:
    """Guards against a body without end, and against limits that are not kept or not told."""
    seen_length = 0
    for number in range(40):
        answer = report(run(decoder, [request(number, max_branches=2, max_promises=3)])[f"r{number}"])
        assert answer.parallel.num_promises <= 3
        assert answer.parallel.max_branches <= 3
        for body in answer.branches[1:]:
            assert body.tokens_predicted is not None
            assert body.tokens <= max(2 * body.tokens_predicted, body.tokens_predicted + 64)
        short = report(run(decoder, [request(number, max_tokens=5)])[f"r{number}"])
        if short.finish_reason == "length":
            seen_length += 1
            assert short.usage.completion_tokens == 5
            assert all(branch.finish_reason for branch in short.branches)
    assert seen_length > 10


def test_sequential_writes_no_tag(decoder: Decoder) -> None:
    """Guards against a baseline that is not plain decoding."""
    for number in range(20):
        answer = report(run(decoder, [request(number, "sequential")])[f"r{number}"])
        assert answer.parallel.num_promises == 0
        assert answer.usage.annotation_tokens == 0
        assert parse(answer.document).text() == answer.text
        assert len(answer.branches) == 1


def test_cancelling_frees_every_branch_at_any_step(decoder: Decoder) -> None:
    """Guards against slots that a cancelled request keeps, and against neighbours that it takes along."""
    cancel_at_every_step(decoder, request(1), request(2), range(0, 60, 3))


def test_a_plain_model_offers_no_pasta(tmp_path: Path) -> None:
    """Guards against tags being written with ids that a model does not have."""
    folder = save_tokenizer(save_model(tmp_path, vocab_size=VOCAB))
    decoder = Decoder(Engine(EngineConfig(model=str(folder))))
    assert decoder.methods == ("sequential", "speculative", "sot")
    with pytest.raises(InputError, match="allowed with this model: sequential, speculative, sot"):
        decoder.submit(request(1))
    run(decoder, [request(1, "sequential")])


def test_requests_that_can_never_run_are_refused(decoder: Decoder) -> None:
    """Guards against a request that would fail in the middle, or shadow another one."""
    with pytest.raises(InputError, match="unheard"):
        decoder.submit(request(1, "unheard"))
    with pytest.raises(InputError, match="positions"):
        decoder.submit(request(1, max_tokens=5000))
    decoder.submit(request(1))
    with pytest.raises(InputError, match="in use"):
        decoder.submit(request(1))
    decoder.cancel("r1")


def test_a_stop_string_ends_the_answer_wherever_it_stands(decoder: Decoder) -> None:
    """Guards stop strings across branches and inside bodies: the text is that without them, cut before the first, and
    no slot stays."""
    across = 0
    for number in range(6):
        whole = report(run(decoder, [request(number, max_tokens=60)])[f"r{number}"])
        for start in range(0, max(0, len(whole.text) - 3), 11):
            stop = whole.text[start : start + 3]
            across += not any(stop in part for part in whole.document.split("<"))
            events = run(decoder, [replace(request(number, max_tokens=60), stop=("never", stop))])[f"r{number}"]
            cut = report(events)
            assert cut.text == whole.text[: whole.text.index(stop)]
            assert cut.finish_reason == "stop"
            assert cut.parallel.critical_path <= whole.parallel.critical_path
            reader = Reader((stop,))
            assert reader.read(Events("", tuple(events))) == cut.text
            parse(cut.document)
            assert decoder.num_slots == 0
    assert across > 3


def test_a_stop_string_that_never_comes_changes_nothing(decoder: Decoder) -> None:
    plain, stopping = (report(run(decoder, [replace(request(3), stop=stop)])["r3"]) for stop in ((), ("never",)))
    assert replace(plain, timing=stopping.timing, branches=()) == replace(stopping, branches=())
