"""Stage 2: preference optimisation on pairs of the model's own samples, with the BoNBoN loss."""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch.distributed as dist
from rich.console import Console
from rich.progress import track
from torch import Tensor

from pasta_ray.engine.config import EngineConfig
from pasta_ray.engine.weights import resolve_model
from pasta_ray.errors import InputError
from pasta_ray.lang import ControlMap
from pasta_ray.train.config import PreferConfig
from pasta_ray.train.data import Encoder, Example
from pasta_ray.train.loop import run_stage, with_adapter
from pasta_ray.train.loss import bonbon_beta, bonbon_loss, bonbon_scale
from pasta_ray.train.preferences import Pair, Pairs, build_response, choose_pairs, read_scored
from pasta_ray.train.reference import REFERENCE_FILE, log_probs, model_key, reference_log_probs
from pasta_ray.train.stage import Metrics, Model, Plan

PAIRS_FILE = "pairs.jsonl"


@dataclass(frozen=True)
class PairRow:
    """Pairs packed into one row, the two responses of each side by side; ``weight`` is the number of pairs."""

    pairs: tuple[Pair, ...]
    num_tokens: int
    num_labels: int

    @property
    def ids(self) -> Sequence[str]:
        return [sample.id for pair in self.pairs for sample in (pair.chosen, pair.rejected)]

    @property
    def weight(self) -> float:
        return len(self.pairs)

    @classmethod
    def of(cls, pair: Pair, encoder: Encoder) -> "PairRow":
        """A row of one pair, measured."""
        examples = cls((pair,), 0, 0).encode(encoder)
        return cls((pair,), sum(map(len, examples)), sum(example.num_labels for example in examples))

    def beside(self, other: "PairRow") -> "PairRow":
        """One row of both."""
        return PairRow(self.pairs + other.pairs, self.num_tokens + other.num_tokens, self.num_labels + other.num_labels)

    def encode(self, encoder: Encoder) -> list[Example]:
        """Chosen, rejected, chosen, rejected, …"""
        tags = encoder.tags
        assert not isinstance(tags, ControlMap), "stage 2 knows no threads"
        return [
            build_response(sample, encoder.tokenizer, tags)
            for pair in self.pairs
            for sample in (pair.chosen, pair.rejected)
        ]


