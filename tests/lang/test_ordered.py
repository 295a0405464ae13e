"""Document order from branches that grow at the same time."""

import random

import pytest

from pasta_ray.lang import OrderedText
from pasta_ray.lang.ordered import UnknownBranchError


def test_the_first_open_body_streams_and_the_rest_waits() -> None:
    """Guards against text out of order, and against waiting where nothing has to."""
    ordered = OrderedText()
    assert ordered.delta("0", "intro ") == "intro "
    ordered.promise("0.1", "0")
    assert ordered.delta("0", "between ") == ""
    ordered.promise("0.2", "0")
    assert ordered.delta("0.2", "second ") == ""
    assert ordered.delta("0.1", "first ") == "first "
    assert ordered.close("0.1") == "between second "
    assert ordered.delta("0.2", "more ") == "more "
    assert ordered.close("0.2") == ""
    assert ordered.delta("0", "end") == "end"
    assert ordered.finish() == ""


def test_any_interleaving_gives_the_same_text() -> None:
    """Guards against an order of arrival that shows."""
    rng = random.Random(3)
    for _ in range(300):
        ordered, shown = OrderedText(), ""
        words = {"0": [f"m{i} " for i in range(4)], "0.1": ["a ", "b "], "0.2": ["c ", "d ", "e "]}
        shown += ordered.delta("0", words["0"].pop(0))
        ordered.promise("0.1", "0")
        shown += ordered.delta("0", words["0"].pop(0))
        ordered.promise("0.2", "0")
        while any(words.values()):
            branch = rng.choice([name for name in words if words[name]])
            shown += ordered.delta(branch, words[branch].pop(0))
            if not words[branch] and branch != "0":
                shown += ordered.close(branch)
        assert shown + ordered.finish() == "m0 a b m1 c d e m2 m3 "


def test_bodies_in_bodies_stand_in_tree_order() -> None:
    """Guards forks of forks: any tree, grown in any order, reads as each branch's text with its children in place."""
    rng = random.Random(5)
    for _ in range(300):
        ordered, shown = OrderedText(), ""
        parts: dict[str, list[str]] = {"0": []}  # words, and names of children
        growing = ["0"]
        for number in range(30):
            branch = rng.choice(growing)
            kind = rng.choice(("word", "word", "fork", "close"))
            if kind == "fork":
                child = f"{branch}.{sum(part in parts for part in parts[branch]) + 1}"
                ordered.promise(child, branch)
                parts[branch].append(child)
                parts[child] = []
                growing.append(child)
            elif kind == "close" and branch != "0":
                growing.remove(branch)
                shown += ordered.close(branch)
            else:
                parts[branch].append(f"w{number} ")
                shown += ordered.delta(branch, f"w{number} ")

        def flat(name: str, parts: dict[str, list[str]] = parts) -> str:
            return "".join(flat(part, parts) if part in parts else part for part in parts[name])

        assert flat("0").startswith(shown)
        assert shown + ordered.finish() == flat("0")


def test_an_answer_that_is_cut_off_still_shows_all_it_has() -> None:
    """Guards against text that is lost when an answer ends with open bodies."""
    ordered = OrderedText()
    ordered.promise("0.1", "0")
    ordered.promise("0.2", "0")
    ordered.delta("0.2", "two")
    assert ordered.delta("0.1", "one ") == "one "
    assert ordered.finish() == "two"


def test_unknown_branches_are_refused() -> None:
    """Guards against text of a closed branch being dropped in silence."""
    ordered = OrderedText()
    ordered.promise("0.1", "0")
    ordered.close("0.1")
    with pytest.raises(UnknownBranchError, match=r"0\.1"):
        ordered.delta("0.1", "late")
