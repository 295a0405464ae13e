"""What can be counted in an answer's text: length, repetition, whether it ends, what it takes from the question.

Shares are in [0, 1]. All of it is a function of the texts alone, and none of it knows what is true.
"""

import math
import re
from collections.abc import Sequence

from pasta_ray.train.annotate import repetition
from pasta_ray.train.judges.base import Answer, Question

RUN_WORDS = 3
LONGEST_WORDS = 200  # more words than that are no merit of their own

_WORD = re.compile(r"\w+")
_SENTENCE_END = re.compile(r"""(?<=[.!?])["'”’)\]*_`]*\s+|\n+""")
_ITEM_MARK = re.compile(r"^\s*(?:[-*•+#]+|\d+[.)])\s*")


def text_features(question: Question, answer: Answer) -> dict[str, float]:
    """Named numbers; equal texts give equal numbers.

    ``log_length`` is the logarithm of the number of words, and does not grow with what an answer repeats.
    ``repetition`` is the larger of the shares of sentences and of runs of six words that stood there before, ``copied``
    the share of the answer's runs of three words that stand in the question, and ``cut`` whether a limit ended it.
    """
    answer_words = words(answer.text)
    return {
        "log_length": math.log1p(min(num_new(answer_words), LONGEST_WORDS)),
        "empty": float(not answer_words),
        "repetition": max(repetition(answer.text), repeated_share(sentences(answer.text))),
        "copied": copied(words(question.text), answer_words),
        "cut": float(not answer.finished),
    }


def words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def longer(first: str, second: str) -> float:
    """1 where the first text has more words, 0 where the second has, one half for as many."""
    difference = len(words(first)) - len(words(second))
    return 0.5 if difference == 0 else float(difference > 0)


def runs(items: Sequence[str]) -> list[tuple[str, ...]]:
    """All runs of RUN_WORDS words."""
    return [tuple(items[i : i + RUN_WORDS]) for i in range(len(items) - RUN_WORDS + 1)]


def num_new(items: Sequence[str]) -> int:
    """Words, those left out that end a run that was there before."""
    own = runs(items)
    return len(items) - (len(own) - len(set(own)))


def repeated_share(items: Sequence[object]) -> float:
    """Share of items that have stood there before; 0 for none."""
    return 1 - len(set(items)) / len(items) if items else 0.0


def sentences(text: str) -> list[str]:
    """Sentences and lines of three words or more, without list marks and markup, in lower case."""
    parts = (" ".join(words(_ITEM_MARK.sub("", part))) for part in _SENTENCE_END.split(text))
    return [part for part in parts if part.count(" ") >= 2]


def copied(question_words: Sequence[str], answer_words: Sequence[str]) -> float:
    """Share of the answer's runs of words that stand in the question."""
    own, given = runs(answer_words), set(runs(question_words))
    return sum(run in given for run in own) / len(own) if own else 0.0
