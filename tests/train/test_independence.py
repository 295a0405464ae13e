"""The independence annotator: what it measures, against rows computed one by one; what it keeps; what it makes of the
rest. On a small random model."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from pasta_ray.engine.tokenizer import Tokenizer
from pasta_ray.errors import InputError
from pasta_ray.lang import Document, Promise, Sync, Text
from pasta_ray.train.annotators.independence import (
    IndependenceAnnotator,
    IndependenceConfig,
    given_away,
    join_dependent,
    split_where_dependent,
)
from pasta_ray.train.likelihood import Likelihood
from pasta_ray.train.pairs import Pair
from tests.engine.conftest import save_model
from tests.engine.test_tokenizer import save_tokenizer

APPLES = " Apples keep for months in a cool cellar, where they should lie apart from each other."
BREAD = " Bread is best on the day it was baked, and after that it may be toasted or put into soups."
CHEESE = " Cheese wants a cool damp place, and a cloth around it that has been wetted with salt water."
ANSWER = f"How to store food:\n-{APPLES}\n-{BREAD}\n-{CHEESE}\n\nAll of it should be eaten in time."
PAIR = Pair(id="p", instruction="How do I store food?", output=ANSWER)
DOCUMENT = Document(
    (
        Text("How to store food:\n-"),
        Promise("Apples keep", 90, (Text(APPLES),)),
        Sync(),
        Text("\n-"),
        Promise("Bread", 110, (Text(BREAD),)),
        Text("\n-"),
        Promise("Cheese", 100, (Text(CHEESE),)),
        Text("\nend"),
    )
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tokenizer(save_model(tmp_path_factory.mktemp("model"), vocab_size=300))


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.load(folder, None)


@pytest.fixture(scope="module")
def annotator(folder: Path, tokenizer: Tokenizer) -> IndependenceAnnotator:
    return IndependenceAnnotator(IndependenceConfig(), Likelihood.load(folder, row_tokens=700), tokenizer)


def mean_log_likelihood(folder: Path, ids: Sequence[int], positions: Sequence[int], num: int) -> float:
    """Of the last ``num`` of ``ids``, by transformers' own causal pass over nothing but these tokens."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        logits = model(torch.tensor([ids]), position_ids=torch.tensor([positions])).logits[0]
    scores = logits.log_softmax(-1)[:-1].gather(-1, torch.tensor(ids)[1:, None])[:, 0]
    return float(scores[-num:].mean())


def test_drops_equal_rows_computed_one_by_one(
    folder: Path, tokenizer: Tokenizer, annotator: IndependenceAnnotator
) -> None:
    """Guards the measure: a body that sees a sibling, misses its topic, stands at a wrong position, or is scored where
    its topic gives it away. A row here holds only what its body sees, so there is no mask to be wrong."""
    encode = tokenizer.encode
    prompt = tokenizer.encode_chat([{"role": "user", "content": PAIR.instruction}])
    start = prompt + encode("How to store food:\n-") + encode("[Apples keep]")
    apples, bread, cheese = (encode(":") + encode(body) for body in (APPLES, BREAD, CHEESE))
    second = encode("\n") + encode("\n-") + encode("[Bread]")  # the first line's end stands for the sync
    third = encode("\n-") + encode("[Cheese]")
    num_bread = len(bread) - 1 - len(encode(" Bread"))
    num_cheese = len(cheese) - 1 - len(encode(" Cheese"))
    until_bread, until_cheese = start + apples + second, start + apples + second + bread + third

    def at(first: int, ids: Sequence[int]) -> list[int]:
        return list(range(first, first + len(ids)))

    main = at(0, start + apples) + at(len(start) + 90, second)  # the first body's room, whatever it needs
    bread_parallel = mean_log_likelihood(folder, until_bread + bread, main + at(main[-1] + 1, bread), num_bread)
    cheese_parallel = mean_log_likelihood(
        folder, until_bread + third + cheese, main + at(main[-1] + 1 + 110, third + cheese), num_cheese
    )
    bread_in_order = mean_log_likelihood(folder, until_bread + bread, at(0, until_bread + bread), num_bread)
    cheese_in_order = mean_log_likelihood(folder, until_cheese + cheese, at(0, until_cheese + cheese), num_cheese)

    (drops, again) = annotator.drops([(PAIR, DOCUMENT), (PAIR, DOCUMENT)])
    expected = [0.0, bread_in_order - bread_parallel, cheese_in_order - cheese_parallel]
    assert drops == pytest.approx(expected, abs=1e-4)
    assert again == pytest.approx(expected, abs=1e-4), "neighbours in a row change nothing"
    assert abs(expected[1]) > 1e-3, "its position leaves room for what was predicted, and that shows"
    assert abs(expected[2]) > 1e-2, "else the test shows nothing"


@pytest.mark.parametrize(("delta", "num_promises"), [(math.inf, 3), (-math.inf, 0)])
def test_the_ends_of_delta(folder: Path, tokenizer: Tokenizer, delta: float, num_promises: int) -> None:
    """Guards the direction of the comparison: infinite loss allowed keeps every body, none allowed keeps none."""
    config = IndependenceConfig(delta, levels=("list", "sentence"))
    annotator = IndependenceAnnotator(config, Likelihood.load(folder), tokenizer)
    (annotation,) = annotator.annotate([PAIR])
    assert annotation.document is not None
    assert annotation.document.text() == ANSWER
    assert len(annotation.document.promises) == num_promises


