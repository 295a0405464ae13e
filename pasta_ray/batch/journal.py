"""The answers of a run as they come, in a file that survives a kill at any moment.

A line is an answer, written whole by the one process that holds the lock. What a kill has cut off is no line and is
removed, so its row is answered again: every row has one answer, however often the run had to be started.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from pasta_ray.batch.parquet import write_parquet
from pasta_ray.batch.rows import PARQUET
from pasta_ray.errors import InputError


class Journal:
    """JSON lines at ``path``, or, for a name in .parquet, beside it until every row has its answer.

    ``done`` holds the ids of the answered rows by their numbers, ``num_errors`` says how many of these are faults.
    Raises InputError for a file that holds something else.
    """

    def __init__(self, path: Path) -> None:
        self.out = path
        self.path = path.with_name(f"{path.name}.partial.jsonl") if path.suffix == PARQUET else path
        self.done: dict[int, str | None] = {}
        self.num_errors = 0
        if self.out.exists() and self.out != self.path:
            raise InputError(f"{self.out}: is there already, whole; choose another file")
        self.file: BinaryIO | None = None
        self._offsets: dict[int, int] = {}
        if self.path.exists():
            self._read()

    def _read(self) -> None:
        offset = 0
        with self.path.open("rb") as file:
            for line_number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    break
                try:
                    answer = json.loads(line)
                    self._count(answer, offset)
                except (ValueError, KeyError, TypeError) as error:
                    raise InputError(f"{self.path}, line {line_number}: no answer of an earlier run") from error
                offset += len(line)
        if offset < self.path.stat().st_size:
            os.truncate(self.path, offset)

    def add(self, line: str) -> None:
        """Write one answer, unless its row has one: a worker that was lost may have been asked twice."""
        answer = json.loads(line)
        if answer["row"] in self.done:
            return
        assert self.file, "answers are added by who holds the lock"
        offset = self.file.tell()
        self.file.write(line.encode())
        self.file.flush()
        self._count(answer, offset)

    def finish(self) -> None:
        """Every row is answered: make the file that was asked for."""
        if self.out != self.path:
            write_parquet(self.path, [self._offsets[row] for row in sorted(self._offsets)], self.out)
            self.path.unlink()

    def _count(self, answer: Mapping[str, Any], offset: int) -> None:
        row, id_, error = answer["row"], answer["id"], answer["error"]
        if not isinstance(row, int) or row in self.done:
            raise ValueError("a row's number, once a row")
        self.done[row] = id_
        self._offsets[row] = offset
        self.num_errors += error is not None


@contextmanager
def writing(out: Path) -> Iterator[Journal]:
    """The answers that are there, to add to. Raises InputError where another run holds them."""
    out.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(out.with_name(f".{out.name}.lock"), timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise InputError(f"{out}: another run is writing it") from None
    try:
        journal = Journal(out)
        with journal.path.open("ab") as journal.file:
            yield journal
    finally:
        lock.release()
