"""What every annotator is: pairs in, for each a document or the reason why there is none."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

from pasta_ray.lang import Document
from pasta_ray.train.data import ChatTokenizer
from pasta_ray.train.endpoint import Usage
from pasta_ray.train.pairs import Pair

CountTokens = Callable[[str], int]


@dataclass(frozen=True)
class Annotation:
    """A pair's document, or ``reason`` (equal for equal causes, to be counted) and ``detail`` why it is dropped.
    ``usage``: what an endpoint was asked for it."""

    document: Document | None = None
    reason: str = ""
    detail: str = ""
    usage: Usage | None = None

    def __post_init__(self) -> None:
        assert (self.document is None) == bool(self.reason), "a document or a reason"


class Annotator(Protocol):
    def annotate(self, pairs: Sequence[Pair]) -> list[Annotation]:
        """One annotation a pair, in order. ``pair.output`` is what a document's ``text()`` has to be."""


class AnnotatorConfig(Protocol):
    """What makes an annotator in each worker. ``batch_size``: how many pairs it likes to see at a time."""

    name: ClassVar[str]

    @property
    def batch_size(self) -> int: ...

    def load(self, model: Path, tokenizer: ChatTokenizer, /) -> Annotator:
        """``model`` is the folder of the model whose tokenizer that is."""