class Told(IndependenceAnnotator):
    """Drops that a test decides: a body that has a sibling before it loses ``losses[word]`` if it holds the word."""

    def __init__(
        self, likelihood: Likelihood, tokenizer: Tokenizer, losses: dict[str, float], **config: object
    ) -> None:
        super().__init__(IndependenceConfig(0.2, **config), likelihood, tokenizer)  # type: ignore[arg-type]
        self.losses = losses
        self.num_measured = 0

    def drops(self, documents: Sequence[tuple[Pair, Document]]) -> list[list[float]]:
        self.num_measured += len(documents)
        return [self._drops(document) for _, document in documents]

    def _drops(self, document: Document) -> list[float]:
        drops, num_open = [], 0
        for node in document.nodes:
            if isinstance(node, Promise):
                loss = sum(loss for word, loss in self.losses.items() if word in node.text())
                drops.append(loss if num_open else 0.0)
            num_open = 0 if isinstance(node, Sync) else num_open + isinstance(node, Promise)
        return drops


Annotate = Callable[..., Document]


@pytest.fixture
def annotate(annotator: IndependenceAnnotator, tokenizer: Tokenizer) -> Annotate:
    """The document of an answer where bodies lose what the test says."""

    def annotate(losses: dict[str, float], answer: str = ANSWER, **config: object) -> Document:
        told = Told(annotator.likelihood, tokenizer, losses, **config)
        (annotation,) = told.annotate([Pair(id="p", instruction="?", output=answer)])
        assert annotation.document is not None
        assert annotation.document.text() == answer
        return annotation.document

    return annotate


def nodes(document: Document) -> str:
    return "".join(type(node).__name__[0] for node in document.nodes)


def test_a_body_that_depends_on_others_waits_for_them(annotate: Annotate) -> None:
    """Guards what is made of a list whose items are not all independent."""
    assert nodes(annotate({}, levels=["list"])) == "TPTPTPST"
    assert nodes(annotate({"put into": 0.5}, levels=["list"])) == "TPTPST", "a sync, then bread and cheese"
    assert nodes(annotate({"damp": 0.5}, levels=["list"])) == "TPTPST", "cheese alone is no gain"
    assert nodes(annotate({"put into": 0.5, "damp": 0.5}, levels=["list"])) == "T"


def test_in_prose_it_becomes_one_with_the_body_before(annotate: Annotate) -> None:
    """Guards runs of sentences: they end where the next sentence stands by itself."""
    prose = (
        f"Food can be stored.{APPLES}{BREAD}{CHEESE} Eggs are kept best with their pointed end down, and not washed."
    )
    assert [p.topic for p in annotate({}, prose).promises] == [
        "Apples keep months",
        "Bread best day",
        "Cheese wants cool",
        "Eggs kept best",
    ]
    document = annotate({"put into": 0.5}, prose)
    assert [promise.text() for promise in document.promises][:2] == [APPLES + BREAD, CHEESE]
    assert len(document.promises) == 3
    assert document.num_syncs == 0


def test_the_fastest_valid_document_wins_and_the_rest_is_not_measured(
    annotator: IndependenceAnnotator, tokenizer: Tokenizer
) -> None:
    """Guards against forward passes for candidates that cannot win, and against the first that is found."""
    sections = "\n\n".join(
        f"## {title}\n\n{text.strip()}{text}" for title, text in zip("ABC", (APPLES, BREAD, CHEESE), strict=True)
    )
    told = Told(annotator.likelihood, tokenizer, {})
    pair = Pair(id="p", instruction="?", output=sections)
    candidates = told.candidates(pair)
    assert {candidate.level for candidate in candidates} >= {"section", "paragraph"}
    (annotation,) = told.annotate([pair])
    best = max(candidates, key=lambda candidate: candidate.bound)
    assert annotation.document == best.document
    assert told.num_measured == 1


def test_splitting_and_joining() -> None:
    """Guards the two ways to mend a group, at its ends."""
    group = ((0, 5), (6, 9), (10, 14), (15, 20))
    assert split_where_dependent(group, [True, True, False, True]) == [group[:2], group[2:]]
    assert split_where_dependent(group, [False, True, True, True]) == [group[1:]]
    assert split_where_dependent(group, [True, False, False, False]) == []
    assert join_dependent(group, [True, True, False, True]) == ((0, 5), (6, 14), (15, 20))
    assert join_dependent(group, [False, False, True, True]) == ((0, 9), (10, 14), (15, 20))


def test_what_a_topic_gives_away() -> None:
    """Guards against content that is left out of the measure, and words of the topic that are in it."""

    def words(topic: str, body: str) -> list[str]:
        return [body[start:end] for start, end in given_away(topic, body)]

    assert words("Keep calm", " **Keep calm**: it helps to keep calm") == [" **Keep", "calm"]
    assert words("eliminate food sources", " First, eliminate their food sources by") == [
        "eliminate",
        "food",
        "sources",
    ]
    assert words("cat", " a cathedral, a cat") == ["cat"]
    assert words("Part 2", " nothing of it") == []


def test_what_cannot_be_measured_is_no_candidate(folder: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Guards against examples beyond the model's positions, and against settings that mean nothing."""
    short = Likelihood.load(save_model(tmp_path, vocab_size=300, max_position_embeddings=100))
    assert IndependenceAnnotator(IndependenceConfig(), short, tokenizer).candidates(PAIR) == []
    for fields, message in (
        ({"delta": math.nan}, "delta is nan"),
        ({"levels": ["word"]}, "levels are word; allowed: section"),
        ({"device": "tpu"}, "device is 'tpu'"),
        ({"dtype": "int3"}, "dtype is 'int3'"),
    ):
        with pytest.raises(InputError, match=message):
            IndependenceConfig(**fields)  # type: ignore[arg-type]
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="finds no GPU here"):
            Likelihood.load(folder, device="cuda")
