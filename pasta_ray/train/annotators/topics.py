"""What a promise says its body is about: up to three words of the body itself."""

import re
from collections.abc import Callable, Sequence

from pasta_ray.lang import Document
from pasta_ray.lang.document import MAX_TOPIC_WORDS, check_topic

Namer = Callable[[Sequence[str]], list[str]]  # bodies that are open side by side, to one topic each

HEADING = re.compile(r"^(?:#{1,6} +\S.*|\*\*[^*\n]+\*\*:?|__[^_\n]+__:?) *$")
_TITLE = re.compile(
    r"^\s*(?:#{1,6} +)?(?:\d+[.)] +)?(?:\*\*|__)?(?P<title>[^:*_\n]{2,60}?)(?:\*\*:?|__:?|:)(?=\s|\*|$)"
)
_WORD = re.compile(r"[^\W_](?:[\w'’./&+-]*[^\W_])?")
_NUMBERED = re.compile(r"\s*\W*\d+[.)]")
_STOP_WORDS = """
a an the of to in on for and or with your you is are be it its this that by as at from if
"""
# Words that often open a sentence and say nothing of what it is about.
_OPENERS = """
he she they we i his her their our my these those there here one some many most all both each such another other was
were has have had can could will would may might should must do does did been being not no but so yet also however
therefore moreover furthermore additionally then thus hence finally first second third firstly secondly lastly next when
while where who which what how why because since although though after before during until over under into about through
between than more less very just only even still overall addition example instance them him us me
"""
_NOT_AT_THE_ENDS = frozenset(_STOP_WORDS.split())
_WITHOUT_MEANING = _NOT_AT_THE_ENDS | frozenset(_OPENERS.split())


def topic_of(body: str, number: int) -> str:
    """Up to three words that say what a body is about: of its title if it has one, else of its first line."""
    first_line = _first_line(body)
    title = _TITLE.match(first_line)
    heading = first_line if HEADING.match(first_line) else None
    words = _WORD.findall(title["title"] if title else heading or first_line)
    while len(words) > 1 and words[0].lower() in _NOT_AT_THE_ENDS:
        words = words[1:]
    words = words[:MAX_TOPIC_WORDS]
    while len(words) > 1 and words[-1].lower() in _NOT_AT_THE_ENDS:
        words = words[:-1]
    return _fit(" ".join(words), number)


def first_words(bodies: Sequence[str]) -> list[str]:
    """For parts that open with what they are about: items and sections."""
    return [topic_of(body, i) for i, body in enumerate(bodies, 1)]


def key_words(bodies: Sequence[str]) -> list[str]:
    """For prose: a title where there is one, else the first words of some meaning, no two topics starting alike."""
    topics: list[str] = []
    taken: set[str] = set()
    for number, body in enumerate(bodies, 1):
        line = _first_line(body)
        if HEADING.match(line) or _TITLE.match(line):
            topics.append(topic_of(body, number))
        else:
            words = [w for w in _WORD.findall(line) if w.lower() not in _WITHOUT_MEANING and not w[0].isdigit()]
            while words and words[0].lower() in taken:
                words = words[1:]
            topics.append(_fit(" ".join(words[:MAX_TOPIC_WORDS]), number))
        taken.add(topics[-1].split()[0].lower())
    return topics


def topic_fault(document: Document) -> str | None:
    """Why a small model should not learn from a document's topics, if it should not. Topics repeat where two are
    equal, or half of them begin with words that others begin with."""
    topics = [promise.topic.lower() for promise in document.promises]
    if any(promise.topic[0].isdigit() or _NUMBERED.match(promise.text()) for promise in document.promises):
        return "numbered twice"  # "1. 1. First": a model that learns it counts for ever
    if len(set(topics)) < len(topics) or 2 * len({topic.split()[0] for topic in topics}) <= len(topics) > 1:
        return "repeats a topic"
    return None


def _first_line(body: str) -> str:
    return next((line for line in body.split("\n") if line.strip()), "")


def _fit(topic: str, number: int) -> str:
    return topic if topic and not check_topic(topic) else f"Part {number}"
