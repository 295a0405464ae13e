"""Stage 1: supervised fine-tuning on annotated documents."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from torch import Tensor

from pasta_ray.engine.tokenizer import Tokenizer
from pasta_ray.errors import InputError
from pasta_ray.train.ablations import ablate
from pasta_ray.train.config import SftConfig
from pasta_ray.train.data import Encoder, Record, collate, pack, read_records
from pasta_ray.train.grammar import GrammarLoss
from pasta_ray.train.loop import run_stage, with_adapter
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

    @classmethod
    def of(cls, packs: Sequence["Pack"]) -> "Pack":
        """One row of all that is in ``packs``."""
        records = tuple(record for pack in packs for record in pack.records)
        return cls(records, sum(pack.weight for pack in packs), sum(pack.num_tokens for pack in packs))


@dataclass(frozen=True)
class SftStage:
    config: SftConfig
    grammar_loss: GrammarLoss | None = field(default=None, kw_only=True)

    def plan(self, encoder: Encoder) -> Plan[Pack]:
        """Each epoch packs anew; its last update may have fewer packs. Documents longer than a row are reported."""
        config = self.config
        documents, too_long = self._measure("documents", config.documents, encoder)
        held_out, held_out_too_long = self._measure("val_documents", config.val_documents, encoder)
        steps: list[Sequence[Pack]] = []
        for epoch in range(config.epochs):
            packs = self._pack(documents, config.seed + 1000 * epoch)
            steps += [packs[at : at + config.batch_packs] for at in range(0, len(packs), config.batch_packs)]
        report = {
            "num_steps": len(steps),
            "num_documents": len(documents),
            "num_tokens": sum(pack.num_tokens for pack in documents),
            "num_labels": sum(pack.weight for pack in documents),
            "num_val_documents": len(held_out),
            "too_long": {pack.ids[0]: pack.num_tokens for pack in too_long + held_out_too_long},
        }
        return Plan(steps, self._pack(held_out, config.seed), report)

    def _measure(self, name: str, paths: Sequence[Path], encoder: Encoder) -> tuple[list[Pack], list[Pack]]:
        """Each document as a row of its own: those that fit, and those that do not."""
        records = [ablate(record, self.config.leave_out) for record in read_records(paths)]
        console = Console(stderr=True)
        measured: list[Pack] = []
        for record in track(records, f"measuring {name}", console=console, disable=not console.is_terminal):
            example = encoder.encode(record)
            measured.append(Pack((record,), example.num_labels, len(example)))
        fitting = [pack for pack in measured if pack.num_tokens <= self.config.batch_tokens]
        if paths and not fitting:
            shortest = min((pack.num_tokens for pack in measured), default=0)
            raise InputError(
                f"{name}: of {len(measured)} documents none has at most {self.config.batch_tokens} tokens"
                f" (batch_tokens); the shortest has {shortest}"
            )
        return fitting, [pack for pack in measured if pack.num_tokens > self.config.batch_tokens]

    def _pack(self, documents: Sequence[Pack], seed: int) -> list[Pack]:
        packs = pack([document.num_tokens for document in documents], self.config.batch_tokens, seed)
        return [Pack.of([documents[index] for index in indices]) for indices in packs]

    def prepare(self, engine: Any, plan: Plan[Pack], encoder: Encoder, run: Path) -> "SftStage":
        del engine, plan, run  # nothing is needed of the model that training starts from
        if not self.config.grammar_weight:
            return self
        assert isinstance(encoder.tokenizer, Tokenizer)
        return replace(self, grammar_loss=GrammarLoss(encoder.tokenizer))

    def loss(self, model: Model, micro_batch: Pack, encoder: Encoder) -> tuple[Tensor, Metrics]:
        examples = [encoder.encode(record) for record in micro_batch.records]
        batch = collate(examples).to(model.device)
        logits = model(batch)
        losses = next_token_loss(logits, batch.labels)
        metrics = sums_by_kind(losses, batch.kinds) | {"fill": (micro_batch.num_tokens, self.config.batch_tokens)}
        if self.grammar_loss is None:
            return losses.sum(), metrics
        masked_away = self.grammar_loss(logits, examples)
        metrics["loss_grammar"] = (masked_away.detach().sum().item(), len(masked_away))
        return losses.sum() + self.config.grammar_weight * masked_away.sum(), metrics


def run_sft(config: SftConfig) -> Path:
    """Train, or go on with the run of the same name; returns what ``run_stage`` does, and raises as it does."""
    return run_stage(SftStage(with_adapter(config)))
