"""What a stage of training is to the loop: what it trains on, and what a micro-batch costs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from pasta_ray.train.config import RunConfig
from pasta_ray.train.data import Batch, Encoder

Metrics = Mapping[str, tuple[float, float]]


class MicroBatch(Protocol):
    """What goes through the model in one forward and backward pass.

    It is pickled to the workers: it holds records rather than tensors.
    """

    @property
    def ids(self) -> Sequence[str]:
        """The documents in it, for error messages."""

    @property
    def weight(self) -> float:
        """What a sum of losses over it is divided by: its labels in stage 1, its pairs in stage 2."""

    @property
    def num_tokens(self) -> int: ...


M = TypeVar("M", bound=MicroBatch)


@dataclass(frozen=True)
class Plan(Generic[M]):
    """The micro-batches of every update, all workers' together. An update may have any number of them: the loop
    divides them among the workers. Its loss is the sum of their losses divided by the sum of their weights.

    ``validation`` is what the loss is taken of, without learning from it, at every checkpoint; ``report`` is written
    down beside the run, as JSON.
    """

    steps: Sequence[Sequence[M]]
    validation: Sequence[M] = ()
    report: Mapping[str, object] = field(default_factory=dict)


class Model(Protocol):
    """A policy, plain or in DeepSpeed's hands: logits float32 [M, vocab + tags] at a batch's M label sources."""

    @property
    def device(self) -> torch.device: ...

    def __call__(self, batch: Batch) -> Tensor: ...


class Stage(Protocol[M]):
    """One way to train. It is pickled to the workers, so it holds little more than its config."""

    @property
    def config(self) -> RunConfig: ...

    def plan(self, encoder: Encoder) -> Plan[M]:
        """What to train on: computed once, where the run was started. Raises InputError for unusable input."""

    def prepare(self, engine: Any, plan: Plan[M], encoder: Encoder, run: Path) -> "Stage[M]":
        """The stage as it trains, on each worker before the run's first step or its last checkpoint is loaded: here
        DeepSpeed's ``engine`` still is the model that training starts from. ``run`` is the run's folder."""

    def loss(self, model: Model, micro_batch: M, encoder: Encoder) -> tuple[Tensor, Metrics]:
        """The *sum* of the micro-batch's losses, to be differentiated, and (sum, count) of each metric beside it.

        The model may be called more than once. The loop adds the metric ``loss`` by itself.
        """
