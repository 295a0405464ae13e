"""Skeleton-of-Thought, on a small random model that writes numbered lines often, and once on the default model."""

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AddedToken

from pasta_ray.engine import Engine, EngineConfig
from pasta_ray.engine.decoder import Decoder
from pasta_ray.engine.messages import Request, Sampling
from pasta_ray.engine.methods import sot
from pasta_ray.errors import InputError
from pasta_ray.lang import parse
from pasta_ray.lang.skeleton import expansion_chat, expansion_start
from tests.engine.conftest import save_model
from tests.engine.events import answer, cancel_at_every_step, report, run, shown
from tests.engine.test_tokenizer import save_tokenizer

VOCAB = 320
LINES = ("\n2. ab c", '\n3. "é<async>', "\n4. q")
POINTS = ["ab c", "d", "e f"]


def make_decoder(folder: Path) -> Decoder:
    """A decoder over a random model whose vocabulary is narrowed to a few letters and beginnings of points."""
    save_model(folder, vocab_size=VOCAB, initializer_range=0.1)
    save_tokenizer(folder, *(AddedToken(line, special=False, normalized=False) for line in LINES))
    decoder = Decoder(Engine(EngineConfig(model=str(folder), prefill_chunk=512)))
    tokenizer, masks = decoder.engine.tokenizer, decoder.engine.masks
    assert masks is not None
    kept = {*tokenizer.encode("abc 12\n<\\é" + "".join(LINES)), *tokenizer.stop_ids}
    masks &= torch.tensor([token in kept for token in range(VOCAB)])
    return decoder


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    return make_decoder(tmp_path_factory.mktemp("model"))


@pytest.fixture
def decoder(shared: Decoder) -> Decoder:
    assert (shared.num_slots, shared.num_branches, shared.num_requests) == (0, 0, 0)
    return shared


