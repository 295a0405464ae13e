"""APAR, on a small random model that forks often: order, limits, and who sees what."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedModel

from pasta_ray.engine import Engine, EngineConfig
from pasta_ray.engine.decoder import Decoder
from pasta_ray.engine.messages import Event, PromiseOpened, Request, Sampling
from pasta_ray.engine.methods.base import Run, Track
from pasta_ray.engine.sampler import SampleRow, sample
from pasta_ray.errors import InputError
from pasta_ray.lang import CONTROL_NAMES, ControlMap, parse
from pasta_ray.lang.apar import MAX_DEPTH, Forks, ThreadGrammar
from pasta_ray.lang.grammar import Phase
from tests.engine.conftest import save_model
from tests.engine.events import answer, cancel_at_every_step, report, run, shown
from tests.engine.test_tokenizer import save_tokenizer

VOCAB = 320
CONTROLS = ControlMap.after(VOCAB - 2)


def make_decoder(folder: Path) -> Decoder:
    """A decoder over a random model whose vocabulary is narrowed to a few letters, so that forks are common."""
    save_tokenizer(save_model(folder, vocab_size=VOCAB, initializer_range=0.1))
    CONTROLS.save(folder)
    decoder = Decoder(Engine(EngineConfig(model=str(folder), prefill_chunk=16)))
    tokenizer, masks = decoder.engine.tokenizer, decoder.engine.masks
    assert masks is not None
    kept = {*CONTROLS.ids, *tokenizer.encode("abc 1\n<é"), *tokenizer.stop_ids}
    masks &= torch.tensor([token in kept for token in range(VOCAB)])
    masks[Phase.THREAD, tokenizer.stop_ids[0]] = False  # a thread ends only where it may not fork
    return decoder


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    return make_decoder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def reference(shared: Decoder) -> PreTrainedModel:
    return LlamaForCausalLM.from_pretrained(shared.engine.config.model).eval()


@pytest.fixture
def decoder(shared: Decoder) -> Decoder:
    assert (shared.num_slots, shared.num_branches, shared.num_requests) == (0, 0, 0)
    return shared


def request(number: int, **changes: object) -> Request:
    made = Request(
        f"r{number}",
        tuple(range(4, 10 + number % 40)),
        "apar",
        max_tokens=150,
        max_promises=12,
        sampling=Sampling(temperature=2.0, seed=number),
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def finished_run(decoder: Decoder, asked: Request) -> Run:
    decoder.submit(asked)
    (run_,) = decoder._runs.values()
    while decoder.busy:
        decoder.step()
    return run_


def depths(branches: Sequence[str]) -> list[int]:
    return [branch.count(".") for branch in branches]


def test_random_answers_read_in_tree_order_and_leave_nothing(decoder: Decoder) -> None:
    """Guards against text out of order or lost, controls that show, counts that do not add up, slots that stay."""
    num_nested = 0
    for start in range(0, 48, 6):
        for events in run(decoder, [request(number) for number in range(start, start + 6)]).values():
            each = report(events)
            assert parse(each.document).text() == each.text == shown(events)
            assert not any(name in each.text for name in CONTROL_NAMES)
            assert each.usage.annotation_tokens == 2 * each.parallel.num_promises == 2 * (len(each.branches) - 1)
            assert each.usage.completion_tokens <= 151
            assert len({branch.id for branch in each.branches}) == len(each.branches)
            assert all(branch.parent == branch.id.rpartition(".")[0] for branch in each.branches[1:])
            num_nested += max(depths([branch.id for branch in each.branches])) > 1
        assert (decoder.num_slots, decoder.num_branches) == (0, 0)
    assert num_nested > 15


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_each_thread_goes_on_from_its_own_path_alone(
    decoder: Decoder, reference: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, temperature: float
) -> None:
    """Guards visibility and positions: every token of a thread is the one that the logits of transformers' plain
    forward pass over the thread's path give. The path is the parent's up to the fork, the child token, and the
    thread's own."""
    assert decoder.engine.masks is not None
    masks = decoder.engine.masks.clone()
    if not temperature:  # a greedy random model never forks by itself
        masks[Phase.THREAD] = torch.arange(VOCAB) == CONTROLS.fork
    monkeypatch.setattr(decoder.engine, "masks", masks)
    num_forked = num_nested = 0
    for number in range(12):
        prompt_ids = tuple(range(4 + number, 30))
        sampling = Sampling(temperature, seed=number)
        asked = request(
            number, prompt_ids=prompt_ids, sampling=sampling, max_tokens=60, max_promises=100, max_branches=100
        )
        run_ = finished_run(decoder, asked)
        for track in run_.tracks.values():
            before, num_given = path_before(run_, track), len(prompt_ids) if track is run_.main else 0
            own = track.branch.tokens[num_given:]
            with torch.no_grad():
                logits = reference(torch.tensor([before + own])).logits[0, len(before) - 1 :]
            grammar = ThreadGrammar(CONTROLS, Forks(100, 100), track.path.count("."))
            for index, token in enumerate(own[track.num_forced :], track.num_forced):
                row = SampleRow(sampling, track.path, num_given + index, grammar.mask_row)
                assert sample(logits[index : index + 1], [row], masks) == [token]
                grammar.advance(token)
            num_forked += len(own) > 1 and track is not run_.main
            num_nested += track.path.count(".") > 1
    assert min(num_forked, num_nested) > 10


