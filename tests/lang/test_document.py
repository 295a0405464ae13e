"""Documents: what the reader sees, the text form and its escapes, and the critical path."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pasta_ray.lang import PRED_1X, Document, DocumentError, Promise, Sync, Text, parse

TEXTS = st.lists(
    st.sampled_from(["<sync/>", "<async>", "</async>", "<promise ", "\\", "\\\\", "<", "a", " ", "\n", "é", "<sync"]),
    max_size=6,
).map("".join)


def build(parts: list[tuple[str, str, int]]) -> Document:
    nodes: list[Text | Promise | Sync] = []
    for before, body, num_tokens in parts:
        nodes += [Text(before), Promise("Some topic", num_tokens * 10, (Text(body),))]
        if num_tokens % 2:
            nodes.append(Sync())
    return Document(tuple(nodes))


@settings(max_examples=500, deadline=None)
@given(st.lists(st.tuples(TEXTS, TEXTS, st.integers(1, 999)), max_size=4), TEXTS)
def test_linear_and_parse_are_inverse(parts: list[tuple[str, str, int]], tail: str) -> None:
    """Guards against literal tags and backslashes in an answer being taken for tags, or lost."""
    document = Document((*build(parts).nodes, Text(tail)))
    assert parse(document.linear()) == document


def test_text_shows_bodies_in_place_and_no_tag() -> None:
    """Guards against a body out of order and against a tag in front of a reader."""
    document = parse('a<promise topic="x" tokens="10"/><async>b</async>c<sync/>d')
    assert document.text() == "abcd"


@pytest.mark.parametrize("topic", ["", " a", "a ", "a  b", "a b c d", 'a"b', "a<b", "a\\b", "a\nb", "x" * 65])
def test_bad_topics_are_refused(topic: str) -> None:
    """Guards against a topic that could not be written in the text form."""
    with pytest.raises(DocumentError, match="allowed"):
        Promise(topic, 10, ())


@pytest.mark.parametrize("num_tokens", [-10, 0, 5, 15, 10_000])
def test_bad_lengths_are_refused(num_tokens: int) -> None:
    """Guards against a length that the token form cannot carry."""
    with pytest.raises(DocumentError, match="multiple of 10"):
        Promise("a", num_tokens, ())


@pytest.mark.parametrize("num_tokens", [-1, 0, 9991])
def test_bad_exact_lengths_are_refused(num_tokens: int) -> None:
    """Guards the bounds that every strategy has."""
    with pytest.raises(DocumentError, match="allowed: 1 to 9990"):
        Promise("a", num_tokens, (), PRED_1X)
    assert Document((Promise("a", 37, (), PRED_1X),)).promises[0].positions == PRED_1X


def test_nesting_is_refused_with_a_reason() -> None:
    """Guards against a nested promise slipping in by hand."""
    with pytest.raises(DocumentError, match="version 1"):
        Promise("a", 10, (Promise("b", 10, ()),))


def test_a_sync_needs_an_open_promise() -> None:
    """Guards against a sync that would wait for nothing."""
    with pytest.raises(DocumentError, match="open promise"):
        Document((Text("a"), Sync()))


def path(text: str) -> int:
    return parse(text).critical_path(len, promise_tokens=lambda _: 5)


def test_critical_path_of_plain_text_is_its_length_and_the_end() -> None:
    """Guards against an off-by-one in what every speedup is divided by."""
    assert path("abcd") == 5


def test_critical_path_runs_through_the_longest_body() -> None:
    """Guards against bodies counted in turn: 5 for the promise, then 20 + its end against 5 + 3 + the end token."""
    twenty = "x" * 20
    body = f'<promise topic="t" tokens="30"/><async>{twenty}</async>'
    assert path(body) == 5 + 21
    assert path(f"{body}{body}") == 10 + 21
    assert path(f"{body}<sync/>ab") == 5 + 21 + 2 + 1
    assert path(f"{body}{'y' * 40}<sync/>ab") == 5 + 40 + 1 + 2 + 1
