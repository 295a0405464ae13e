"""Skeletons: points out of whatever a model writes, and topics that a document takes."""

import random

import pytest

from pasta_ray.lang.document import check_topic
from pasta_ray.lang.skeleton import (
    MAX_POINTS,
    MAX_TITLE_WORDS,
    expansion_chat,
    heading,
    read_points,
    says_yes,
    skeleton_chat,
    topic_of,
)


@pytest.mark.parametrize(
    ("skeleton", "points"),
    [
        ("1. Better sleep\n2. More energy.\n", ["Better sleep", "More energy"]),
        ("1) **Better sleep**: you rest\n\n  2. *Mood* - it lifts\n", ["Better sleep", "Mood"]),
        ("Sure! Here it is:\n1. Cost\nAnd that is all.", ["Cost"]),
        ("1. Cost\n2. Cost\n3. Time", ["Cost", "Time"]),
        ("1. Well-being at 10:30\n", ["Well-being at 10:30"]),
        ("1.\n2. ...\n3.   \n", []),
        ("No list at all.", []),
        ("", []),
    ],
)
def test_points(skeleton: str, points: list[str]) -> None:
    """Guards against points lost, said twice, or headed by markup and explanations."""
    assert read_points(skeleton, whole=True) == points


def test_points_that_may_still_grow() -> None:
    """Guards against a title that is cut off because the model was still writing it."""
    assert read_points("1. Better sleep\n2. More en", whole=False) == ["Better sleep"]
    assert read_points("1. Better sleep\n2. More energy\n", whole=False) == ["Better sleep", "More energy"]


def test_points_are_bounded() -> None:
    """Guards against a model that writes points, or words, without end."""
    points = read_points("".join(f"{n}. " + f"word{n} " * 50 + "\n" for n in range(1, 100)), whole=True)
    assert len(points) == MAX_POINTS
    assert all(len(point.split()) == MAX_TITLE_WORDS for point in points)


def test_any_title_gives_a_topic() -> None:
    """Guards the document: a topic that the grammar refuses would lose the whole answer."""
    rng = random.Random(2)
    for _ in range(3000):
        title = "".join(rng.choices('ab c"<>\\\n\t\u00a0\u2028\x85é' + "x" * 3, k=rng.randint(0, 90)))
        assert check_topic(topic_of(title, 4)) is None
    assert topic_of("Better sleep at night", 0) == "Better sleep at"
    assert topic_of('"<>', 4) == "point 5"


def test_chats_keep_the_conversation_and_share_their_beginning() -> None:
    """Guards against a question without its history, and against prompts whose common prefix is short."""
    messages = [("system", "be kind"), ("user", "What is rest?")]
    points = ["Sleep", "Leisure"]
    first, second = (expansion_chat(messages, points, index) for index in (0, 1))
    for chat in (first, second, skeleton_chat(messages)):
        assert chat[0] == {"role": "system", "content": "be kind"}
        assert chat[1]["content"].startswith("What is rest?\n\n")
    shared = first[1]["content"].index("point 1")
    assert first[1]["content"][:shared] == second[1]["content"][:shared]
    assert all(point in first[1]["content"][:shared] for point in points)
    assert (heading(points, 0), heading(points, 1)) == ("1. Sleep:", "\n\n2. Leisure:")


def test_the_routers_reply() -> None:
    """Guards against a no that is read as a yes."""
    assert all(map(says_yes, ("Yes", " yes.", "**Yes**, it is")))
    assert not any(map(says_yes, ("No", "", "Not yes", "I say yes")))