def path_before(run_: Run, track: Track) -> list[int]:
    """All that a thread sees before its first token."""
    if track is run_.main:
        return list(run_.request.prompt_ids)
    parent = run_.tracks[track.parent or ""]
    nth = [child for child, _ in parent.children].index(track)
    own = parent.branch.tokens[len(run_.request.prompt_ids) if parent is run_.main else 0 :]
    fork = [index for index, token in enumerate(own) if token == CONTROLS.fork][nth]
    return path_before(run_, parent) + own[: fork + 1]


def test_steps_taken_are_the_critical_path(decoder: Decoder) -> None:
    """Guards against a fork that costs a step of its own, and against a flattering formula."""
    num_forked = 0
    for number in range(20):
        run_ = finished_run(decoder, request(number))
        num_forked += len(run_.tracks) > 1
        assert run_.critical_path() == run_.num_steps
    assert num_forked > 12


def test_limits(decoder: Decoder) -> None:
    """Guards against more threads, depth or tokens than were allowed: threads fork in the same step."""

    def most_open(events: list[Event]) -> int:
        return report(events).parallel.max_branches

    num_wide = deepest = 0
    for number in range(12):
        (wide,) = run(decoder, [request(number, max_promises=40, max_tokens=300)]).values()
        num_wide += most_open(wide) > 4
        deepest = max(deepest, *depths([event.branch for event in wide if isinstance(event, PromiseOpened)] or ["0"]))
        (narrow,) = run(decoder, [request(number, max_branches=2, max_promises=3)]).values()
        assert most_open(narrow) <= 3
        assert report(narrow).parallel.num_promises <= 3
        short = answer(decoder, request(number, max_tokens=5))
        assert short.usage.completion_tokens <= 6
    assert num_wide > 5
    assert deepest == MAX_DEPTH


def test_forks_stop_before_the_models_last_position(decoder: Decoder) -> None:
    """Guards the last position: control tokens take room too, and max_tokens must still fit behind them."""
    for left, most in ((0, 0), (1, 0), (5, 2)):
        asked = request(1, prompt_ids=(5,) * (4096 - 150 - left))
        decoder.submit(asked)
        (run_,) = decoder._runs.values()
        while decoder.busy and run_.num_steps < 30:
            decoder.step()
        decoder.cancel("r1")
        assert len(run_.tracks) - 1 <= most


def test_neighbours_change_no_answer_and_a_seed_gives_it_again(decoder: Decoder) -> None:
    """Guards against threads that see another request's slots, and against seeds that depend on the batch."""
    together = run(decoder, [request(number) for number in range(8)])
    for number in range(8):
        alone, first = answer(decoder, request(number)), report(together[f"r{number}"])
        assert alone.text == first.text
        assert [branch.id for branch in alone.branches] == [branch.id for branch in first.branches]


def test_cancelling_frees_every_thread_at_any_step(decoder: Decoder) -> None:
    """Guards against slots that a cancelled request keeps, and against neighbours that it takes along."""
    cancel_at_every_step(decoder, request(1), request(2), range(0, 60, 3))


def test_sequential_writes_no_control(decoder: Decoder) -> None:
    """Guards other methods on a model that knows the controls: forks are the model's to write under 'apar' alone."""
    assert decoder.methods == ("sequential", "speculative", "sot", "apar")
    for number in range(10):
        run_ = finished_run(decoder, request(number, method="sequential"))
        assert not set(run_.main.branch.tokens) & set(CONTROLS.ids)
    with pytest.raises(InputError, match="allowed with this model: sequential, speculative, sot, apar"):
        decoder.submit(request(1, method="pasta"))