@dataclass(frozen=True)
class PreferStage:
    """When a worker has prepared, ``reference`` is log π of each sample under the initial model, by its id, and
    ``scale`` what the loss is multiplied by for its backward pass."""

    config: PreferConfig
    reference: Mapping[str, float] = field(default_factory=dict)
    scale: float = 1.0

    def plan(self, encoder: Encoder) -> Plan[PairRow]:
        """Each epoch shuffles the pairs; each update's pairs are packed into rows. The last may have fewer pairs."""
        config = self.config
        chosen, rows = self._choose(encoder)
        random.Random(config.seed - 1).shuffle(rows)
        held_out, learnt = rows[: config.val_pairs], rows[config.val_pairs :]
        if not learnt:
            raise InputError(
                f"scored: {len(rows)} pairs in {chosen.num_prompts} prompts, {config.val_pairs} of them to be held out"
                f" (val_pairs); left out: {chosen.left_out}"
            )
        steps: list[Sequence[PairRow]] = []
        for epoch in range(config.epochs):
            order = list(learnt)
            random.Random(config.seed + 1000 * epoch).shuffle(order)
            parts = (order[at : at + config.batch_pairs] for at in range(0, len(order), config.batch_pairs))
            steps += [pack_rows(part, config.batch_tokens) for part in parts]
        report = {"num_steps": len(steps), "num_val_pairs": len(held_out), "lambda": config.quality_weight}
        return Plan(steps, pack_rows(held_out, config.batch_tokens), report | chosen.report())

    def _choose(self, encoder: Encoder) -> tuple[Pairs, list[PairRow]]:
        """All pairs that fit into a row, and each as a row of its own."""
        config, console = self.config, Console(stderr=True)
        samples = read_scored(config.scored, need_quality=config.quality_weight > 0)
        chosen = choose_pairs(samples, config.quality_weight, pair_cut_off=config.pair_cut_off)
        progress = track(chosen.pairs, "measuring pairs", console=console, disable=not console.is_terminal)
        rows = [PairRow.of(pair, encoder) for pair in progress]
        rows = [row for row in rows if row.num_tokens <= config.batch_tokens]
        return chosen.only([row.pairs[0] for row in rows], f"longer than {config.batch_tokens} tokens"), rows

    def prepare(self, engine: Any, plan: Plan[PairRow], encoder: Encoder, run: Path) -> "PreferStage":
        """The initial model's log-probabilities, before anything is trained; on every worker."""
        epoch = plan.steps[: len(plan.steps) // self.config.epochs]
        learnt = [row for step in epoch for row in step]
        rows = [*learnt, *plan.validation]
        if dist.get_rank() == 0:
            lines = [json.dumps(pair.line()) + "\n" for row in rows for pair in row.pairs]
            (run / PAIRS_FILE).write_text("".join(lines), encoding="utf-8")
        examples = [row.encode(encoder) for row in rows]
        reference = reference_log_probs(engine, examples, run / REFERENCE_FILE, lambda: _initial_model(self.config))
        targets = [1 / (2 * self._beta(pair)) for row in learnt for pair in row.pairs]
        labels = [row.num_labels / (2 * len(row.pairs)) for row in learnt for _ in row.pairs]
        return replace(self, reference=reference, scale=bonbon_scale(fmean(targets), fmean(labels)))

    def _beta(self, pair: Pair) -> float:
        return self.config.beta or bonbon_beta(self.config.num_samples or pair.num_samples)

    def loss(self, model: Model, micro_batch: PairRow, encoder: Encoder) -> tuple[Tensor, Metrics]:
        examples = micro_batch.encode(encoder)
        policy = log_probs(model, examples)
        reference = policy.new_tensor([self.reference[example.id] for example in examples])
        beta = policy.new_tensor([self._beta(pair) for pair in micro_batch.pairs])
        result = bonbon_loss(policy[0::2], policy[1::2], reference[0::2], reference[1::2], self.config.alpha, beta)
        num_pairs = len(micro_batch.pairs)
        metrics = {
            "loss": (result.loss.sum().item(), num_pairs),
            "loss_likelihood": (result.likelihood.sum().item(), num_pairs),
            "loss_contrast": (result.contrast.sum().item(), num_pairs),
            "delta": (result.delta.sum().item(), num_pairs),
            "accuracy": ((result.delta > 0).sum().item(), num_pairs),
            "log_prob_chosen": (policy[0::2].sum().item(), sum(e.num_labels for e in examples[0::2])),
            "log_prob_rejected": (policy[1::2].sum().item(), sum(e.num_labels for e in examples[1::2])),
        }
        return result.loss.sum() * self.scale, metrics


def pack_rows(pairs: Sequence[PairRow], batch_tokens: int) -> list[PairRow]:
    """One update's pairs, longest first, first fit into rows of at most ``batch_tokens``; no pair is split."""
    rows: list[PairRow] = []
    for pair in sorted(pairs, key=lambda pair: -pair.num_tokens):
        fits = (index for index, row in enumerate(rows) if row.num_tokens + pair.num_tokens <= batch_tokens)
        index = next(fits, None)
        if index is None:
            rows.append(pair)
        else:
            rows[index] = rows[index].beside(pair)
    return rows


def run_prefer(config: PreferConfig) -> Path:
    """Train, or go on with the run of the same name; returns what ``run_stage`` does, and raises as it does.

    The run's folder keeps what the pairs are like (``plan.json``), the pairs (``pairs.jsonl``) and the initial model's
    log-probabilities (``reference.jsonl``) beside what stage 1's does.
    """
    return run_stage(PreferStage(with_adapter(config)))


def _initial_model(config: PreferConfig) -> str:
    folders = [resolve_model(EngineConfig(model=config.model)), *([config.init_adapter] if config.init_adapter else [])]
    files = [
        file for folder in folders for file in sorted(folder.iterdir()) if file.suffix in {".safetensors", ".json"}
    ]
    return model_key(files, config.precision)
