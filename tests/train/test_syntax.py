"""The syntax annotator: where it splits, what it calls the parts, and that the text stays the same."""

import random

import pytest

from pasta_ray.lang import Document, parse
from pasta_ray.train.annotators.splits import Level, has_structure
from pasta_ray.train.annotators.syntax import LEVELS, annotate
from pasta_ray.train.annotators.topics import topic_of

LONG = "This item goes on for a good while, so that decoding it beside its siblings is worth the promise it takes."


def count(text: str) -> int:
    return len(text.split())


def bodies(document: Document) -> list[tuple[str, str]]:
    return [(promise.topic, "".join(node.text for node in promise.body)) for promise in document.promises]  # type: ignore[union-attr]


def test_a_numbered_list_with_intro_and_close() -> None:
    """Guards the common case: markers stay in the main text, and what follows the list waits for it."""
    answer = f"Two ways:\n\n1. **Go slow**: {LONG}\n2. Walk: {LONG}\n\nEither works."
    document = annotate(answer, count)
    assert document.text() == answer
    assert bodies(document) == [("Go slow", f" **Go slow**: {LONG}"), ("Walk", f" Walk: {LONG}")]
    assert document.num_syncs == 1
    assert document.linear().startswith('Two ways:\n\n1.<promise topic="Go slow"')
    assert document.linear().endswith("</async><sync/>\n\nEither works.")


def test_the_outermost_structure_wins() -> None:
    """Guards against promises inside bodies, which version 1 does not have."""
    answer = f"## First part\n\n- {LONG}\n- {LONG}\n\n## Second part\n\n{LONG}"
    document = annotate(answer, count)
    assert [topic for topic, _ in bodies(document)] == ["First part", "Second part"]
    nested = f"1. Outer one\n   - {LONG}\n   - {LONG}\n2. Outer two\n   - {LONG}"
    assert [topic for topic, _ in bodies(annotate(nested, count))] == ["Outer one", "Outer two"]


def test_paragraphs_are_split_only_where_asked_and_worth_it() -> None:
    """Guards against prose being cut where only lists were meant."""
    answer = "\n\n".join([LONG, f"Second: {LONG}", f"Third: {LONG}"])
    assert len(annotate(answer, count).promises) == 2, "the first paragraph is what the others build on"
    assert not annotate(answer, count, ("section", "list")).promises


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "Plain prose.",
        "- a\n- b\n- c",
        "1. Only one item, however long it is: " + LONG,
        f"3. {LONG}\n7. {LONG}",
        f"# Title\n\n{LONG}",
        "a - b\n- c",
    ],
)
def test_what_would_gain_nothing_stays_text(answer: str) -> None:
    """Guards against promises that cost more than they save, and against lists that are none."""
    assert not annotate(answer, count, ("section", "list")).promises


def test_two_lists_are_two_groups() -> None:
    """Guards against items of different lists being decoded without what stands between them."""
    item = f"- {LONG}\n- {LONG}"
    document = annotate(f"{item}\n\nAnd on the other hand:\n\n{item}", count)
    assert len(document.promises) == 4
    assert document.num_syncs == 1


@pytest.mark.parametrize(
    ("body", "topic"),
    [
        (" **Set realistic goals**: do this", "Set realistic goals"),
        (" The art of the deal is long", "art"),
        ("## Why it matters\n\ntext", "Why it matters"),
        (" Drink water: often", "Drink water"),
        (' "Quoted" <b>', "Quoted b"),
        (" …", "Part 3"),
        (" 100% of it", "100"),
    ],
)
def test_topics(body: str, topic: str) -> None:
    """Guards against topics the grammar does not allow, and against words that say nothing."""
    assert topic_of(body, 3) == topic


def test_any_text_comes_back() -> None:
    """Guards against an annotator that loses or moves text: random structured answers, every choice of levels."""
    rng = random.Random(4)
    lines = [
        "# H",
        "## Head two",
        "**Bold head**",
        "1. ",
        "2. ",
        "3) ",
        "- ",
        "* ",
        "",
        "",
        "  - sub ",
        "x: ",
        "<sync/> \\",
    ]
    num_promises = 0
    for _ in range(3000):
        answer = "\n".join(rng.choice(lines) + rng.choice(["", LONG]) for _ in range(rng.randint(0, 9)))
        levels: list[Level] = rng.sample(LEVELS, rng.randint(1, 3))
        document = annotate(answer, count, levels)
        assert document.text() == answer
        assert parse(document.linear()) == document
        num_promises += len(document.promises)
    assert num_promises > 500


def test_has_structure() -> None:
    """Guards the benchmark's choice of prompts."""
    assert has_structure("Intro\n\n- a\n- b")
    assert has_structure("## A\nx\n## B\ny")
    assert not has_structure("1. one thing")
    assert not has_structure("a\n\nb\n\nc")
