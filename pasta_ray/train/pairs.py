"""Questions and answers that people or models have written: what annotators read."""

from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from pasta_ray.errors import InputError
from pasta_ray.train.jsonl import read_models


class Pair(BaseModel):
    """One line of an answers file. ``finished`` is false for an answer that was cut off; it loses its last part."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str
    instruction: str
    output: str
    input: str | None = None
    system: str | None = None
    source: str | None = None
    license: str | None = None
    benchmark: bool = False
    split: str | None = None
    finished: bool = True


def read_pairs(paths: Iterable[Path]) -> list[Pair]:
    """All pairs of some files, in order. Raises InputError that names file and line, also for an id used twice."""
    pairs: dict[str, Pair] = {}
    for path in paths:
        for where, pair in read_models(path, Pair):
            if pair.id in pairs:
                raise InputError(f"{where}: id {pair.id!r} was used before")
            pairs[pair.id] = pair
    return list(pairs.values())
