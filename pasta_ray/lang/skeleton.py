"""What Skeleton-of-Thought asks a model, and the points that it reads out of the answer.

The idea is Ning et al.'s (ICLR 2024, arXiv 2307.15337): a skeleton of short points first, then every point expanded by
itself. The wording is our own. Each request repeats the question first, so that prompts share their beginning.
"""

import re
from collections.abc import Sequence

from pasta_ray.lang.document import MAX_TOPIC_CHARS, MAX_TOPIC_WORDS, TOPIC_FORBIDDEN

Messages = Sequence[tuple[str, str]]
"""A chat as (role, content), the last of them the user's question."""

MIN_POINTS, MAX_POINTS = 3, 10
MAX_TITLE_WORDS = 12
SKELETON_START = "1."

_POINT = re.compile(r"\s*[*#]*\s*\d{1,3}[.)]\W*(\w.*)")
_DETAIL = re.compile(r"[:;]\s|\s[-–—]+\s")  # behind it a model explains its point, which is not the skeleton's part


def router_chat(messages: Messages) -> list[dict[str, str]]:
    """Asks whether the answer suits a skeleton; :func:`says_yes` reads the reply."""
    return _ask(
        messages,
        "Do not answer yet. Is this a question whose answer is a list of separate points, each of which can be written"
        " without knowing the others? Say only yes or no.",
    )


def says_yes(reply: str) -> bool:
    return reply.strip(" \n\"'*").lower().startswith("yes")


def skeleton_chat(messages: Messages) -> list[dict[str, str]]:
    """Asks for the skeleton. The reply goes on behind a given :data:`SKELETON_START`."""
    return _ask(
        messages,
        f"List only the main points of the answer, three to five words each, as a numbered list of {MIN_POINTS} to"
        f" {MAX_POINTS} points.",
    )


def expansion_chat(messages: Messages, points: Sequence[str], index: int) -> list[dict[str, str]]:
    """Asks for one point. The reply goes on behind a given :func:`expansion_start`."""
    outline = "\n".join(f"{number}. {title}" for number, title in enumerate(points, 1))
    return _ask(
        messages,
        f"The points of the answer are:\n{outline}\n\nExplain point {index + 1}, {points[index]}, in one or two"
        " sentences.",
    )


def expansion_start(points: Sequence[str], index: int) -> str:
    """What a point's expansion goes on behind; without its number, which makes small models go on to the next one."""
    return f"{points[index]}:"


def heading(points: Sequence[str], index: int) -> str:
    """What the reader sees before a point's expansion: its number and title, behind the paragraph before."""
    gap = "\n\n" if index else ""
    return f"{gap}{index + 1}. {points[index]}:"


def read_points(skeleton: str, *, whole: bool) -> list[str]:
    """The titles of a numbered list, of at most :data:`MAX_TITLE_WORDS` words each, every one once.

    Lines without a number are none. Unless the text is ``whole``, its last line may still grow and is left out.
    """
    lines = skeleton.split("\n")
    matches = [_POINT.match(line) for line in (lines if whole else lines[:-1])]
    titles = [_title(match.group(1)) for match in matches if match]
    return list(dict.fromkeys(title for title in titles if title))[:MAX_POINTS]


def topic_of(title: str, index: int) -> str:
    """The first words of a title that are fit for a promise's topic; never empty."""
    words = TOPIC_FORBIDDEN.sub(" ", title).split()[:MAX_TOPIC_WORDS]
    return " ".join(words)[:MAX_TOPIC_CHARS].rstrip() or f"point {index + 1}"


def _title(line: str) -> str:
    words = _DETAIL.split(line.replace("*", ""), maxsplit=1)[0].split()[:MAX_TITLE_WORDS]
    return " ".join(words).rstrip(" .:;,")


def _ask(messages: Messages, instruction: str) -> list[dict[str, str]]:
    *before, (role, question) = messages
    return [{"role": r, "content": c} for r, c in (*before, (role, f"{question}\n\n{instruction}"))]
