"""What an evaluation runs: systems, prompts, settings. One YAML file, frozen, and checked where it is made."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from pasta_ray.engine.config import DEFAULT_MODEL, DraftConfig, EngineConfig
from pasta_ray.engine.methods import find_methods
from pasta_ray.errors import InputError

NAME = r"[A-Za-z0-9][A-Za-z0-9 ._+λ=-]*"  # "#" separates the parts of an answer's id


class System(BaseModel):
    """One competitor: a method with a model, under the name that figures and plots carry."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=f"^{NAME}$")
    method: str
    model: str = Field(
        default=DEFAULT_MODEL, description="a name, a folder, a .gguf file or a hub id; served: its name there"
    )
    adapter: str | None = Field(default=None, description="a folder or a shipped name; none is the model itself")
    constrained: bool = Field(default=True, description="pasta: mask tokens that break the grammar")
    router: bool = Field(default=False, description="sot: ask the model first whether the question suits it")
    max_branches: int = Field(default=16, ge=1)
    draft_model: str | None = Field(
        default=None, description="speculative: a model that guesses; none looks guesses up"
    )
    max_draft: int = Field(default=4, ge=1)
    base_url: str | None = Field(
        default=None, description="ask this OpenAI-compatible endpoint instead of an engine here"
    )
    api_key_env: str | None = Field(default=None, description="environment variable that holds the endpoint's key")

    own_server: bool = Field(
        default=True, description="the endpoint is `pasta-ray serve`: tell it the method, in `pasta`"
    )

    @model_validator(mode="after")
    def _here_or_there(self) -> Self:
        if self.base_url is None and (self.api_key_env or not self.own_server):
            raise ValueError("api_key_env and own_server go with base_url")
        if self.base_url is not None and (self.adapter or self.draft_model or not self.constrained):
            raise ValueError(
                "adapter, draft_model and constrained are the server's matter, and do not go with base_url"
            )
        if not self.own_server and self.method != "sequential":
            raise ValueError(f"method is {self.method!r}; a server of another make is taken to be sequential")
        return self

    @field_validator("method")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in find_methods():
            raise ValueError(f"is {value!r}; allowed: {', '.join(find_methods())}")
        return value


STANDARD = (
    System(name="sequential", method="sequential", adapter="baseline-sft"),
    System(name="base", method="sequential"),
    System(name="speculative", method="speculative", adapter="baseline-sft"),
    System(name="sot", method="sot"),
    System(name="apar", method="apar", adapter="apar"),
    System(name="pasta", method="pasta", adapter="pasta"),
    System(name="pasta+speculative", method="pasta+speculative", adapter="pasta"),
)


def standard_systems(names: list[str]) -> list[System]:
    """The usual systems by name, for who writes no file. Raises InputError for a name that is none of theirs."""
    known = {system.name: system for system in STANDARD}
    for name in names:
        if name not in known:
            raise InputError(f"--methods: {name!r} is unknown; allowed: {', '.join(known)}")
    return [known[name] for name in dict.fromkeys(names)]


