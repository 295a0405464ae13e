"""What can be counted in an answer's text: length, repetition, whether it ends, what it takes from the question.

Shares are in [0, 1]. All of it is a function of the texts alone, and none of it knows what is true.
"""

import math
import re
from collections.abc import Sequence

from pasta_ray.train.annotate import repetition
from pasta_ray.train.judges.base import Answer, Question

RUN_WORDS = 3
ALIKE = 0.6  # lines that share this much of their words say the same
LONG_LINE_WORDS = 8  # a shorter last line may be a list's item, a title or a signature, which end without a full stop
LONGEST_WORDS = 200  # more words than that are no merit of their own

_WORD = re.compile(r"\w+")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")
_ITEM = re.compile(r"^\s*(?:[-*•+]|\d+[.)])\s+\S", re.MULTILINE)
_ITEM_MARK = re.compile(r"^\s*(?:[-*•+#]+|\d+[.)])\s*")
_ENDS = tuple(".!?:…\"'”’)]}*`|>")
_COMMON = frozenset(
    _WORD.findall(
        "a an and are as at be but by can could do does for from give had has have how i if in into is it its list make"
        " me my no not of on or our please should so some tell than that the their them then there these they this to"
        " use was we were what when where which who why will with would write you your following given sentence"
    )
)


def text_features(question: Question, answer: Answer) -> dict[str, float]:
    """Named numbers; equal texts give equal numbers. ``log_length`` does not grow with what an answer repeats."""
    answer_words, question_words = words(answer.text), words(question.text)
    return {
        "log_length": math.log1p(min(num_new(answer_words), LONGEST_WORDS)),
        "empty": float(not answer_words),
        "repeated_runs": repetition(answer.text),
        "repeated_sentences": repeated_share(sentences(answer.text)),
        "alike_lines": alike_lines(answer.text),
        "cut": float(is_cut(answer)),
        "overlap": overlap(question_words, answer_words),
        "copied": copied(question_words, answer_words),
        "has_list": float(len(_ITEM.findall(answer.text)) >= 2),
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


def alike_lines(text: str) -> float:
    """Share of lines that have nearly the words of an earlier one: Jaccard index of ALIKE or more."""
    lines = [set(words(_ITEM_MARK.sub("", line))) for line in text.split("\n")]
    lines = [line for line in lines if len(line) >= 2]
    alike = sum(any(jaccard(line, earlier) >= ALIKE for earlier in lines[:i]) for i, line in enumerate(lines))
    return alike / len(lines) if lines else 0.0


def jaccard(some: set[str], others: set[str]) -> float:
    """Of sets that are not both empty."""
    return len(some & others) / len(some | others)


def is_cut(answer: Answer) -> bool:
    """Whether the answer breaks off: a length limit cut it, or its last line is long and ends without punctuation."""
    if not answer.finished:
        return True
    text = answer.text.rstrip()
    return len(words(text.rsplit("\n", 1)[-1])) >= LONG_LINE_WORDS and not text.endswith(_ENDS)


def overlap(question_words: Sequence[str], answer_words: Sequence[str]) -> float:
    """Share of the question's words, common ones left out, that the answer takes up."""
    asked = set(question_words) - _COMMON
    return len(asked & set(answer_words)) / len(asked) if asked else 0.0


def copied(question_words: Sequence[str], answer_words: Sequence[str]) -> float:
    """Share of the answer's runs of words that stand in the question."""
    own, given = runs(answer_words), set(runs(question_words))
    return sum(run in given for run in own) / len(own) if own else 0.0
