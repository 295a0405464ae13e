"""One optimizer step over a global batch, whatever the number of workers that share it."""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from pasta_ray.errors import PastaError
from pasta_ray.train.data import Encoder
from pasta_ray.train.sharding import take_step
from pasta_ray.train.stage import M, Stage


class TrainingError(PastaError):
    """Training cannot go on."""


def update(engine: Any, stage: Stage[M], micro_batches: Sequence[M], encoder: Encoder) -> dict[str, float]:
    """One step of DeepSpeed's ``engine`` over all workers' ``micro_batches``; returns the means of its metrics.

    Every worker raises TrainingError, naming the documents, where a loss is not finite.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    total = sum(micro_batch.weight for micro_batch in micro_batches)
    own = micro_batches[rank::world]
    num_passes = -(-len(micro_batches) // world)  # the same on every worker, for each pass communicates
    sums: dict[str, tuple[float, float]] = {}
    bad: list[str] = []
    for index in range(num_passes):
        spare = index >= len(own)  # nothing left of its own: it goes through the motions
        micro_batch = micro_batches[0] if spare else own[index]
        engine.set_gradient_accumulation_boundary(index == num_passes - 1)
        loss, metrics = stage.loss(engine, micro_batch, encoder)
        if not spare:
            value = loss.item()
            bad += [] if math.isfinite(value) else micro_batch.ids
            sums = add_up([sums, {"loss": (value, micro_batch.weight), **metrics}])
        engine.backward(loss * (0.0 if spare else world / total))  # DeepSpeed takes the mean over workers
    everyone: list[Any] = [None] * world
    dist.all_gather_object(everyone, (sums, bad))
    bad = [id_ for _, ids in everyone for id_ in ids]
    if bad:
        raise TrainingError(f"the loss is not finite on documents {', '.join(bad)}")
    norm = take_step(engine)
    if not math.isfinite(norm):
        ids = [id_ for micro_batch in micro_batches for id_ in micro_batch.ids]
        raise TrainingError(f"the gradient of documents {', '.join(ids)} is not finite, though their loss is")
    return means([part for part, _ in everyone]) | {"grad_norm": norm}


def evaluate(engine: Any, stage: Stage[M], micro_batches: Sequence[M], encoder: Encoder) -> dict[str, float]:
    """The means of the metrics of all workers' ``micro_batches``; nothing is learnt from them."""
    rank, world = dist.get_rank(), dist.get_world_size()
    own = micro_batches[rank::world]
    sums: dict[str, tuple[float, float]] = {}
    engine.eval()
    with torch.no_grad():
        for index in range(-(-len(micro_batches) // world)):
            micro_batch = own[index] if index < len(own) else micro_batches[0]  # as in `update`
            loss, metrics = stage.loss(engine, micro_batch, encoder)
            if index < len(own):
                sums = add_up([sums, {"loss": (loss.item(), micro_batch.weight), **metrics}])
    engine.train()
    everyone: list[Any] = [None] * world
    dist.all_gather_object(everyone, sums)
    return means(everyone)


def add_up(parts: Sequence[dict[str, tuple[float, float]]]) -> dict[str, tuple[float, float]]:
    """(sum, count) of each metric over ``parts``."""
    sums: defaultdict[str, float] = defaultdict(float)
    counts: defaultdict[str, float] = defaultdict(float)
    for part in parts:
        for name, (value, count) in part.items():
            sums[name] += value
            counts[name] += count
    return {name: (sums[name], counts[name]) for name in sums}


def means(parts: Sequence[dict[str, tuple[float, float]]]) -> dict[str, float]:
    return {name: value / count for name, (value, count) in add_up(parts).items() if count}


def learning_rate_factor(step: int, num_steps: int, warmup: float) -> float:
    """Share of the full rate in ``step``, from 1: up to 1 over ``warmup`` (a share) of the steps, then down to 0."""
    num_warmup = max(1, round(warmup * num_steps))
    return min(step / num_warmup, (num_steps - step + 1) / max(1, num_steps - num_warmup))
