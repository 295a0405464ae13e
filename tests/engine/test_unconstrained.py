"""PASTA without the constraint: what breaks the grammar has one outcome, is counted, and loses no text."""

import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pasta_ray.engine import commit
from pasta_ray.engine.decoder import Decoder
from pasta_ray.engine.masks import build_masks
from pasta_ray.engine.messages import Report, Request, Sampling
from pasta_ray.engine.sampler import SampleRow, sample
from pasta_ray.errors import InputError
from pasta_ray.lang import TagMap, parse
from pasta_ray.lang.grammar import Phase, free_row
from tests.engine.events import answer, cancel_at_every_step, report, run, shown
from tests.engine.test_memory import SLOT_BYTES
from tests.engine.test_methods import make_decoder, request

BODY = '<promise topic="x" tokens="10"/><async>{}</async>'


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    return make_decoder(tmp_path_factory.mktemp("model"))


@pytest.fixture
def decoder(shared: Decoder) -> Decoder:
    assert (shared.num_slots, shared.num_branches, shared.num_requests) == (0, 0, 0)
    return shared


@pytest.fixture
def whole(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> Decoder:
    """The decoder with its whole vocabulary."""
    monkeypatch.setattr(decoder.engine, "masks", build_masks(decoder.engine.tokenizer, decoder.engine.vocab_size))
    return decoder


def free(number: int, **limits: int) -> Request:
    return replace(request(number, **limits), constrained=False)


def teach(monkeypatch: pytest.MonkeyPatch, penalty: float, *, noise: bool = False) -> None:
    """Teach the model some grammar: what would break it has a lower logit. ``noise``: all logits are random numbers, a
    function of seed, branch and token index."""

    def taught(logits_RV: torch.Tensor, rows: Sequence[SampleRow], masks: torch.Tensor) -> list[int]:
        logits_RV = logits_RV.clone()
        for logits_V, row in zip(logits_RV, rows, strict=True):
            if noise:
                generator = torch.Generator().manual_seed(
                    zlib.crc32(f"{row.sampling.seed} {row.path} {row.index}".encode())
                )
                logits_V.normal_(generator=generator)
            assert row.mask_row is not None
            logits_V[~masks[row.mask_row % len(Phase)]] -= penalty
        return sample(logits_RV, rows, masks)

    monkeypatch.setattr(commit, "sample", taught)


@pytest.mark.parametrize(("penalty", "min_bodies"), [(0.0, 0), (8.0, 10)])
def test_garbage_ends_and_leaves_nothing(
    penalty: float, min_bodies: int, decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards answers of a model that knows no grammar, or some: each ends as a document with all of its text, within
    its limits, counted, and no slot stays."""
    teach(monkeypatch, penalty)
    num_violations = num_bodies = 0
    for start in range(0, 24, 6):
        for events in run(decoder, [free(number, max_tokens=100) for number in range(start, start + 6)]).values():
            got = report(events)
            assert parse(got.document).text() == got.text == shown(events)
            assert got.usage.completion_tokens <= 101
            assert got.parallel.num_promises <= 5
            assert got.parallel.num_violations <= len(got.branches)
            for body in got.branches[1:]:
                assert body.tokens_predicted is not None
                assert body.tokens <= max(2 * body.tokens_predicted, body.tokens_predicted + 64)
            num_violations += got.parallel.num_violations
            num_bodies += got.parallel.num_promises
        assert (decoder.num_slots, decoder.num_branches) == (0, 0)
    assert num_violations > 20
    assert num_bodies >= min_bodies


def test_no_token_of_text_is_lost(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards the text around a violation: whatever was sampled and is no tag, no end and no head of a promise that was
    kept is visible, and the steps taken are the critical path."""
    teach(monkeypatch, 8.0)
    tokenizer, tags = decoder.engine.tokenizer, decoder.engine.tags
    assert isinstance(tags, TagMap)
    num_checked = 0
    for number in range(16):
        decoder.submit(free(number, max_tokens=100))
        (run_,) = decoder._runs.values()
        while decoder.busy:
            decoder.step()
        assert run_.critical_path() == run_.num_steps
        if run_.full:
            continue
        main = run_.main.branch.tokens[len(run_.request.prompt_ids) :]
        for _ in range(len(run_.tracks) - 1):
            start, end = main.index(tags.promise), main.index(tags.promise_end)
            del main[start : end + 1]
        bodies = [track.branch.tokens for track in run_.tracks.values() if track is not run_.main]
        kept = [id_ for ids in (main, *bodies) for id_ in ids if id_ not in (*tags.ids, *tokenizer.stop_ids)]
        assert run_.num_visible == len(kept)
        num_checked += 1
    assert num_checked > 3


Script = dict[str, list[int | str]]


def written(decoder: Decoder, script: Script, monkeypatch: pytest.MonkeyPatch) -> tuple[Report, str]:
    """What comes of branches that sample the tokens of a script: tags by their field, 'end', or text."""
    tokenizer, tags = decoder.engine.tokenizer, decoder.engine.tags
    assert isinstance(tags, TagMap)
    ids: dict[str, list[int]] = {}
    for path, items in script.items():
        ids[path] = []
        for item in items:
            if item == "end":
                ids[path].append(tokenizer.stop_ids[0])
            else:
                ids[path] += [item] if isinstance(item, int) else tokenizer.encode(item)

    def scripted(_: torch.Tensor, rows: Sequence[SampleRow], masks: torch.Tensor) -> list[int]:
        tokens = [ids[row.path].pop(0) for row in rows]
        allowed = [bool(masks[row.mask_row, token]) for row, token in zip(rows, tokens, strict=True)]
        assert all(allowed), "a masked token"
        return tokens

    with monkeypatch.context() as patch:
        patch.setattr(commit, "sample", scripted)
        events = run(decoder, [free(0)])["r0"]
    assert not any(ids.values())
    return report(events), shown(events)


PROMISE, TOKENS, PROMISE_END, ASYNC, ASYNC_END, SYNC = TagMap.after(320 - 6).ids
HEAD: list[int | str] = [PROMISE, "x", TOKENS, "1", PROMISE_END]


@pytest.mark.parametrize(
    ("script", "document", "num_violations"),
    [
        ({"0": ["a", *HEAD, "b", SYNC, "c", "end"], "0.1": ["a", ASYNC_END]}, f"a{BODY.format('a')}b<sync/>c", 0),
        ({"0": ["a", SYNC, "b", "end"]}, "ab", 1),
        ({"0": ["a", TOKENS, "b", "end"]}, "ab", 1),
        ({"0": ["a", ASYNC, "b", "end"]}, "ab", 1),
        ({"0": ["a", PROMISE, "b user", SYNC, "a", "end"]}, "ab usera", 1),
        ({"0": ["a", PROMISE, "b", "end"]}, "ab", 1),
        ({"0": ["a", PROMISE, TOKENS, "b", "end"]}, "ab", 1),
        ({"0": ["a", PROMISE, "b user user user", "b", "end"]}, "ab user user userb", 1),
        ({"0": ["a", PROMISE, "b\nc", "end"]}, "ab\nc", 1),
        ({"0": ["a", PROMISE, "b", TOKENS, "0", "c", "end"]}, "ab0c", 1),
        ({"0": ["a", PROMISE, "b", TOKENS, "1", " user", "end"]}, "ab1 user", 1),
        ({"0": ["a", PROMISE, "b", TOKENS, "12", SYNC, "c", "end"]}, "ab12c", 1),
        ({"0": ["a", *HEAD, "b", "end"], "0.1": ["a", PROMISE, "b", ASYNC_END]}, f"a{BODY.format('ab')}b", 1),
        ({"0": ["a", *HEAD, SYNC, "b", "end"], "0.1": ["a", "b", "end"]}, f"a{BODY.format('ab')}<sync/>b", 1),
        ({"0": ["a", *HEAD, SYNC, "b", "end"], "0.1": ["end"]}, f"a{BODY.format('')}<sync/>b", 1),
        ({"0": ["a", *HEAD, ASYNC_END, "b", "end"], "0.1": [*"abcabc", ASYNC_END]}, f"a{BODY.format('abcabc')}b", 1),
        ({"0": ["a", *HEAD, TOKENS, "b", "end"], "0.1": [SYNC, "c", ASYNC_END]}, f"a{BODY.format('c')}b", 2),
    ],
)
def test_each_way_to_break_the_grammar(
    script: Script, document: str, num_violations: int, whole: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards the outcome of every kind of violation: tags go, text stays in its place, bodies end, syncs still join."""
    got, text = written(whole, script, monkeypatch)
    assert got.document == document
    assert got.text == text == parse(document).text()
    assert got.parallel.num_violations == num_violations
    assert got.finish_reason == "stop"
    assert {branch.finish_reason for branch in got.branches} == {"stop"}
    num_sampled = sum(branch.tokens for branch in got.branches) - len(got.branches[1:])
    assert got.usage.completion_tokens + got.usage.annotation_tokens - got.parallel.num_promises == num_sampled
    assert (whole.num_slots, whole.num_branches) == (0, 0)


def test_after_a_violation_no_tag_is_offered(whole: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards sequential decoding as the fallback: a model that has lost the grammar forks no more."""
    scripts: list[Script] = [
        {"0": ["a", SYNC, PROMISE]},
        {"0": [*HEAD, "a", "b", "c"], "0.1": ["a", PROMISE, PROMISE]},
    ]
    for script in scripts:
        with pytest.raises(AssertionError, match="a masked token"):
            written(whole, script, monkeypatch)
        whole.cancel("r0")


def test_an_answer_that_breaks_nothing_is_the_constrained_one(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards greedy decoding: without a violation the switch changes no token."""
    teach(monkeypatch, 1.5, noise=True)
    num_equal = num_broken = num_bodies = 0
    for number in range(24):
        wanted = replace(request(number, max_tokens=20), sampling=Sampling(seed=number))
        constrained, got = answer(decoder, wanted), answer(decoder, replace(wanted, constrained=False))
        assert constrained.parallel.num_violations == 0
        if got.parallel.num_violations:
            num_broken += 1
            continue
        num_equal += 1
        num_bodies += got.parallel.num_promises
        assert replace(got, timing=constrained.timing, branches=()) == replace(constrained, branches=())
    assert min(num_equal, num_broken, num_bodies) > 3, (num_equal, num_broken, num_bodies)


def test_whatever_the_constraint_allows_is_allowed_without_it(decoder: Decoder) -> None:
    """Guards the limits: a token that they mask may be none that the grammar's masks let through."""
    masks = decoder.engine.masks
    assert masks is not None
    for phase in Phase:
        assert (masks[free_row(phase)] | ~masks[phase]).all(), phase
    assert masks[free_row(Phase.MAIN)].sum() > masks[Phase.MAIN].sum()


def test_the_worst_case_fits(tmp_path: Path) -> None:
    """Guards answers in flight: with room for the worst case and no more, no answer outgrows it."""
    max_slots = 6 + 150 + 1 + 5 * 20 + 5 + 20 + 5  # as with the constraint; half of a promise; a dropped tag a body
    decoder = make_decoder(tmp_path, max_kv_bytes=max_slots * SLOT_BYTES)
    with pytest.raises(InputError, match=f"for {max_slots + 1} tokens"):
        decoder.submit(free(0, max_tokens=151))
    for number in range(0, 400, 40):
        report(run(decoder, [free(number)])[f"r{number}"])


def test_cancelling_frees_every_branch_at_any_step(decoder: Decoder) -> None:
    """Guards against slots that stay where a request is cancelled around a violation."""
    cancel_at_every_step(decoder, free(1), request(2), range(0, 40, 4))


@pytest.mark.parametrize("method", ["sequential", "pasta+speculative", "sot", "apar"])
def test_it_goes_with_pasta_alone(method: str) -> None:
    """Guards against a switch that is silently ignored, and against drafts whose grammar nobody keeps."""
    with pytest.raises(InputError, match=rf"goes with method 'pasta', not with '{method.replace('+', '.')}'"):
        Request("r", (1,), method, constrained=False)
