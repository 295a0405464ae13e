"""What a training run is told: one YAML file, every field also as ``--set name=value``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, field_validator, model_validator

from pasta_ray.errors import InputError
from pasta_ray.lang import PositionStrategy
from pasta_ray.train.jsonl import explain

Config = TypeVar("Config", bound=BaseModel)


class RunConfig(BaseModel):
    """What every training run is told, whatever it trains on. ``FREE`` may change between a run's start and its end."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    FREE: ClassVar = frozenset(
        {"runs", "zero_stage", "offload", "activation_checkpointing", "num_workers", "resize_every_s"}
        | {"threads_per_worker", "use_gpu", "max_failures", "checkpoint_every", "report_every"}
    )

    name: str = Field(description="the run's name: its folder below `runs`, and what it resumes by")
    model: str = Field("smollm2-135m-instruct", description="base model, as the engine names it")
    mode: Literal["lora", "full"] = Field("lora", description="train LoRA matrices, or all weights")
    init_adapter: Path | None = Field(None, description="adapter to start from; its rank and alpha must be those here")
    runs: Path = Field(Path("runs"), description="folder of checkpoints, logs and the finished adapter")
    language: Literal["pasta", "apar", "plain"] = Field(
        "pasta", description="what the model learns to write: PASTA-LANG, APAR's threads, or the answers alone"
    )
    positions: str | None = Field(
        None, description="of new PASTA tags: pred-10x, which is the default, pred-1x, fixed or fixed-GAP"
    )
    epochs: int = Field(1, ge=1)
    seed: int = 0

    lora_rank: int = Field(16, ge=1)
    lora_alpha: int = Field(32, ge=1)
    learning_rate: float = Field(4e-4, gt=0)
    tag_learning_rate: float = Field(6e-3, gt=0, description="of the tag tokens' rows, which start untrained")
    warmup: float = Field(0.05, ge=0, le=1, description="share of the steps; then linear decay to 0")
    weight_decay: float = Field(0.0, ge=0)
    clip: float = Field(1.0, gt=0, description="largest gradient norm")

    precision: Literal["fp32", "bf16"] = "fp32"
    zero_stage: Literal[0, 1, 2, 3] = 1
    offload: tuple[Literal["optimizer", "parameters"], ...] = Field((), description="what waits in the CPUs' memory")
    activation_checkpointing: bool = Field(False, description="recompute activations: less memory, a third slower")
    num_workers: PositiveInt | tuple[PositiveInt, PositiveInt] = Field(
        1, description="or [least, most]: as many as the cluster has room for, also while it runs"
    )
    resize_every_s: float = Field(60, gt=0, description="how often a range of workers is fitted to the cluster")
    threads_per_worker: int = Field(2, ge=1)
    use_gpu: bool = False
    max_failures: int = Field(2, ge=0, description="how often a lost worker is replaced")
    checkpoint_every: int = Field(50, ge=1, description="steps")
    report_every: int = Field(5, ge=1, description="steps")

    @field_validator("positions")
    @classmethod
    def _check_positions(cls, name: str | None) -> str | None:
        """One spelling each, so that a run goes on under any."""
        try:
            return name and PositionStrategy.named(name).name
        except InputError as error:
            raise ValueError(str(error)) from error

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        """Fields that do not go with each other."""
        if self.zero_stage == 0 and self.precision == "bf16":
            raise ValueError("zero_stage: 0 keeps no float32 weights beside bf16; allowed with it: 1, 2, 3")
        if self.offload and self.zero_stage == 0:
            raise ValueError("offload: takes a zero_stage of 1 to 3")
        if "parameters" in self.offload and self.zero_stage != 3:
            raise ValueError("offload: parameters takes zero_stage 3")
        if self.init_adapter and self.mode == "full":
            raise ValueError("init_adapter: goes with mode lora; a full run starts from a checkpoint, `model`")
        if isinstance(self.num_workers, tuple) and self.num_workers[0] > self.num_workers[1]:
            raise ValueError(f"num_workers: {list(self.num_workers)} is no range; expected [least, most]")
        return self


