"""Drafts change how many steps an answer takes, and nothing else."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from pasta_ray.engine import Engine, EngineConfig
from pasta_ray.engine.branch import Branch
from pasta_ray.engine.config import DraftConfig
from pasta_ray.engine.decoder import Decoder
from pasta_ray.engine.drafting import DraftModel, PromptLookup
from pasta_ray.engine.messages import Report, Request, Sampling
from pasta_ray.errors import InputError, ModelError
from pasta_ray.lang import TagMap
from pasta_ray.lang.grammar import Phase, PlainGrammar
from tests.engine.conftest import decode, generate, prompt, save_model
from tests.engine.test_methods import VOCAB, report, request, run
from tests.engine.test_tokenizer import save_tokenizer
from tests.narrow import LETTERS

DRAFTERS = ("lookup", "same", "other")


def narrow(decoder: Decoder) -> Decoder:
    """A few letters and the tags are all that may be written, by a draft model too, so that tags are common."""
    tokenizer, tags = decoder.engine.tokenizer, decoder.engine.tags
    assert tags is not None
    kept = {*tags.ids, *tokenizer.encode(LETTERS), *tokenizer.stop_ids}
    engines = [decoder.engine]
    if isinstance(decoder.drafter, DraftModel):
        engines.append(decoder.drafter.engine)
    for masks in [engine.masks for engine in engines]:
        assert masks is not None
        masks &= torch.tensor([token in kept for token in range(masks.shape[1])])
        masks[[Phase.MAIN, Phase.MAIN_OPEN], tokenizer.stop_ids[0]] = False
        masks[~masks.any(dim=1)] = True
    return decoder


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_tokenizer(save_model(tmp_path_factory.mktemp("target"), vocab_size=VOCAB, initializer_range=0.1))
    TagMap.after(VOCAB - 6).save(folder)
    return folder


@pytest.fixture(scope="module")
def decoders(target: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Decoder]:
    """One decoder a drafter. ``other`` is another random model, without tags."""
    other = save_model(
        tmp_path_factory.mktemp("other"), vocab_size=VOCAB - 6, initializer_range=0.1, num_hidden_layers=1
    )
    config = EngineConfig(model=str(target), prefill_chunk=16)
    drafts = {
        "lookup": DraftConfig(),
        "same": DraftConfig(config, max_draft=3),
        "other": DraftConfig(replace(config, model=str(save_tokenizer(other))), max_draft=3),
    }
    return {name: narrow(Decoder(Engine(config), draft=draft)) for name, draft in drafts.items()}


@pytest.fixture(scope="module")
def pasta_answers(decoders: dict[str, Decoder]) -> list[Report]:
    """Sixty documents without drafts."""
    return answers(decoders["lookup"], [request(number, max_tokens=2000) for number in range(60)])


@pytest.fixture(params=DRAFTERS)
def decoder(request: pytest.FixtureRequest, decoders: dict[str, Decoder]) -> Decoder:
    decoder = decoders[request.param]
    assert (decoder.num_slots, decoder.num_branches, decoder.num_requests) == (0, 0, 0)
    return decoder


def answers(decoder: Decoder, requests: list[Request], batch: int = 10) -> list[Report]:
    reports = []
    for start in range(0, len(requests), batch):
        events = run(decoder, requests[start : start + batch])
        reports += [report(events[each.id]) for each in requests[start : start + batch]]
        assert (decoder.num_slots, decoder.num_branches) == (0, 0)
    return reports


def guess(kind: str, number: int, known: list[int], so_far: int) -> list[int]:
    """Right, wrong, or right for a while; ``known`` is what will be sampled."""
    right = known[so_far : so_far + 4]
    match kind:
        case "right":
            return right
        case "wrong":
            return [(token + 1) % 90 for token in right]
        case _:
            cut = (number + so_far) % 4
            return right[:cut] + [(token + 1) % 90 for token in right[cut:]]


@pytest.mark.parametrize("kind", ["right", "wrong", "mixed"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_whatever_is_guessed_the_tokens_are_the_same(engine: Engine, kind: str, temperature: float) -> None:
    """Guards verification: positions, slots and random numbers behind a draft are those of decoding one by one, for
    several branches in a batch, and rejected tokens leave no slot behind."""
    prompts = [prompt(seed, length) for seed, length in enumerate((3, 14, 40))]
    sampling = [Sampling(temperature, seed=seed) for seed in range(3)]

    def branches() -> list[Branch]:
        return [engine.open(ids, sampling=how) for ids, how in zip(prompts, sampling, strict=True)]

    expected = decode(engine, branches(), 30)
    drafting = branches()
    steps = 0
    while any(len(b.tokens) < len(ids) + 24 for b, ids in zip(drafting, prompts, strict=True)):
        for number, (branch, ids) in enumerate(zip(drafting, prompts, strict=True)):
            so_far = len(branch.tokens) - len(ids)
            if branch.draftable and so_far < 24:
                engine.draft(branch, guess(kind, number, expected[number], so_far))
        engine.step()
        steps += 1
        for branch in drafting:
            assert branch.slab.num_slots == len(branch.tokens)
            assert branch.slab.end <= len(branch.tokens) + 4
            assert branch.positions == list(range(len(branch.tokens)))
    for got, ids, want in zip([branch.tokens for branch in drafting], prompts, expected, strict=True):
        assert got[len(ids) :][:24] == want[:24]
    for branch in drafting:
        engine.free(branch)
    assert steps <= 10 if kind == "right" else steps >= 8


def test_drafts_equal_transformers(engine: Engine, reference: PreTrainedModel) -> None:
    """Guards the forward pass of a draft against an independent implementation."""
    ids = prompt(5, 20)
    expected = generate(reference, ids, 24)
    branch = engine.open(ids, sampling=Sampling())
    while len(branch.tokens) < 44:
        if branch.draftable:
            engine.draft(branch, guess("mixed", 1, expected, len(branch.tokens) - 20))
        engine.step()
    assert branch.tokens[20:44] == expected
    engine.free(branch)


def test_logits_of_rejected_guesses_are_not_given(engine: Engine) -> None:
    """Guards ``keep_logits``: one row a token that stays, equal to decoding without drafts."""

    def logits(*drafts: list[int]) -> torch.Tensor:
        branch = engine.open(prompt(2, 6), sampling=Sampling(), keep_logits=True)
        rows = []
        for draft in drafts:
            if draft:
                engine.draft(branch, draft)
            (output,) = engine.step()
            assert output.logits is not None
            rows.append(output.logits)
        engine.free(branch)
        return torch.cat(rows)

    plain = logits([], [], [], [])
    second, third = plain[6].argmax().item(), plain[7].argmax().item()
    torch.testing.assert_close(logits([], [int(second), (int(third) + 1) % 90]), plain[:8], atol=1e-4, rtol=0)


def test_a_draft_is_cut_at_the_grammar_and_at_the_last_position(engine: Engine) -> None:
    """Guards against a guess that the mask forbids, that is no token, or that has no position."""
    engine.masks = torch.ones((1, engine.vocab_size), dtype=torch.bool)
    engine.masks[0, 9] = False
    branch = engine.open([1, 2, 3], sampling=Sampling(), constraint=PlainGrammar())
    engine.step()
    engine.draft(branch, [4, 5, 9, 6])
    assert branch.draft == [4, 5]
    engine.step()
    engine.draft(branch, [4, 96])
    assert branch.draft == [4]
    engine.free(branch)
    engine.masks = None
    long = engine.open([1] * (engine.max_positions - 3), sampling=Sampling())
    while not long.draftable:
        engine.step()
    engine.draft(long, [4] * 10)
    assert long.positions[-1] == engine.max_positions - 1
    engine.free(long)


def test_a_draft_is_no_prefill(engine: Engine) -> None:
    """Guards decoding against a long prompt: drafts are fed whole beside a full prefill chunk."""
    branch = engine.open(prompt(5, 4), sampling=Sampling())
    engine.step()
    other = engine.open(prompt(661, 100), sampling=Sampling())
    engine.draft(branch, [1, 2, 3, 4])
    (output,) = engine.step()
    assert (output.branch, output.num_drafted, other.num_fed) == (branch, 4, engine.scheduler.prefill_chunk)
    engine.free(branch)
    engine.free(other)


def test_samples_follow_the_target(engine: Engine, reference: PreTrainedModel) -> None:
    """Guards the distribution of what drafts give: pairs of tokens, on a vocabulary of five, against the probabilities
    of the model, by a chi-square test at the 0.1 % level. Guesses are the same each time, so a rule that favours them
    would show."""
    words, forced, num_samples = [11, 23, 35, 47, 59], 5, 1500
    mask = torch.zeros(engine.vocab_size, dtype=torch.bool)
    mask[words] = True

    def probabilities(*ids: int) -> torch.Tensor:
        with torch.no_grad():
            logits = reference(torch.tensor([[1, 2, 3, *ids]])).logits[0, -1]
        return torch.softmax(logits[words].double() / 2.0, dim=-1)

    expected = probabilities(forced)[:, None] * torch.stack([probabilities(forced, word) for word in words])
    engine.masks = mask[None]
    main = engine.open([1, 2, 3])
    engine.step()
    how = Sampling(temperature=2.0, seed=5)
    branches = [
        engine.fork(main, [forced], path=f"0.{i}", sampling=how, constraint=PlainGrammar()) for i in range(num_samples)
    ]
    while waiting := [branch for branch in branches if len(branch.tokens) < 3]:
        for branch in waiting:
            engine.draft(branch, [words[2], words[4]])
        for branch in (output.branch for output in engine.step()):
            if len(branch.tokens) >= 3:
                engine.settle(branch)
    engine.free(main)
    engine.masks = None
    counts = torch.zeros(5, 5, dtype=torch.float64)
    for branch in branches:
        counts[words.index(branch.tokens[1]), words.index(branch.tokens[2])] += 1
    chi_square = ((counts - num_samples * expected) ** 2 / (num_samples * expected)).sum()
    assert chi_square < 51.2  # 24 degrees of freedom


@pytest.mark.parametrize("temperature", [0.0, 0.7, 2.0])
def test_speculative_equals_sequential(decoder: Decoder, decoders: dict[str, Decoder], temperature: float) -> None:
    """Guards the method, token for token and with the same seed, wherever ``max_tokens`` cuts; and the counts."""
    requests = [
        replace(
            request(number, "sequential", max_tokens=1 + 3 * number % 50),
            sampling=Sampling(temperature, top_p=0.9, seed=number),
        )
        for number in range(30)
    ]
    plain = answers(decoder, requests)
    drafted = answers(decoder, [replace(each, method="speculative") for each in requests])
    for one, other in zip(plain, drafted, strict=True):
        assert (one.text, one.finish_reason, one.usage) == (other.text, other.finish_reason, other.usage)
        assert one.parallel.num_drafted == 0
        assert 0 <= other.parallel.num_accepted <= other.parallel.num_drafted
        (branch,) = other.branches
        assert branch.last_step == other.parallel.critical_path <= one.parallel.critical_path
    if decoder is decoders["same"]:
        # Two engines batch their rows differently: a draw on the border between two tokens may fall to either side.
        assert sum(r.parallel.num_accepted for r in drafted) >= 0.99 * sum(r.parallel.num_drafted for r in drafted)
        assert sum(r.parallel.critical_path for r in drafted) < 0.5 * sum(r.parallel.critical_path for r in plain)


def test_pasta_with_drafts_gives_the_same_documents(
    decoder: Decoder, decoders: dict[str, Decoder], pasta_answers: list[Report]
) -> None:
    """Guards drafts of branches that fork and join: against a draft over a tag, a body that sees guesses, a mask that
    lags. A draft model that is the target is right but for a token after some syncs, which guards its own forks, joins
    and gaps."""
    drafted = answers(decoder, [request(number, "pasta+speculative", max_tokens=2000) for number in range(60)])
    for one, other in zip(pasta_answers, drafted, strict=True):
        assert one.finish_reason == "stop"
        assert (one.document, one.usage) == (other.document, other.usage)
        assert [b.tokens for b in one.branches] == [b.tokens for b in other.branches]
        assert other.parallel.critical_path <= one.parallel.critical_path
    assert sum(r.parallel.num_promises > 1 for r in pasta_answers) > 20
    assert sum(r.parallel.num_syncs for r in pasta_answers) > 10
    num_drafted = sum(r.parallel.num_drafted for r in drafted)
    num_accepted = sum(r.parallel.num_accepted for r in drafted)
    assert num_accepted > 100
    if decoder is decoders["same"]:
        assert num_accepted > 0.99 * num_drafted


def test_neighbours_change_no_answer(decoder: Decoder) -> None:
    """Guards against drafts that go to another branch, and against rows that belong to another draft."""
    methods = itertools.cycle(("pasta+speculative", "speculative", "sequential", "pasta"))
    requests = [request(number, next(methods), max_tokens=60) for number in range(8)]
    together = answers(decoder, requests)
    alone = answers(decoder, requests, batch=1)
    assert [r.document for r in together] == [r.document for r in alone]


def test_cancelling_frees_every_slot_at_any_step(decoder: Decoder) -> None:
    """Guards against slots that a cancelled request keeps, in the target or in the draft model."""
    for steps in range(0, 40, 3):
        decoder.submit(request(1, "pasta+speculative"))
        decoder.submit(request(2, "speculative"))
        for _ in range(steps):
            decoder.step()
        decoder.cancel("r1")
        assert all(news.request_id == "r2" for news in decoder.step())
        decoder.cancel("r2")
        assert (decoder.num_slots, decoder.num_branches, decoder.num_requests) == (0, 0, 0)
        if isinstance(decoder.drafter, DraftModel):
            assert decoder.drafter.engine.num_branches == 0


def test_rejected_drafts_leak_no_slots(decoders: dict[str, Decoder]) -> None:
    """Guards long answers: 200 tokens with mostly wrong guesses take the slots of 200 tokens."""
    decoder = decoders["other"]
    sent = request(3, "speculative", max_tokens=200)
    sent = replace(sent, sampling=Sampling(temperature=2.0, seed=8))
    decoder.submit(sent)
    most = 0
    while decoder.busy:
        decoder.step()
        most = max(most, decoder.engine.num_slots)
    assert most <= len(sent.prompt_ids) + 200


def test_lookup_repeats_what_the_branch_has_read() -> None:
    """Guards the lookup: three tokens before two, the latest occurrence, the parent's text up to the fork, circles, and
    an end before a token that ends the answer; what is read bit by bit gives what is read at once."""
    lookup = PromptLookup(frozenset({99}), max_draft=4)

    def read(branch: Branch) -> list[int]:
        (ids,) = lookup.propose([branch])
        return ids

    engine_less = {"path": "0", "slab": None, "row": 0}
    main = Branch(**engine_less, tokens=[1, 2, 3, 4, 5, 9, 2, 3, 7, 8, 1, 2, 3])  # type: ignore[arg-type]
    assert read(main) == [4, 5, 9, 2]
    main.tokens[-3:] = [6, 2, 3]
    fresh = Branch(**engine_less, tokens=main.tokens)  # type: ignore[arg-type]
    assert read(fresh) == [7, 8, 6, 2]
    child = Branch(**engine_less, tokens=[5, 9], parent=fresh, num_inherited=13)  # type: ignore[arg-type]
    assert read(child) == [2, 3, 7, 8]
    fresh.tokens += [50, 51, 52, 50, 51]
    child.tokens += [50, 51]
    assert read(child) == []
    assert read(fresh) == [52, 50, 51, 52]
    fresh.tokens += [60, 61, 99, 60, 61]
    assert read(fresh) == []
    fresh.tokens += [62, 99, 60, 61]
    assert read(fresh) == [62]
    lookup.forget([main, fresh, child])
    assert not lookup._histories


def test_a_repetitive_prompt_is_looked_up(decoders: dict[str, Decoder]) -> None:
    """Guards against a lookup that never hits: greedy random models soon repeat themselves."""
    requests = [
        replace(
            request(number, "speculative", max_tokens=120), prompt_ids=(7, 8, 9) * 5, sampling=Sampling(seed=number)
        )
        for number in range(3)
    ]
    for answer in answers(decoders["lookup"], requests):
        assert answer.parallel.num_accepted > 20
        assert answer.parallel.critical_path < 100


def test_a_draft_model_of_another_vocabulary_is_refused(target: Path, tmp_path: Path) -> None:
    """Guards against guesses that mean something else: the first difference is named."""
    from transformers import AddedToken

    other = save_tokenizer(save_model(tmp_path, vocab_size=VOCAB), AddedToken("<|extra|>", special=True))
    with pytest.raises(ModelError, match=r"1 ids differ, the first is \d+: '<\|extra\|>', not None"):
        Decoder(Engine(EngineConfig(model=str(target))), draft=DraftConfig(EngineConfig(model=str(other))))


@pytest.mark.parametrize("max_draft", [0, -1, 33])
def test_drafts_have_a_bound(max_draft: int) -> None:
    """Guards against a draft of nothing, and of so much that it stalls its neighbours."""
    with pytest.raises(InputError, match="allowed: 1 to 32"):
        DraftConfig(max_draft=max_draft)


@pytest.mark.real_model
def test_repeating_a_text_takes_fewer_steps() -> None:
    """Guards the point of it all, on the default model: a text that is asked for again comes several tokens a step."""
    decoder = Decoder(Engine(EngineConfig()))
    text = "The old lighthouse keeper counted seventeen grey gulls before he lit the lamp and wrote down the hour."
    chat = [{"role": "user", "content": f"Repeat this text word for word, twice:\n\n{text}"}]
    ids = tuple(decoder.engine.tokenizer.encode_chat(chat))
    one, other = answers(decoder, [Request(name, ids, name, max_tokens=48) for name in ("sequential", "speculative")])
    assert one.text == other.text
    assert other.parallel.num_accepted > 10
    assert other.parallel.critical_path < 0.8 * one.parallel.critical_path