def request(number: int, *, max_tokens: int = 150, **changes: object) -> Request:
    made = Request(
        f"r{number}",
        tuple(range(4, 10 + number % 40)),
        "sot",
        max_tokens=max_tokens,
        max_promises=5,
        sampling=Sampling(temperature=2.0, seed=number),
        messages=(("user", f"hello {number}"),),
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def test_random_answers_are_documents_and_leave_nothing(decoder: Decoder) -> None:
    """Guards against text out of order or lost, counts that do not add up, and slots of either prompt that stay."""
    forked = 0
    for start in range(0, 48, 6):
        for events in run(decoder, [request(number) for number in range(start, start + 6)]).values():
            each = report(events)
            document = parse(each.document)
            assert document.text() == each.text == shown(events)
            assert each.parallel.num_promises == len(document.promises) == len(each.branches) - 1 <= 5
            assert each.usage.completion_tokens <= 151
            assert each.usage.annotation_tokens > 0
            assert all(branch.tokens <= sot.EXPANSION_BUDGET for branch in each.branches[1:])
            forked += each.parallel.num_promises > 1
        assert (decoder.num_slots, decoder.num_branches) == (0, 0)
    assert forked > 20


def test_every_point_is_expanded_as_its_own_prompt_would_be(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards the shared prefix: a point sees the question, the skeleton and its order, nothing of the others."""
    monkeypatch.setattr(sot, "read_points", lambda *_, **__: POINTS)
    encode, encode_chat = decoder.engine.tokenizer.encode, decoder.engine.tokenizer.encode_chat
    num_long = 0
    for number in range(5):
        asked = request(number, sampling=Sampling(), max_tokens=1000)
        got = answer(decoder, asked)
        assert got.text.startswith("1. ab c:")
        bodies = parse(got.document).promises
        assert [body.topic for body in bodies] == POINTS
        for index, body in enumerate(bodies):
            ids = encode_chat(expansion_chat(asked.messages, POINTS, index)) + encode(expansion_start(POINTS, index))
            alone = replace(asked, method="sequential", prompt_ids=tuple(ids), max_tokens=sot.EXPANSION_BUDGET)
            assert body.text() == answer(decoder, alone).text
            num_long += len(body.text()) > 20
    assert num_long > 5


def test_without_points_the_plain_prompt_is_answered(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards the fallback: the text of sequential decoding, by one branch, and the skeleton's cost is not hidden."""
    monkeypatch.setattr(sot, "read_points", lambda *_, **__: [])
    for number in range(10):
        got = answer(decoder, request(number))
        plain = answer(decoder, request(number, method="sequential"))
        assert (got.method, got.text, got.finish_reason) == ("sot", plain.text, plain.finish_reason)
        assert len(got.branches) == 1
        assert got.parallel.critical_path == plain.parallel.critical_path + got.usage.annotation_tokens + 1


def test_the_router_decides(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards the option: a no gives the plain answer, a yes the points, and without it nobody is asked."""
    monkeypatch.setattr(sot, "read_points", lambda *_, **__: POINTS)
    replies: dict[str, Callable[[str], bool]] = {"no": lambda _: False, "yes": lambda _: True}
    for reply, says_yes in replies.items():
        monkeypatch.setattr(sot, "says_yes", says_yes)
        for number in range(5):
            got = answer(decoder, request(number, router=True))
            if reply == "no":
                assert got.text == answer(decoder, request(number, method="sequential")).text
                assert got.usage.annotation_tokens <= sot.ROUTER_BUDGET
            else:
                assert got.text.startswith("1. ab c:")
                assert got.parallel.num_promises >= 1
    monkeypatch.setattr(sot, "says_yes", lambda _: pytest.fail("nobody asked for the router"))
    answer(decoder, request(1))


def test_limits(decoder: Decoder) -> None:
    """Guards against more points, branches or tokens than were allowed, and against points that never start."""
    num_waited = num_cut = 0
    for number in range(8):
        wide = answer(decoder, request(number, max_tokens=2000))
        narrow = answer(decoder, request(number, max_tokens=2000, max_branches=2))
        assert narrow.parallel.max_branches <= 2
        assert narrow.text == wide.text
        assert narrow.parallel.critical_path == wide.parallel.critical_path
        assert len(answer(decoder, request(number, max_promises=2)).branches) <= 3
        num_waited += len(wide.branches) > 3
        for max_tokens in (1, 3, 9):
            short = answer(decoder, request(number, max_tokens=max_tokens))
            if short.finish_reason == "length":
                num_cut += 1
                assert short.usage.completion_tokens == max_tokens
    assert num_waited > 1
    assert num_cut > 12


def test_the_critical_path_is_the_steps_taken_and_the_second_prefill(decoder: Decoder) -> None:
    """Guards against a flattering formula: with room for every point, only the prefill of stage 2 is added."""
    for number in range(10):
        decoder.submit(request(number, max_tokens=2000))
        (run_,) = decoder._runs.values()
        while decoder.busy:
            decoder.step()
        assert run_.critical_path() == run_.num_steps + 1


def test_points_are_expanded_at_the_same_time(decoder: Decoder) -> None:
    """Guards against expansions in turn: all start in the step behind the skeleton."""
    num_parallel = 0
    for number in range(10):
        got = answer(decoder, request(number, max_tokens=2000))
        firsts = {branch.first_step for branch in got.branches[1:]}
        assert len(firsts) <= 1
        num_parallel += got.parallel.max_branches > 1
    assert num_parallel > 3


def test_neighbours_change_no_answer_and_a_seed_gives_it_again(decoder: Decoder) -> None:
    """Guards against branches that see another request's slots, and against seeds that depend on the batch."""
    together = run(decoder, [request(number) for number in range(8)])
    for number in range(8):
        assert answer(decoder, request(number)).document == report(together[f"r{number}"]).document


def test_cancelling_frees_both_prompts_at_any_step(decoder: Decoder) -> None:
    """Guards against slots of the skeleton or of its points that a cancelled request keeps."""
    cancel_at_every_step(decoder, request(1), request(2), range(0, 60, 3))


def test_requests_that_can_never_run_are_refused(decoder: Decoder) -> None:
    """Guards against a request without a question, and one whose skeleton would pass the model's last position."""
    for messages in ((), (("user", "hi"), ("assistant", "hello"))):
        with pytest.raises(InputError, match="ends with a user's message"):
            decoder.submit(request(1, messages=messages))
    with pytest.raises(InputError, match="positions to ask for this question's skeleton; the model has 4096"):
        decoder.submit(request(1, messages=(("user", "z" * 4000),)))
    with pytest.raises(InputError, match="router goes with method 'sot', not with 'pasta'"):
        request(1, method="pasta", router=True)
    assert not decoder.busy


def test_points_that_do_not_fit_the_model_fall_back(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards the last position: the skeleton fits, but its points' prompts with their expansions do not."""
    monkeypatch.setattr(sot, "read_points", lambda *_, **__: ["ab c" * 20])
    asked = request(3, messages=(("user", "z" * 3700),), max_tokens=40)
    assert answer(decoder, asked).text == answer(decoder, replace(asked, method="sequential")).text
    shorter = replace(asked, messages=(("user", "z" * 3400),))
    assert answer(decoder, shorter).text.startswith("1. ab c")


def test_a_request_with_messages_travels() -> None:
    """Guards the way to a replica in another process."""
    assert pickle.loads(pickle.dumps(request(1))) == request(1)


@pytest.mark.real_model
def test_the_default_model_expands_points_at_the_same_time() -> None:
    """Guards the prompts on a real model without an adapter: a skeleton with points, and paragraphs for them."""
    decoder = Decoder(Engine(EngineConfig()))
    messages = (("user", "What are the benefits of regular exercise?"),)
    ids = decoder.engine.tokenizer.encode_chat([{"role": role, "content": content} for role, content in messages])
    got = answer(decoder, Request("r", tuple(ids), "sot", max_tokens=160, messages=messages))
    assert got.parallel.max_branches >= 2
    assert got.text.startswith("1. ")
    assert "\n\n2. " in got.text
    assert parse(got.document).text() == got.text
    assert all(promise.text().strip() for promise in parse(got.document).promises[:2])
    assert decoder.num_slots == 0
