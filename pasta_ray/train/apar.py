"""Documents of the ``syntax`` annotator as APAR's threads: what an item says first stays, its details fork."""

import re

from pasta_ray.lang import Document, Promise, Text, Thread
from pasta_ray.lang.tokens import TextTokenizer

MIN_DETAIL_WORDS = 6
_LEAD = re.compile(
    r"\s*(?:#{1,6} [^\n]*\n+|\*\*[^*\n]+\*\*:?\s|__[^_\n]+__:?\s|[^:.!?\n]{2,60}:\s|[^\n]*?[.!?][*_\"')]*\s)"
)


def split_details(body: str) -> tuple[str, str]:
    """A body's lead (its heading, its title, or else its first sentence) and the rest, which is empty where it is too
    short to be worth a thread. ``lead + rest == body``."""
    match = _LEAD.match(body)
    end = len(match[0].rstrip()) if match else len(body)
    if len(body[end:].split()) < MIN_DETAIL_WORDS:
        return body, ""
    return body[:end], body[end:]


def to_thread(document: Document, tokenizer: TextTokenizer, end_id: int) -> Thread:
    """The main thread of a document: each promise's lead in its place, its details forked there; syncs are dropped,
    for APAR never joins. Arguments: ``end_id`` ends every thread."""
    parts: list[int | Thread] = []
    text = ""
    for node in document.nodes:
        if isinstance(node, Text):
            text += node.text
        elif isinstance(node, Promise):
            lead, details = split_details(node.text())
            text += lead
            if details:
                parts += [*tokenizer.encode(text), Thread((*tokenizer.encode(details), end_id))]
                text = ""
    return Thread((*parts, *tokenizer.encode(text), end_id))
