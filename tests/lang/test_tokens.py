"""Token form and text form convert into each other; a broken token form is refused at its place."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pasta_ray.lang import (
    Document,
    Promise,
    Sync,
    TagMap,
    Text,
    TokenFormError,
    decode_document,
    encode_document,
    parse,
    read_tokens,
)

TAGS = TagMap.after(0x110000)


class Letters:
    """A tokenizer with one token a character."""

    def encode(self, text: str) -> list[int]:
        return [ord(char) for char in text]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(map(chr, ids))


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
PROMISES = st.tuples(st.sampled_from(["One", "Two words", "Über drei Wörter"]), st.integers(1, 999), TEXTS)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(TEXTS, PROMISES, st.booleans()), max_size=4), TEXTS)
def test_round_trips(parts: list[tuple[str, tuple[str, int, str], bool]], tail: str) -> None:
    """Guards against a loss between the forms, in either direction, and in the linear ids."""
    nodes: list[Text | Promise | Sync] = []
    for before, (topic, count, body), sync in parts:
        nodes += [Text(before), Promise(topic, count * 10, (Text(body),))]
        nodes += [Sync()] if sync else []
    document = Document((*nodes, Text(tail)))
    tokens = encode_document(document, Letters(), TAGS)
    assert decode_document(tokens, Letters(), TAGS) == document
    assert read_tokens(tokens.ids, Letters(), TAGS) == tokens


def test_exact_lengths_count_the_body_and_its_tags() -> None:
    """Guards against a length that leaves the two tags out: 8 + 2 is 10, 9 + 2 is rounded up to 20."""
    for body, want in (("x" * 8, 10), ("x" * 9, 20)):
        document = parse(f'<promise topic="t" tokens="500"/><async>{body}</async>')
        (node,) = encode_document(document, Letters(), TAGS, exact=True).nodes
        assert node.num_tokens == want


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
        ([P, T, ord("1"), PE, A, AE], 0),
    ],
)
def test_a_broken_token_form_is_refused_at_its_place(ids: list[int], index: int) -> None:
    """Guards against a body without end, a head without count, and tags out of order."""
    with pytest.raises(TokenFormError) as caught:
        read_tokens(ids, Letters(), TAGS)
    assert caught.value.index == index
