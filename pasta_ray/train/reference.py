"""Log-probabilities under the initial model: computed once, before training, and kept in the run's folder."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pasta_ray.train.data import Example, collate
from pasta_ray.train.jsonl import read_appended, to_line
from pasta_ray.train.loss import label_log_probs, sequence_log_probs
from pasta_ray.train.stage import Model

REFERENCE_FILE = "reference.jsonl"
ROWS_A_ROUND = 8


def model_key(files: Iterable[Path], numerics: str) -> str:
    """Hex sha256 of an initial model: the bytes of its weight and adapter files, and what it computes in."""
    digest = hashlib.sha256(numerics.encode())
    for path in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def example_key(example: Example, model: str) -> str:
    """Hex sha256 of a response under a model: every token, position, visibility and label counts."""
    laid_out = example.layout
    content = (model, laid_out.ids, laid_out.positions, laid_out.visible, laid_out.label_source)
    return hashlib.sha256(repr(content).encode()).hexdigest()


def log_probs(model: Model, examples: Sequence[Example]) -> Tensor:
    """log π of each of R responses, packed into one row: float32 [R], in nats."""
    batch = collate(examples).to(model.device)
    return sequence_log_probs(label_log_probs(model(batch), batch.labels), [e.num_labels for e in examples])


def reference_log_probs(
    engine: Any, rows: Sequence[Sequence[Example]], path: Path, key: Callable[[], str]
) -> dict[str, float]:
    """log π of every response of ``rows``, by its id, under DeepSpeed's ``engine`` as it is now, without dropout.

    Every worker calls this alike and computes its share of the rows; each gets all values. ``path`` keeps them: the
    first worker reads and writes it. A line is used again if model (``key``, asked of the first worker alone) and
    response are the same, so that an interrupted run goes on, and a changed one does not use what no longer holds.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    shared: list[Any] = [(key(), _read(path)) if rank == 0 else None]
    dist.broadcast_object_list(shared)
    model, cached = shared[0]
    keys = {example.id: example_key(example, model) for row in rows for example in row}
    values = {id_: cached[key] for id_, key in keys.items() if key in cached}
    missing = [row for row in rows if any(example.id not in values for example in row)]
    was_training = engine.training
    engine.eval()
    for at in range(0, len(missing), ROWS_A_ROUND * world):
        share = missing[at : at + ROWS_A_ROUND * world]
        own: dict[str, float] = {}
        for index in range(-(-len(share) // world)):  # as many passes on every worker, for each pass may communicate
            row = share[min(index * world + rank, len(share) - 1)]
            with torch.no_grad():
                sums = log_probs(engine, row).tolist()
            own |= dict(zip((example.id for example in row), sums, strict=True))
        everyone: list[Any] = [None] * world
        dist.all_gather_object(everyone, own)
        found = {id_: value for part in everyone for id_, value in part.items()}
        values |= found
        if rank == 0:
            _append(path, {keys[id_]: value for id_, value in found.items()})
    engine.train(was_training)
    return values


def _read(path: Path) -> dict[str, float]:
    """Values by key. A last line that its writer did not live to finish is dropped from the file, too."""
    return {line["key"]: line["log_prob"] for line in read_appended(path, '{"key": ')}


def _append(path: Path, values: dict[str, float]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.writelines(to_line({"key": key, "log_prob": value}) for key, value in values.items())
