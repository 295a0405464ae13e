"""Stage 2: preference optimisation on pairs of the model's own samples, with the BoNBoN loss."""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from pasta_ray.engine.config import EngineConfig
from pasta_ray.engine.weights import resolve_adapter, resolve_model
from pasta_ray.errors import InputError
from pasta_ray.train.config import PreferConfig
from pasta_ray.train.data import Encoder, Example
from pasta_ray.train.loop import load_encoder, run_stage
from pasta_ray.train.loss import bonbon_beta, bonbon_loss, bonbon_scale
from pasta_ray.train.preferences import Pair, Pairs, build_response, choose_pairs, read_scored
from pasta_ray.train.reference import REFERENCE_FILE, log_probs, model_key, reference_log_probs
from pasta_ray.train.stage import Metrics, Model, Plan

PAIRS_FILE = "pairs.jsonl"
REPORT_FILE = "pairs.json"


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
        return [
            build_response(sample, encoder.tokenizer, encoder.tags)
            for pair in self.pairs
            for sample in (pair.chosen, pair.rejected)
        ]


@dataclass(frozen=True)
class PreferStage:
    """``pairs`` are rows of one pair each, ``beta`` is as the loss takes it. When a worker has prepared,
    ``reference`` is log π of each sample under the initial model, by its id, and ``scale`` its backward one."""

    config: PreferConfig
    pairs: tuple[PairRow, ...]
    beta: float
    reference: Mapping[str, float] = field(default_factory=dict)
    scale: float = 1.0

    def plan(self, encoder: Encoder) -> Plan[PairRow]:
        """Each epoch shuffles the pairs; each update's pairs are packed into rows. The last may have fewer pairs."""
        del encoder  # the pairs were measured when they were read
        size = self.config.batch_pairs
        steps: list[Sequence[PairRow]] = []
        for epoch in range(self.config.epochs):
            order = list(self.pairs)
            random.Random(self.config.seed + 1000 * epoch).shuffle(order)
            steps += [pack_rows(order[at : at + size], self.config.batch_tokens) for at in range(0, len(order), size)]
        return Plan(steps)

    def prepare(self, engine: Any, plan: Plan[PairRow], encoder: Encoder, run: Path) -> "PreferStage":
        """The initial model's log-probabilities, before anything is trained; on every worker."""
        epoch = plan.steps[: len(plan.steps) // self.config.epochs]
        rows = [row.encode(encoder) for step in epoch for row in step]
        reference = reference_log_probs(engine, rows, run / REFERENCE_FILE, lambda: _initial_model(self.config))
        mean_labels = sum(row.num_labels for row in self.pairs) / (2 * len(self.pairs))
        return replace(self, reference=reference, scale=bonbon_scale(self.beta, mean_labels))

    def loss(self, model: Model, micro_batch: PairRow, encoder: Encoder) -> tuple[Tensor, Metrics]:
        examples = micro_batch.encode(encoder)
        policy = log_probs(model, examples)
        reference = policy.new_tensor([self.reference[example.id] for example in examples])
        result = bonbon_loss(policy[0::2], policy[1::2], reference[0::2], reference[1::2], self.config.alpha, self.beta)
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
    """Train, or go on with the run of the same name; returns the adapter's folder. Raises as ``run_stage`` does.

    The run's folder keeps the pairs (``pairs.jsonl``), what they are like (``pairs.json``) and the initial model's
    log-probabilities (``reference.jsonl``) beside the metrics.
    """
    config = with_adapter(config)
    samples = read_scored(config.scored, need_quality=config.quality_weight > 0)
    chosen = choose_pairs(samples, config.quality_weight, pair_cut_off=config.pair_cut_off)
    encoder = load_encoder(config)
    rows = [PairRow.of(pair, encoder) for pair in chosen.pairs]
    fitting = [row for row in rows if row.num_tokens <= config.batch_tokens]
    chosen = chosen.only([row.pairs[0] for row in fitting], f"longer than {config.batch_tokens} tokens")
    if not fitting:
        raise InputError(f"scored: no pair in {chosen.num_prompts} prompts; left out: {chosen.left_out}")
    beta = config.beta or bonbon_beta(config.num_samples or chosen.num_samples)
    report = chosen.report() | {"lambda": config.quality_weight, "alpha": config.alpha, "beta": beta}
    _keep(config.runs.resolve() / config.name, chosen, report)
    return run_stage(PreferStage(config, tuple(fitting), beta))


def with_adapter(config: PreferConfig) -> PreferConfig:
    """The adapter's folder in place of its name, and its LoRA's rank and alpha, unless the config has its own."""
    if config.init_adapter is None:
        return config
    folder = resolve_adapter(str(config.init_adapter)).resolve()
    settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    lora = {"lora_rank": settings["r"], "lora_alpha": settings["lora_alpha"]}
    lora = {name: value for name, value in lora.items() if name not in config.model_fields_set}
    return config.model_copy(update={"init_adapter": folder, **lora})


def _initial_model(config: PreferConfig) -> str:
    folders = [resolve_model(EngineConfig(model=config.model)), *([config.init_adapter] if config.init_adapter else [])]
    files = [
        file for folder in folders for file in sorted(folder.iterdir()) if file.suffix in {".safetensors", ".json"}
    ]
    return model_key(files, config.precision)


def _keep(run: Path, pairs: Pairs, report: dict[str, Any]) -> None:
    """Write the pairs down; a run that goes on must have the same ones."""
    text = "".join(json.dumps(pair.line()) + "\n" for pair in pairs.pairs)
    path = run / PAIRS_FILE
    if path.exists() and path.read_text(encoding="utf-8") != text:
        raise InputError(
            f"name: the run {run.name} began with other pairs ({path}); allowed: a new name, or its own pairs"
        )
    run.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    (run / REPORT_FILE).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
