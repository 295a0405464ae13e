"""A whole annotation run: files in, documents out as they come, and a run that was cut off goes on.

What is dropped stands in a file beside the documents, so that no pair is done twice and the counts are of the whole.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from pasta_ray.engine.config import DEFAULT_MODEL, EngineConfig
from pasta_ray.engine.tokenizer import Tokenizer
from pasta_ray.engine.weights import resolve_model
from pasta_ray.errors import InputError
from pasta_ray.train.annotate import Counts, Line, Selection, annotate_pairs
from pasta_ray.train.annotators.base import AnnotatorConfig
from pasta_ray.train.jsonl import read_appended, to_line
from pasta_ray.train.pairs import Pair, read_pairs
from pasta_ray.train.pool import Pool, run_batches


@dataclass(frozen=True)
class AnnotationRun:
    """``model``: whose tokens lengths are counted in, and for ``independence`` whose likelihood decides."""

    answers: Sequence[Path]
    out: Path
    annotator: AnnotatorConfig
    model: str = DEFAULT_MODEL
    selection: Selection = field(default_factory=Selection)
    pool: Pool = field(default_factory=Pool)

    @property
    def dropped(self) -> Path:
        """Where dropped pairs are written, each with its reason."""
        return self.out.with_name(f"{self.out.stem}.dropped.jsonl")

    def run(self, progress: Callable[[int, int], None] | None = None) -> Counts:
        """Annotate what an earlier run has not. ``progress`` is told pairs done and in all, at the start and after each
        batch. Raises InputError for files that cannot be read or written; what is written by then is kept."""
        if {self.out.resolve(), self.dropped.resolve()} & {path.resolve() for path in self.answers}:
            raise InputError(f"--out {self.out}: is one of the answers' files, which it would overwrite")
        pairs = read_pairs(self.answers)
        counts, done = Counts(), set[str]()
        for line in self._earlier_lines():
            if line["id"] in done:
                raise InputError(f"{self.out}: id {line['id']!r} stands in it or in {self.dropped.name} twice")
            counts.add(line)
            done.add(line["id"])
        unknown = done - {pair.id for pair in pairs}
        if unknown:
            raise InputError(f"{self.out}: id {min(unknown)!r} is not in the answers; choose another file")
        todo = [pair for pair in pairs if pair.id not in done]
        tell = progress or (lambda *_: None)
        tell(len(done), len(pairs))
        for lines in self._annotate(todo):
            for line in lines:
                counts.add(line)
                done.add(line["id"])
            tell(len(done), len(pairs))
        return counts

    def _earlier_lines(self) -> Iterator[Line]:
        for path in (self.out, self.dropped):
            for line in read_appended(path):
                if line.get("annotator") != self.annotator.name:
                    by = line.get("annotator", "another program")
                    raise InputError(f"{path}: was written by {by!r}, not by {self.annotator.name!r}; choose another")
                yield line

    def _annotate(self, pairs: Sequence[Pair]) -> Iterator[list[Line]]:
        """Batches of lines that are in the files by the time they are given."""
        batch_size = self.annotator.batch_size
        with self._append(self.out) as documents, self._append(self.dropped) as dropped:
            for lines in run_batches(self.load, pairs, batch_size=batch_size, pool=self.pool):
                marked = [line | {"annotator": self.annotator.name} for line in lines]
                for file, chosen in (
                    (documents, [line for line in marked if "document" in line]),
                    (dropped, [line for line in marked if "reason" in line]),
                ):
                    file.write("".join(map(to_line, chosen)))
                    file.flush()
                yield marked

    def load(self) -> Callable[[Sequence[Pair]], list[Line]]:
        """What does a batch of the work: once a worker."""
        folder = resolve_model(EngineConfig(model=self.model))
        tokenizer = Tokenizer.load(folder, None)
        annotator = self.annotator.load(folder, tokenizer)
        return lambda pairs: annotate_pairs(pairs, annotator, lambda text: len(tokenizer.encode(text)), self.selection)

    def _append(self, path: Path) -> IO[str]:
        try:
            return path.open("a", encoding="utf-8")
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}") from error