class QualityPlan(BaseModel):
    """Who compares the answers, and with what."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    judge: Literal["local", "llm"] = "local"
    against: Literal["baseline", "reference"] = Field(
        default="baseline", description="opponent: the baseline system's answer, or the prompts file's reference_output"
    )
    weights: Path | None = Field(default=None, description="local: the file of `train calibrate-judge`")
    base_url: str | None = Field(default=None, description="llm: an OpenAI-compatible endpoint, up to /v1")
    judge_model: str | None = Field(default=None, description="llm: the endpoint's model that judges")
    api_key_env: str | None = Field(default=None, description="llm: environment variable that holds the endpoint's key")
    concurrency: int = Field(default=8, ge=1, description="llm: requests at the same time")
    max_retries: int = Field(default=4, ge=0, description="llm: of one request")
    human_pairs: Path | None = Field(
        default=None, description="llm: JSONL of pairs with human votes, to measure agreement on"
    )
    human_limit: int | None = Field(default=None, ge=1, description="so many of them, evenly spaced")
    gamed: Path | None = Field(
        default=None, description="AlpacaEval's df_gamed.csv, which regularises the length control"
    )
    perplexity: bool = Field(default=False, description="of the answers under the model without adapter")

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.judge == "llm" and not (self.base_url and self.judge_model):
            raise ValueError("judge llm needs base_url and judge_model")
        if self.judge == "local" and (self.base_url or self.judge_model or self.human_pairs):
            raise ValueError("base_url, judge_model and human_pairs go with judge llm")
        if self.judge == "llm" and self.weights:
            raise ValueError("weights goes with judge local")
        return self


class LoadPlan(BaseModel):
    """Throughput against concurrency, measured when all answers are there."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    concurrency: list[Annotated[int, Field(ge=1)]] = Field(
        default=[1, 2, 4, 8, 16], min_length=1, description="requests at once; a measurement each"
    )
    systems: list[str] = Field(default=[], description="names of those that are measured; all unless set")
    num_prompts: int = Field(default=32, ge=1, description="requests a measurement: so many prompts, evenly spaced")

    @field_validator("concurrency", "systems")
    @classmethod
    def _once(cls, values: list[Any]) -> list[Any]:
        if twice := sorted({value for value in values if values.count(value) > 1}):
            raise ValueError(f"{twice[0]!r} is there twice")
        return values


class EvalPlan(BaseModel):
    """An evaluation. Every prompt is answered by every system, ``repetitions`` times, by each worker one at a time."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompts: str = Field(description="JSONL file of id and instruction, AlpacaEval's JSON, or `alpacaeval`: the hub's")
    systems: list[System] = Field(min_length=1)
    baseline: str = Field(
        default="", description="name of the system that the others are compared with; the first unless set"
    )
    max_tokens: int = Field(default=384, ge=1, description="bound of a visible answer")
    temperature: float = Field(default=0.0, ge=0, le=2, description="0 is greedy")
    top_p: float = Field(default=1.0, gt=0, le=1)
    repetitions: int = Field(default=1, ge=0, description="of each prompt; 0 measures nothing but load")
    seed: int = 0
    limit: int | None = Field(default=None, ge=1, description="so many prompts, evenly spaced")
    warmup_tokens: int = Field(
        default=16, ge=1, description="decoded by every system before the first answer that counts"
    )
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16"] = "float32"
    quantization: Literal["int8"] | None = None
    threads: int | None = Field(default=None, ge=1, description="CPU threads; torch's own choice unless set")
    workers: int = Field(
        default=1, ge=1, description="processes that answer at once, each on cores of its own; `threads` are each one's"
    )
    quality: QualityPlan | None = None
    load: LoadPlan | None = None

    @model_validator(mode="after")
    def _names(self) -> Self:
        names = [system.name for system in self.systems]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"systems: name {twice[0]!r} is used twice")
        if self.baseline and self.baseline not in names:
            raise ValueError(f"baseline is {self.baseline!r}; allowed: {', '.join(names)}")
        for name in self.load.systems if self.load else []:
            if name not in names:
                raise ValueError(f"load.systems: {name!r} is no system; allowed: {', '.join(names)}")
        if self.repetitions == 0 and (self.quality or not self.load):
            raise ValueError("repetitions is 0: with load alone, and without quality")
        return self

    @property
    def baseline_name(self) -> str:
        return self.baseline or self.systems[0].name

    def engine(self, system: System) -> EngineConfig:
        """No prefix is kept from one answer to the next: it would spare the systems that come later in a round their
        prefill."""
        return EngineConfig(
            model=system.model,
            adapter=system.adapter,
            device=self.device,
            dtype=self.dtype,
            quantization=self.quantization,
            num_threads=self.threads,
            prefix_cache_bytes=0,
        )

    def draft(self, system: System) -> DraftConfig:
        return DraftConfig.beside(self.engine(system), system.draft_model, system.max_draft)
