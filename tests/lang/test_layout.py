"""The layout against its rule, written out by hand, and against an independent statement of it."""

from hypothesis import given, settings
from hypothesis import strategies as st

from pasta_ray.lang import Layout, PositionStrategy, TokenDocument, TokenPromise, TokenSync, TokenText, layout

PROMISE, TOKENS, PROMISE_END, ASYNC, ASYNC_END, SYNC = range(100, 106)


def promise(num_content: int, num_tokens: int) -> TokenPromise:
    head = (PROMISE, 1, TOKENS, num_tokens // 10, PROMISE_END)
    return TokenPromise(head, num_tokens, (ASYNC, *range(num_content), ASYNC_END))


def test_a_document_by_hand() -> None:
    """Guards positions, visibility and labels at each place where a rule says something of its own."""
    document = TokenDocument(
        (TokenText((7,)), promise(2, 10), promise(1, 20), TokenText((8,)), TokenSync(SYNC), TokenText((9,)))
    )
    got = layout(document, (50, 51))
    # 0-1 prompt, 2 text, 3-7 promise, 8-11 body, 12-16 promise, 17-19 body, 20 text, 21 sync, 22 text
    assert got.positions == (
        *(0, 1, 2, 3, 4, 5, 6, 7),
        *(8, 9, 10, 11),  # p = 7: the body starts at 8 ...
        *(18, 19, 20, 21, 22),  # ... and the main branch goes on at 7 + 1 + 10
        *(23, 24, 25),
        *(43, 44, 45),
    )
    assert got.visible[7] == ((0, 8),)
    assert got.visible[10] == ((0, 11),)
    assert got.visible[12] == ((0, 8), (12, 13))
    assert got.visible[18] == ((0, 8), (12, 19)), "the second body does not see the first"
    assert got.visible[20] == ((0, 8), (12, 17), (20, 21)), "before the sync no body is seen"
    assert got.visible[21] == ((0, 22),), "the sync itself sees every body"
    assert got.label_source[:3] == (None, None, 1)
    assert got.label_source[8:12] == (None, 8, 9, 10), "<|async|> is forced; its first content comes from it"
    assert got.label_source[12] == 7, "the main branch skips the body"
    assert got.label_source[20:] == (16, 20, 21)


def test_a_fixed_gap_is_no_matter_of_the_length() -> None:
    """Guards the fixed strategy: the main branch goes on at p + 1 + gap whatever is predicted and written."""
    positions = PositionStrategy.named("fixed-5")
    for num_content, num_tokens in ((1, 10), (9, 30)):
        body = (ASYNC, *range(num_content), ASYNC_END)
        document = TokenDocument((TokenPromise((PROMISE, PROMISE_END), num_tokens, body, positions), TokenText((9,))))
        assert layout(document).positions == (0, 1, *range(2, 2 + len(body)), 7)


NODES = st.lists(
    st.one_of(
        st.integers(1, 3).map(lambda n: TokenText(tuple(range(n)))),
        st.tuples(st.integers(0, 4), st.integers(1, 4)).map(lambda p: promise(p[0], p[1] * 10)),
        st.just(TokenSync(SYNC)),
    ),
    max_size=8,
)


def naive_visible(document: TokenDocument, prompt_len: int) -> list[set[int]]:
    """Visibility, rule by rule: for each token the set of tokens that it sees."""
    main, joined, waiting = list(range(prompt_len)), set[int](), set[int]()
    visible = [set(range(i + 1)) for i in range(prompt_len)]
    at = prompt_len
    for node in document.nodes:
        own: tuple[int, ...] = node.head if isinstance(node, TokenPromise) else ()
        own = node.ids if isinstance(node, TokenText) else (node.id,) if isinstance(node, TokenSync) else own
        if isinstance(node, TokenSync):
            joined |= waiting
            waiting = set()
        for _ in own:
            main.append(at)
            visible.append(set(main) | joined)
            at += 1
        if isinstance(node, TokenPromise):
            body = range(at, at + len(node.body))
            visible += [set(main) | joined | set(range(at, i + 1)) for i in body]
            waiting |= set(body)
            at += len(node.body)
    return visible


@settings(max_examples=300, deadline=None)
@given(NODES, st.integers(0, 3))
def test_visibility_equals_the_rule_stated_naively(nodes: list[TokenText], prompt_len: int) -> None:
    """Guards against ranges that are merged, split or joined wrongly."""
    document = TokenDocument(tuple(nodes))
    got: Layout = layout(document, [0] * prompt_len)
    want = naive_visible(document, prompt_len)
    assert len(got.ids) == len(got.positions) == len(got.label_source) == len(want)
    for i, seen in enumerate(want):
        assert {j for start, end in got.visible[i] for j in range(start, end)} == seen
        source = got.label_source[i]
        assert source is None or source in seen
