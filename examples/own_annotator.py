"""An annotator of one's own: in lists of questions and answers every answer (``A: …``) becomes a body.

python examples/own_annotator.py answers.jsonl documents.jsonl

Installed as an entry point of the group ``pasta_ray.annotators`` it is a name for ``pasta-ray annotate --annotator``
(docs/extending.md).
"""

import argparse
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from pasta_ray.train.annotation_run import AnnotationRun
from pasta_ray.train.annotators.base import Annotation
from pasta_ray.train.annotators.splits import build_document
from pasta_ray.train.data import ChatTokenizer
from pasta_ray.train.pairs import Pair

REPLY = re.compile(r"^A:(.+?)(?=\n\n|\Z)", re.MULTILINE | re.DOTALL)


class FaqAnnotator:
    """One annotation a pair, in order: a document, or the reason why there is none."""

    def __init__(self, count_tokens: Callable[[str], int]) -> None:
        self._count_tokens = count_tokens

    def annotate(self, pairs: Sequence[Pair]) -> list[Annotation]:
        return [self._annotate(pair.output) for pair in pairs]

    def _annotate(self, answer: str) -> Annotation:
        spans = tuple(match.span(1) for match in REPLY.finditer(answer))
        if len(spans) < 2:
            return Annotation(reason="no questions and answers")
        return Annotation(build_document(answer, [spans], self._count_tokens))


@dataclass(frozen=True)
class Faq:
    """Small and picklable, since it travels to workers; each of them calls ``load`` once."""

    batch_size: int = 64
    name: ClassVar[str] = "faq"

    def load(self, _model: Path, tokenizer: ChatTokenizer) -> FaqAnnotator:
        return FaqAnnotator(lambda text: len(tokenizer.encode(text)))


def main(args: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("answers", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="smollm2-135m-instruct", help="whose tokens lengths are counted in")
    options = parser.parse_args(args)
    run = AnnotationRun([options.answers], options.out, Faq(), options.model)
    counts = run.run()
    print(f"{counts.num_documents} documents with {counts.num_promises} promises; dropped: {dict(counts.dropped)}")


if __name__ == "__main__":
    main()