class SftConfig(RunConfig):
    """Stage 1: supervised fine-tuning on annotated documents."""

    documents: list[Path] = Field(min_length=1, description="JSONL files that `pasta-ray annotate` writes")
    val_documents: list[Path] = Field([], description="the same, held out: their loss is taken at every checkpoint")
    leave_out: tuple[Literal["topics", "syncs"], ...] = Field(
        (), description="an ablation: annotation that the model is not to learn"
    )
    batch_tokens: int = Field(1024, ge=64, description="tokens of one packed row, and so the longest example")
    batch_packs: int = Field(1, ge=1, description="packed rows of one update, all workers' together")
    grammar_weight: float = Field(
        0.0, ge=0, description="of −log of the probability that the tag grammar leaves, beside the labels' loss"
    )

    @model_validator(mode="after")
    def _check_grammar(self) -> Self:
        if self.grammar_weight and self.language != "pasta":
            raise ValueError(f"grammar_weight: goes with language pasta, not {self.language}")
        return self


class PreferConfig(RunConfig):
    """Stage 2: preference optimisation on the model's own scored samples."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_by_name=True)

    init_adapter: Path | None = Field(
        None,
        description="the adapter that wrote the samples, and that training starts from: a folder, or a shipped one's"
        " name, whose rank and alpha are taken unless they are given; none in mode full, which starts from `model`",
    )
    language: Literal["pasta", "plain"] = Field("pasta", description="plain: of the same answers without annotation")
    scored: list[Path] = Field(min_length=1, description="JSONL files of scored samples, as `pasta-ray score` writes")
    quality_weight: float = Field(
        4.0, alias="lambda", ge=0, description="λ of score = speedup + λ·quality: any number, or inf for quality alone"
    )
    pair_cut_off: bool = Field(False, description="pair a prompt's samples even where all of them were cut off")

    alpha: float = Field(
        0.005,
        ge=0,
        le=1,
        description="weight of −log π(y⁺) beside the contrast; 0.005 is what BoNBoN's authors train with"
        " (the README of github.com/gl-ybnbxb/BoNBoN)",
    )
    beta: float | None = Field(None, gt=0, description="unless given, best of n's: 1 / (2 (n−1) H(n−1))")
    num_samples: int | None = Field(None, ge=2, description="that n; unless given, the number of a prompt's samples")

    val_pairs: int = Field(0, ge=0, description="so many pairs are held out: their loss is taken at every checkpoint")
    batch_pairs: int = Field(8, ge=1, description="pairs of one update, all workers' together")
    batch_tokens: int = Field(1024, ge=64, description="tokens of one packed row, and so of the longest pair")
    learning_rate: float = Field(1e-4, gt=0)
    tag_learning_rate: float = Field(1e-3, gt=0, description="of the tag tokens' rows")

    @model_validator(mode="after")
    def _check_start(self) -> Self:
        if self.mode == "lora" and self.init_adapter is None:
            raise ValueError("init_adapter: missing; stage 2 starts from the adapter that wrote the samples")
        return self


def load_config(kind: type[Config], path: Path | None, settings: Sequence[str]) -> Config:
    """A YAML file and ``FIELD=VALUE`` settings over it (values are YAML). Raises InputError that names the field."""
    values: dict[str, Any] = {}
    try:
        if path:
            values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
            if not isinstance(values, dict):
                raise InputError(f"{path}: expected a mapping of fields, not a {type(values).__name__}")
        for setting in settings:
            name, equals, value = setting.partition("=")
            if not equals:
                raise InputError(f"--set {setting}: expected FIELD=VALUE")
            _set(values, name.split("."), yaml.safe_load(value), setting)
        return kind.model_validate(values)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path or settings}: {error}") from error
    except ValidationError as error:
        raise InputError(f"{path}: {explain(error)}" if path else explain(error)) from error


def _set(values: dict[str, Any], path: Sequence[str], value: Any, setting: str) -> None:
    """``value`` at ``path`` in nested mappings, which are made where they are missing."""
    *parents, name = path
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise InputError(f"--set {setting}: {parent} holds no fields of its own")
    values[name] = value
