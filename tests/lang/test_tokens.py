"""Token form and text form convert into each other; a broken token form is refused at its place."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pasta_ray.lang import (
    PRED_1X,
    PRED_10X,
    Document,
    DocumentError,
    PositionStrategy,
    Promise,
    Sync,
    TagMap,
    Text,
    TokenFormError,
    TokenPromise,
    decode_document,
    encode_document,
    parse,
    read_tokens,
)

TAGS = TagMap.after(0x110000)
STRATEGIES = (PRED_10X, PRED_1X, PositionStrategy.named("fixed"))


class Letters:
    """A tokenizer with one token a character."""

    def encode(self, text: str) -> list[int]:
        return [ord(char) for char in text]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(map(chr, ids))


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
PROMISES = st.tuples(st.sampled_from(["One", "Two words", "Über drei Wörter"]), st.integers(1, 999), TEXTS)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(TEXTS, PROMISES, st.booleans()), max_size=4), TEXTS, st.sampled_from(STRATEGIES))
def test_round_trips(
    parts: list[tuple[str, tuple[str, int, str], bool]], tail: str, positions: PositionStrategy
) -> None:
    """Guards against a loss between the forms, in either direction, and in the linear ids, with every strategy."""
    tags = TagMap.after(0x110000, positions)
    nodes: list[Text | Promise | Sync] = []
    for before, (topic, count, body), sync in parts:
        nodes += [Text(before), Promise(topic, count * positions.unit, (Text(body),), positions)]
        nodes += [Sync()] if sync else []
    document = Document((*nodes, Text(tail)))
    tokens = encode_document(document, Letters(), tags)
    assert decode_document(tokens, Letters(), tags) == document == parse(document.linear(), positions)
    assert read_tokens(tokens.ids, Letters(), tags) == tokens


def test_exact_lengths_count_the_body_and_its_tags() -> None:
    """Guards against a length that leaves the two tags out: 8 + 2 is 10, 9 + 2 is rounded up to 20."""
    for body, want in (("x" * 8, 10), ("x" * 9, 20)):
        document = parse(f'<promise topic="t" tokens="500"/><async>{body}</async>')
        (node,) = encode_document(document, Letters(), TAGS, exact=True).nodes
        assert node.num_tokens == want


def test_each_strategy_writes_its_own_count_and_gap() -> None:
    """Guards training against another strategy's lengths: a body of 25 tokens is 3 tens, or 25; a fixed gap stays."""
    document = parse(f'<promise topic="t" tokens="500"/><async>{"x" * 23}</async>')
    for positions, digits, num_tokens, gap in (
        (PRED_10X, "3", 30, 30),
        (PRED_1X, "25", 25, 25),
        (PositionStrategy.named("fixed-70"), "3", 30, 70),
    ):
        tags = TagMap.after(0x110000, positions)
        (node,) = encode_document(document, Letters(), tags, exact=True).nodes
        assert isinstance(node, TokenPromise)
        assert node.head == (tags.promise, ord("t"), tags.tokens, *map(ord, digits), tags.promise_end)
        assert (node.num_tokens, node.gap) == (num_tokens, gap)


def test_a_length_that_the_strategy_cannot_write_is_refused() -> None:
    """Guards against 37 becoming 30 on the way from a Pred-1X document to a Pred-10X model."""
    document = parse('<promise topic="t" tokens="37"/><async>x</async>', PRED_1X)
    with pytest.raises(DocumentError, match=r"'t': tokens 37; allowed: a multiple of 10, 10 to 9990 .*pred-10x"):
        encode_document(document, Letters(), TAGS)
    assert encode_document(document, Letters(), TAGS, exact=True).ids[3] == ord("1")


P, T, PE, A, AE, S = TAGS.ids
HEAD = [P, ord("t"), T, ord("1"), PE]


@pytest.mark.parametrize(
    ("ids", "index"),
    [
        ([S], 0),
        ([5, AE], 1),
        ([P, 5], 2),
        ([P, 5, PE], 2),
        ([P, 5, T, P], 3),
        (HEAD, 5),
        ([*HEAD, A, 5], 7),
        ([*HEAD, A, 5, P], 7),
        ([P, ord("t"), T, ord("x"), PE, A, AE], 3),
        ([P, ord("t"), T, ord("0"), PE, A, AE], 0),
        ([P, ord("t"), T, ord("0"), ord("1"), PE, A, AE], 3),
        ([P, ord("t"), T, *[ord("9")] * 5000, PE, A, AE], 3),
        ([P, T, ord("1"), PE, A, AE], 0),
    ],
)
def test_a_broken_token_form_is_refused_at_its_place(ids: list[int], index: int) -> None:
    """Guards against a body without end, a head without count, and tags out of order."""
    with pytest.raises(TokenFormError) as caught:
        read_tokens(ids, Letters(), TAGS)
    assert caught.value.index == index
