"""The parser: events, errors with their places, and the same events for every split."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pasta_ray.lang import PRED_1X, Document, Parser, PastaSyntaxError, Promise, Sync, Text, parse
from pasta_ray.lang.lexer import MAX_TAG_CHARS
from pasta_ray.lang.parser import Event, TextRead

PIECES = [
    '<promise topic="a b" tokens="20"/>',
    '<promise topic="x" tokens="15"/>',
    "<async>",
    "</async>",
    "<sync/>",
    "<sync",
    "</",
    "<",
    ">",
    "/",
    "\\",
    "\\\\",
    "promise",
    ' topic="',
    '"',
    "tokens=",
    "10",
    " ",
    "\n",
    "é",
    "word",
]


def events_of(pieces: list[str]) -> list[Event | str]:
    """Events with neighbouring texts made one, and the error's text where there is one."""
    parser = Parser()
    events: list[Event | str] = []
    try:
        for piece in pieces:
            for event in parser.feed(piece):
                _add(events, event)
        for event in parser.close():
            _add(events, event)
    except PastaSyntaxError as error:
        events.append(str(error))
    return events


def _add(events: list[Event | str], event: Event) -> None:
    last = events[-1] if events else None
    if isinstance(event, TextRead) and isinstance(last, TextRead):
        events[-1] = TextRead(last.text + event.text)
    else:
        events.append(event)


def random_input(rng: random.Random) -> str:
    return "".join(rng.choice(PIECES) for _ in range(rng.randint(0, 14)))


@settings(max_examples=400, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=14).map("".join), st.randoms(use_true_random=False))
def test_any_split_gives_the_same_events(text: str, rng: random.Random) -> None:
    """Guards against a decision taken before the characters that decide it have arrived."""
    cuts = sorted(rng.sample(range(len(text) + 1), min(len(text), 5)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert events_of([text]) == events_of(pieces) == events_of(list(text))


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60), st.randoms(use_true_random=False))
def test_any_text_at_all_splits_alike(text: str, rng: random.Random) -> None:
    """Guards against characters outside the tags' own alphabet being mishandled at a split."""
    cut = rng.randint(0, len(text))
    assert events_of([text]) == events_of([text[:cut], text[cut:]])


def test_100_000_random_inputs_neither_crash_nor_hang() -> None:
    """Guards against an exception that is no PastaSyntaxError, and against documents that do not come back."""
    rng = random.Random(20260101)
    num_documents = 0
    for _ in range(100_000):
        text = random_input(rng)
        try:
            document = parse(text)
        except PastaSyntaxError:
            continue
        num_documents += bool(document.promises)
        assert parse(document.linear()) == document
    assert num_documents > 20


@pytest.mark.parametrize(
    ("text", "line", "column", "expected"),
    [
        ("a\nb<sync/>", 2, 2, "open promise"),
        ('<promise topic="a b c d" tokens="10"/>', 1, 17, "one to 3 words"),
        ('<promise topic="" tokens="10"/>', 1, 17, "one to 3 words"),
        ('<promise topic="a" tokens="15"/>', 1, 28, "multiple of 10"),
        ('<promise topic="a" tokens="0"/>', 1, 28, "multiple of 10"),
        ('<promise topic="a" tokens="10">', 1, 31, "/>"),
        ("<promise topic=a/>", 1, 9, 'topic="'),
        ('<promise topic="a" tokens="10"/> <async>', 1, 33, "<async> right behind"),
        ('<promise topic="a" tokens="10"/><async><sync/>', 1, 40, "version 1"),
        ('<promise topic="a" tokens="10"/><async><promise topic="b" tokens="10"/>', 1, 40, "version 1"),
        ("<async>", 1, 1, "<promise"),
        ('<promise topic="a" tokens="10"/><async>abc', 1, 43, "</async>"),
        ("x\n\n </promise>", 3, 2, "<promise …/>, <async>"),
        ("<sync " + "x" * 300, 1, 1, f"{MAX_TAG_CHARS}"),
    ],
)
def test_errors_name_the_place_and_what_may_stand_there(text: str, line: int, column: int, expected: str) -> None:
    """Guards against an error that sends its reader to the wrong place."""
    with pytest.raises(PastaSyntaxError) as caught:
        parse(text)
    assert (caught.value.line, caught.value.column) == (line, column)
    assert expected in caught.value.expected
    assert str(caught.value).startswith(f"line {line}, column {column}: found ")


def test_exact_lengths_are_text_of_their_own_strategy() -> None:
    """Guards Pred-10X against lengths that it cannot carry, and Pred-1X against the rule of the other."""
    text = 'a<promise topic="t" tokens="37"/><async>b</async>'
    document = parse(text, PRED_1X)
    assert document.linear() == text
    assert document.promises[0].num_tokens == 37
    with pytest.raises(PastaSyntaxError, match=r"column 29: found tokens 37; expected a multiple of 10, 10 to 9990"):
        parse(text)
    with pytest.raises(PastaSyntaxError, match=r"column 29: found tokens 0; expected 1 to 9990"):
        parse(text.replace("37", "0"), PRED_1X)


def test_events_before_an_error_are_not_lost() -> None:
    """Guards against an error that swallows the text before it, in one piece or in many."""
    assert events_of(["before<sync/>"])[0] == TextRead("before")


def test_a_parser_stays_broken_after_an_error() -> None:
    """Guards against half a document being taken for a whole one."""
    parser = Parser()
    with pytest.raises(PastaSyntaxError):
        list(parser.feed("<sync/>"))
    with pytest.raises(PastaSyntaxError, match="column 1"):
        list(parser.close())


def test_buffers_are_bounded() -> None:
    """Guards against a tag that never ends being kept whole."""
    parser = Parser()
    for char in "<promise ".ljust(MAX_TAG_CHARS - 1, "x"):
        assert list(parser.feed(char)) == []
    with pytest.raises(PastaSyntaxError, match="without end"):
        list(parser.feed("x"))


def test_a_million_backslashes_take_linear_time_and_come_back() -> None:
    """Guards against runs of backslashes being scanned again with every piece."""
    parser = Parser()
    for _ in range(1000):
        assert list(parser.feed("\\" * 1000)) == []
    (event,) = parser.close()
    assert isinstance(event, TextRead)
    assert len(event.text) == 1_000_000


def test_the_tree_of_a_document() -> None:
    """Guards against nodes out of order or text in the wrong branch."""
    document = parse('Hi.\n1.<promise topic="One two" tokens="30"/><async> first</async>\n<sync/>End')
    assert document.nodes == (
        Text("Hi.\n1."),
        Promise("One two", 30, (Text(" first"),)),
        Text("\n"),
        Sync(),
        Text("End"),
    )
    assert document == Document(document.nodes)
