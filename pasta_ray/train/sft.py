"""Stage 1: supervised fine-tuning on annotated documents."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from pasta_ray.train.config import SftConfig
from pasta_ray.train.data import Encoder, Record, collate, pack, read_records
from pasta_ray.train.loop import run_stage
from pasta_ray.train.loss import next_token_loss, sums_by_kind
from pasta_ray.train.stage import Metrics, Model, Plan


@dataclass(frozen=True)
class Pack:
    """The documents of one packed row; ``weight`` is the number of their labels."""

    records: tuple[Record, ...]
    weight: int
    num_tokens: int

    @property
    def ids(self) -> Sequence[str]:
        return [record.id for record in self.records]


@dataclass(frozen=True)
class SftStage:
    config: SftConfig

    def plan(self, encoder: Encoder) -> Plan[Pack]:
        """Each epoch packs anew; its last update may have fewer packs."""
        records = {record.id: record for record in read_records(self.config.documents)}
        examples = [encoder.encode(record) for record in records.values()]
        steps: list[Sequence[Pack]] = []
        for epoch in range(self.config.epochs):
            packs = [
                Pack(tuple(records[e.id] for e in group), sum(e.num_labels for e in group), sum(map(len, group)))
                for group in pack(examples, self.config.batch_tokens, self.config.seed + 1000 * epoch)
            ]
            size = self.config.batch_packs
            steps += [packs[at : at + size] for at in range(0, len(packs), size)]
        return Plan(steps)

    def prepare(self, engine: Any, plan: Plan[Pack], encoder: Encoder, run: Path) -> "SftStage":
        del engine, plan, encoder, run  # nothing is needed of the model that training starts from
        return self

    def loss(self, model: Model, micro_batch: Pack, encoder: Encoder) -> tuple[Tensor, Metrics]:
        batch = collate([encoder.encode(record) for record in micro_batch.records]).to(model.device)
        losses = next_token_loss(model(batch), batch.labels)
        return losses.sum(), sums_by_kind(losses, batch.kinds)


def run_sft(config: SftConfig) -> Path:
    """Train, or go on with the run of the same name; returns the adapter's folder. Raises as ``run_stage`` does."""
    return run_stage(SftStage(config))
