"""Whether training prompts overlap evaluation prompts: word 8-grams in common, as in GPT-3's check (arXiv 2005.14165).

Sets of n-grams are kept as 64-bit hashes, so that a check needs neither text.
"""

import re
from collections.abc import Iterable
from hashlib import blake2b

NUM_WORDS = 8
_WORD = re.compile(r"\w+")


def gram_hashes(text: str) -> set[int]:
    """Of a text's runs of eight words, case and punctuation aside; of all its words where it has fewer."""
    words = _WORD.findall(text.lower())
    starts = range(max(1, len(words) - NUM_WORDS + 1)) if words else ()
    return {_hash(" ".join(words[start : start + NUM_WORDS])) for start in starts}


def all_gram_hashes(texts: Iterable[str]) -> set[int]:
    return set().union(*map(gram_hashes, texts))


def overlapping(texts: Iterable[str], others: set[int]) -> list[int]:
    """Indices of the texts that share a run of words with ``others``."""
    return [index for index, text in enumerate(texts) if gram_hashes(text) & others]


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest())
