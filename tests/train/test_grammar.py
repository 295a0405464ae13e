"""The probability that the grammar masks away: in the phase that a decoder would be in, and of nothing else."""

import math
from pathlib import Path

import pytest
import torch

from pasta_ray.engine.tokenizer import Tokenizer
from pasta_ray.lang import TagMap
from pasta_ray.lang.grammar import Phase
from pasta_ray.train.config import SftConfig
from pasta_ray.train.data import Encoder, Example, Record
from pasta_ray.train.grammar import GrammarLoss, breaking, label_phases, masked_away
from tests.engine.test_tokenizer import save_tokenizer

TAGS = TagMap.after(300)
DOCUMENT = 'Hi <promise topic="a b" tokens="10"/><async> c</async> d <sync/>e'


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(save_tokenizer(tmp_path_factory.mktemp("tokenizer")), TAGS)


@pytest.fixture(scope="module")
def example(tokenizer: Tokenizer) -> Example:
    return Encoder(tokenizer, TAGS).encode(Record(id="d", instruction="i", document=DOCUMENT))


def labels(example: Example) -> list[int]:
    laid_out = example.layout
    return [id_ for id_, source in zip(laid_out.ids, laid_out.label_source, strict=True) if source is not None]


def test_each_label_has_the_phase_that_a_decoder_is_in(tokenizer: Tokenizer, example: Example) -> None:
    """Guards a walk that confuses body and main branch: the phase behind a body is again the main branch's."""
    ids = labels(example)
    phases = label_phases(example.layout, TAGS, tokenizer.token_text)
    assert len(phases) == len(ids)
    at = {id_: Phase(phase) for id_, phase in zip(ids, phases, strict=True)}
    assert at[TAGS.promise] == Phase.MAIN
    assert at[TAGS.tokens] == Phase.TOPIC
    assert at[TAGS.promise_end] == Phase.COUNT_LAST_DIGIT
    assert at[TAGS.async_end] == Phase.BODY
    assert at[TAGS.sync] == Phase.MAIN_OPEN
    assert phases[ids.index(TAGS.async_end) + 1] == Phase.MAIN_OPEN
    assert phases[-1] == Phase.MAIN


def test_what_was_written_breaks_nothing(tokenizer: Tokenizer, example: Example) -> None:
    bank = breaking(tokenizer, 306)
    phases = label_phases(example.layout, TAGS, tokenizer.token_text)
    assert not any(bank[phase, id_] for id_, phase in zip(labels(example), phases, strict=True))
    assert bank[Phase.BODY, TAGS.promise]
    assert bank[Phase.MAIN, TAGS.sync]
    assert not bank[Phase.MAIN_OPEN, TAGS.sync]


def test_the_loss_is_that_of_the_masked_probability() -> None:
    """By hand: a quarter of the probability lies on a token that breaks the grammar, then none, and its gradient."""
    logits = torch.tensor([[0.25, 0.25, 0.5], [0.25, 0.25, 0.5]]).log().requires_grad_()
    broken = torch.tensor([[True, False, False], [False, False, False]])
    loss = masked_away(logits, broken)
    assert loss.tolist() == pytest.approx([-math.log(0.75), 0.0], abs=1e-6)
    loss.sum().backward()
    assert logits.grad is not None
    assert logits.grad[0].tolist() == pytest.approx([0.25, 0.25 - 1 / 3, 0.5 - 2 / 3], abs=1e-6)
    assert logits.grad[1].tolist() == pytest.approx([0.0] * 3, abs=1e-6)


def test_packed_examples_are_taken_one_after_the_other(tokenizer: Tokenizer, example: Example) -> None:
    """Guards phases of one example that are read at the labels of another."""
    ids = labels(example)
    logits = torch.zeros(2 * len(ids), 306)
    place = ids.index(TAGS.async_end)
    logits[len(ids) + place, TAGS.promise] = 20.0
    loss = GrammarLoss(tokenizer)(logits, [example, example])
    assert loss.argmax() == len(ids) + place
    assert loss[len(ids) + place] > 10
    assert loss.sum() - loss.max() < 2 * len(ids)


def test_only_pasta_has_such_a_grammar() -> None:
    with pytest.raises(ValueError, match="goes with language pasta, not plain"):
        SftConfig(name="x", documents=[Path("d.jsonl")], language="plain", grammar_weight=1)
