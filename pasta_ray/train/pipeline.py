"""The whole of training as data: which commands follow one another, and what each reads and writes."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pasta_ray.train.config import PreferConfig, SftConfig

Command = tuple[str, tuple[str, ...], dict[str, Any]]  # the stage's name, its command, and its options


class PipelineConfig(BaseModel):
    """``annotate``, ``sample`` and ``score`` are options of the commands of these names, ``sft`` and ``prefer`` fields
    of the configurations of theirs; files, models and adapters are filled in."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_by_name=True)

    folder: Path = Field(description="everything is written here")
    model: str = Field("smollm2-135m-instruct", description="base model, as the engine names it")
    answers: list[Path] = Field(min_length=1, description="what `annotate` reads")
    prompts: Path = Field(description="what `train sample` reads, in every round")
    rounds: int = Field(2, ge=0, description="of stage 2; each samples from the last one's adapter")
    quality_weight: float = Field(2.0, alias="lambda", ge=0, description="λ that every round ranks by; inf too")
    variants: dict[str, float] = Field({}, description="more adapters of the last round: a name, and its λ")
    annotate: dict[str, Any] = {}
    sft: dict[str, Any] = {}
    sample: dict[str, Any] = {}
    score: dict[str, Any] = {}
    prefer: dict[str, Any] = {}

    @model_validator(mode="after")
    def _check_stages(self) -> "PipelineConfig":
        """Stage 1's and stage 2's own fields, before the first stage runs."""
        taken = {"sft"} | {f"round-{number}" for number in range(1, self.rounds + 1)}
        for name, weight in self.variants.items():
            if name in taken or not name.replace("-", "").isalnum():
                raise ValueError(f"variants: {name!r} is taken or no plain name")
            if not weight >= 0:
                raise ValueError(f"variants: λ of {name} is {weight}; allowed: 0 or more, or inf")
        if self.variants and not self.rounds:
            raise ValueError("variants: need at least one round")
        SftConfig.model_validate(self._sft())
        if self.rounds:
            PreferConfig.model_validate(self._prefer(1, "round-1", self.quality_weight))
        return self

    def stages(self) -> Iterator[Command]:
        """In the order in which they run."""
        yield (
            "annotate",
            ("annotate",),
            {"": self.answers, "out": self._documents, "model": self.model} | self.annotate,
        )
        yield "sft", ("train", "sft"), _settings(self._sft())
        for number in range(1, self.rounds + 1):
            samples, scored = self._samples(number), self._scored(number)
            given = {"prompts": self.prompts, "out": samples, "adapter": "none"}
            given |= self._start_of(number, adapter="adapter")
            yield f"sample-{number}", ("train", "sample"), given | self.sample
            yield f"score-{number}", ("train", "score"), {"": samples, "out": scored} | self.score
            name = f"round-{number}"
            yield name, ("train", "prefer"), _settings(self._prefer(number, name, self.quality_weight))
        for name, weight in self.variants.items():
            yield name, ("train", "prefer"), _settings(self._prefer(self.rounds, name, weight))

    def trained(self) -> dict[str, Path]:
        """The adapters, or the models of full fine-tuning, that are there when all stages are done, by their runs."""
        names = ["sft", *(f"round-{number}" for number in range(1, self.rounds + 1)), *self.variants]
        return {name: self._trained(name) for name in names}

    @property
    def _documents(self) -> Path:
        return self.folder / "documents.jsonl"

    def _samples(self, number: int) -> Path:
        return self.folder / f"samples-{number}.jsonl"

    def _scored(self, number: int) -> Path:
        return self.folder / f"scored-{number}.jsonl"

    @property
    def _mode(self) -> str:
        return str(self.sft.get("mode", "lora"))

    def _trained(self, name: str) -> Path:
        return self.folder / "runs" / name / ("model" if self._mode == "full" else "adapter")

    def _start_of(self, number: int, *, adapter: str) -> dict[str, Any]:
        """What a round samples from and goes on training: a model, and under the name ``adapter`` its adapter."""
        start = self._trained("sft" if number == 1 else f"round-{number - 1}")
        if self._mode == "full":
            return {"model": str(start)}
        return {"model": self.model, adapter: start}

    def _sft(self) -> dict[str, Any]:
        return self._run("sft") | {"model": self.model, "documents": [self._documents]} | self.sft

    def _prefer(self, number: int, name: str, weight: float) -> dict[str, Any]:
        given = {"mode": self._mode, "scored": [self._scored(number)], "lambda": weight}
        return self._run(name) | self._start_of(number, adapter="init_adapter") | given | self.prefer

    def _run(self, name: str) -> dict[str, Any]:
        return {"name": name, "runs": self.folder / "runs"}


def _settings(fields: dict[str, Any]) -> dict[str, Any]:
    return {"set": [f"{name}={_yaml(value)}" for name, value in fields.items()]}


def _yaml(value: Any) -> str:
    """A value as `--set` reads it."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_yaml, value))}]"
    if isinstance(value, float) and math.isinf(value):
        return ".inf"
    return str(value).lower() if isinstance(value, bool) else str(value)
