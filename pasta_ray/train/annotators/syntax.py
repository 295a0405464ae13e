"""The ``syntax`` annotator: an answer's own structure (sections, list items, paragraphs) says where it splits.

What APAR does (arXiv 2401.06761). It looks at form only; whether the parts are truly independent it does not know.
The outermost structure wins: a section keeps its lists, an item its sub-items, because bodies hold no promises.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from pasta_ray.errors import InputError
from pasta_ray.lang import Document, Text
from pasta_ray.train.annotators.base import Annotation, CountTokens
from pasta_ray.train.annotators.splits import Level, build_document, find_groups, pays
from pasta_ray.train.data import ChatTokenizer
from pasta_ray.train.pairs import Pair

LEVELS: tuple[Level, ...] = ("section", "list", "paragraph")


@dataclass(frozen=True)
class SyntaxConfig:
    """``levels``: where it may split."""

    levels: Sequence[Level] = LEVELS
    batch_size: int = 256
    name: ClassVar[str] = "syntax"

    def __post_init__(self) -> None:
        if not set(self.levels) <= set(LEVELS):
            raise InputError(f"levels are {', '.join(self.levels)}; `syntax` allows: {', '.join(LEVELS)}")

    def load(self, _model: Path, tokenizer: ChatTokenizer) -> "SyntaxAnnotator":
        return SyntaxAnnotator(lambda text: len(tokenizer.encode(text)), self.levels)


class SyntaxAnnotator:
    def __init__(self, count_tokens: CountTokens, levels: Sequence[Level] = LEVELS) -> None:
        self._count_tokens = count_tokens
        self._levels = levels

    def annotate(self, pairs: Sequence[Pair]) -> list[Annotation]:
        return [Annotation(annotate(pair.output, self._count_tokens, self._levels)) for pair in pairs]


def annotate(answer: str, count_tokens: CountTokens, levels: Sequence[Level] = LEVELS) -> Document:
    """The document of ``answer``; ``document.text() == answer``. Where splitting would gain nothing, it has no promise.

    ``count_tokens`` is the length of a text in the model's tokens.
    """
    for level in LEVELS:
        if level not in levels:
            continue
        groups = [group for group in find_groups(answer, level) if pays(answer, group, count_tokens)]
        if groups:
            return build_document(answer, groups, count_tokens)
    return Document((Text(answer),))
