"""Stop strings in a text that comes in pieces."""

import random

import pytest

from pasta_ray.lang import StopText


def shown(stops: list[str], pieces: list[str]) -> tuple[str, str | None]:
    text = StopText(stops)
    return "".join([*map(text.add, pieces), text.finish()]), text.found


@pytest.mark.parametrize(
    ("stops", "text", "expected"),
    [
        (["\n"], "one\ntwo", ("one", "\n")),
        (["aab"], "aaab", ("a", "aab")),
        (["xabc", "ab"], "xabc", ("x", "ab")),
        (["c", "abc"], "abc", ("", "abc")),
        (["end"], "the en", ("the en", None)),
        ([], "text", ("text", None)),
        (["é", "日本"], "e日é", ("e日", "é")),
    ],
)
def test_every_split_gives_the_same_text(stops: list[str], text: str, expected: tuple[str, str | None]) -> None:
    """Guards against a stop string that is missed, or half shown, because it came in two pieces."""
    for cuts in range(2 ** (len(text) - 1)):
        pieces, start = [], 0
        for at in range(1, len(text)):
            if cuts >> (at - 1) & 1:
                pieces.append(text[start:at])
                start = at
        assert shown(stops, [*pieces, text[start:]]) == expected


def test_nothing_is_shown_that_a_stop_string_takes_back() -> None:
    """Guards random texts over two letters, where almost everything may be the start of a stop string."""
    rng = random.Random(5)
    for _ in range(2000):
        stops = ["".join(rng.choices("ab", k=rng.randint(1, 4))) for _ in range(rng.randint(1, 3))]
        pieces = ["".join(rng.choices("ab", k=rng.randint(0, 3))) for _ in range(5)]
        whole = "".join(pieces)
        text, found = shown(stops, pieces)
        ends = [whole.find(stop) + len(stop) for stop in stops if stop in whole]
        assert (found is None) == (not ends)
        assert whole.startswith(text + (found or ""))
        assert len(text + (found or "")) == min(ends, default=len(whole))


def test_only_what_may_be_the_start_of_a_stop_string_waits() -> None:
    """Guards the stream, which should not lag a whole stop string behind."""
    text = StopText(["\n\nUser:"])
    assert text.add("hello ") == "hello "
    assert text.add("you\n") == "you"
    assert text.add("\nU") == ""
    assert text.add("p") == "\n\nUp"
