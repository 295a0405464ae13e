"""What the service is made of. One model for `serve run`'s arguments, a YAML file and the command line's options."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from pasta_ray.errors import InputError
from pasta_ray.logs import LogConfig, LogFormat, LogLevel

if TYPE_CHECKING:
    from pasta_ray.engine.config import DraftConfig, EngineConfig

DEFAULT_MODEL = "smollm2-135m-instruct"
DEFAULT_ADAPTER = "pasta"
DEFAULT_NAME = "smollm2-pasta"
DEFAULT_VARIANTS = ("fast", "careful")
PROXY_HEADROOM = 64
API_KEYS_VARIABLE = "PASTA_RAY_API_KEYS"
VARIABLE_PREFIX = "PASTA_RAY_SERVE__"  # Kubernetes makes variables of services' names, but none with two underscores
Origin = Annotated[str, Field(pattern=r"^(\*|https?://[^/\s]+)$")]


class ServedModel(BaseModel):
    """One of several models over the same weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    adapter: str | None = Field(description="a folder, a shipped adapter's name, or null for the base model")
    aliases: tuple[str, ...] = Field(default=(), description="other names that clients may send for it")


class ServeConfig(BaseModel):
    """Every option of the service. Unknown ones are refused by name.

    Without ``model``, ``adapter``, ``served_model_name`` and ``models`` the shipped adapters of the default model are
    served: ``smollm2-pasta``, and its faster and its more careful variant.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(
        default=DEFAULT_MODEL, description="the default model's name, a folder, a .gguf file or a hub id"
    )
    adapter: str | None = Field(
        default=DEFAULT_ADAPTER, description="a folder, a shipped adapter's name, or null for the base model"
    )
    served_model_name: str | None = Field(
        default=None, description="the name that clients send; made of model and adapter"
    )
    models: dict[str, ServedModel] | None = Field(
        default=None,
        min_length=1,
        description="several adapters of the one model, by the names that clients send; instead of adapter",
    )
    device: str = Field(default="cpu", description="cpu, cuda or cuda:N")
    dtype: str = Field(default="float32", description="float32 or bfloat16")
    quantization: Literal["auto", "none", "int8"] = Field(
        default="auto", description="of the weights; auto is int8 on a CPU with VNNI in float32, else none"
    )
    max_kv_bytes: int | None = Field(
        default=4 * 2**30,
        ge=1,
        description="KV of a replica's requests, each model an equal part; beyond it they wait. null is no bound",
    )
    prefix_cache_bytes: int = Field(
        default=256 * 2**20,
        ge=0,
        description="KV that a replica keeps of ended requests, each model an equal part, for prompts that start alike",
    )
    num_threads: int | None = Field(
        default=None, ge=1, description="per replica; null shares the cores, one left for HTTP"
    )
    cache_dir: Path | None = Field(default=None, description="where models are kept; null is ~/.cache/pasta-ray")
    draft_model: str | None = Field(
        default=None, description="guesses for speculative methods; null looks guesses up in the text so far"
    )
    max_draft: int = Field(default=4, ge=1, le=32, description="tokens that a branch guesses in a step, at most")

    replicas: int = Field(
        default=1, ge=1, le=1024, description="decode replicas, each with its own copy of all models' weights"
    )
    max_replicas: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="replicas come and go with live branches and KV, from `replicas` up to so many; null adds none",
    )
    scale_up_s: float = Field(default=10.0, gt=0, description="how long more must have been needed before one comes")
    scale_down_s: float = Field(default=120.0, gt=0, description="how long fewer must have done before one goes")
    drain_s: float = Field(
        default=60.0, ge=0, description="how long one that goes keeps its requests; then they go on elsewhere"
    )
    cpus_per_replica: float = Field(default=1.0, ge=0, description="what Ray reserves")
    gpus_per_replica: float = Field(default=0.0, ge=0, description="what Ray reserves")
    placement: Literal["auto", "local", "remote"] = Field(
        default="auto",
        description="of promised bodies: auto is the replica that finishes one first, local always its request's own",
    )
    num_ingress: int = Field(default=1, ge=1, le=256, description="HTTP workers")
    num_coordinators: int = Field(
        default=1, ge=1, le=64, description="between HTTP workers and replicas; one goes on where another dies"
    )

    max_ongoing_requests: int = Field(default=64, ge=1, description="decoded at the same time")
    max_queued_requests: int = Field(default=256, ge=0, description="waiting; above it requests get status 429")
    request_timeout_s: float = Field(
        default=600.0, gt=0, description="of one answer; then its stream is closed with an error"
    )
    max_prompt_tokens: int = Field(default=7168, ge=1, description="of one prompt with its chat template")
    max_answer_tokens: int = Field(default=4096, ge=1, description="the largest max_tokens that a client may ask for")
    default_max_tokens: int = Field(default=512, ge=1, description="max_tokens of a request that names none")
    max_choices: int = Field(default=16, ge=1, description="answers that one request may ask for: n times its prompts")
    max_branches: int = Field(default=16, ge=1, description="the largest max_branches that a client may ask for")

    log_format: LogFormat = Field(default="text", description="text, or json: one object a line, for machines")
    log_level: LogLevel = Field(default="info", description="debug adds a line for each branch that opens or closes")

    api_keys_file: Path | None = Field(
        default=None, description=f"a key's sha256 a line; {API_KEYS_VARIABLE} may hold keys too, separated by commas"
    )
    allow_without_keys: bool = Field(
        default=False, description="without keys answer other machines too, not this one alone"
    )
    requests_per_minute: int | None = Field(
        default=None, ge=1, description="of one key, or one address where there are no keys, at each HTTP worker"
    )
    max_body_bytes: int = Field(default=2**20, ge=1024, description="of one request")
    cors_origins: tuple[Origin, ...] = Field(
        default=(), description="sites whose pages may use the service, such as https://example.org; * is all of them"
    )

    @field_validator("models")
    @classmethod
    def _distinct(cls, models: dict[str, ServedModel] | None) -> dict[str, ServedModel] | None:
        names = [name for served, model in (models or {}).items() for name in (served, *model.aliases)]
        for name in names:
            if not name or names.count(name) > 1:
                raise ValueError(
                    f"the name {name!r} stands for {names.count(name)} models; allowed: for one, not empty"
                )
        return models

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        single = sorted({"adapter", "served_model_name"} & self.model_fields_set)
        if self.models is not None and single:
            raise ValueError(f"{single[0]} names a single model; allowed: it, or models")
        if self.most_replicas < self.replicas:
            raise ValueError(f"max_replicas is {self.max_replicas}; allowed: replicas, {self.replicas}, or more")
        return self

    @property
    def most_replicas(self) -> int:
        return self.replicas if self.max_replicas is None else self.max_replicas

    @property
    def served(self) -> dict[str, ServedModel]:
        """The models by the names that clients send, in the order in which they are listed."""
        if self.models is not None:
            return self.models
        if not self.model_fields_set & {"model", "adapter", "served_model_name"}:
            return _shipped()
        name = Path(self.model).name.removesuffix(".gguf")
        derived = f"{name}-{Path(self.adapter).name}" if self.adapter else name
        return {self.served_model_name or derived: ServedModel(adapter=self.adapter)}

    @property
    def log(self) -> LogConfig:
        return LogConfig(self.log_format, self.log_level)

    def engine_configs(self) -> "dict[str, EngineConfig]":
        """Each served model's own engine; InputError names a value that it does not take."""
        served = self.served
        return {name: self._engine_config(model.adapter, len(served)) for name, model in served.items()}

    def _engine_config(self, adapter: str | None, num_models: int) -> "EngineConfig":
        from pasta_ray.engine.config import EngineConfig, default_cache_dir

        return EngineConfig(
            model=self.model,
            adapter=adapter,
            device=self.device,
            dtype=self.dtype,
            quantization=self._quantization(),
            max_kv_bytes=None if self.max_kv_bytes is None else max(1, self.max_kv_bytes // num_models),
            prefix_cache_bytes=self.prefix_cache_bytes // num_models,
            num_threads=self.num_threads or max(1, (_num_cores() - 1) // self.most_replicas),
            cache_dir=self.cache_dir or default_cache_dir(),
        )

    def _quantization(self) -> str | None:
        from pasta_ray.engine.int8 import int8_pays

        if self.quantization == "auto":
            return "int8" if self.device == "cpu" and self.dtype == "float32" and int8_pays() else None
        return None if self.quantization == "none" else self.quantization

    def draft_config(self) -> "DraftConfig":
        """How speculative methods guess."""
        from pasta_ray.engine.config import DraftConfig

        return DraftConfig.beside(self._engine_config(None, 1), self.draft_model, self.max_draft)


def _shipped() -> dict[str, ServedModel]:
    """What is served by default. The variants are there where their adapters are; scripts know the first model by the
    name that it would have alone."""
    from pasta_ray.engine.weights import shipped_adapters

    shipped = shipped_adapters()
    models = {DEFAULT_NAME: ServedModel(adapter=DEFAULT_ADAPTER, aliases=(f"{DEFAULT_MODEL}-{DEFAULT_ADAPTER}",))}
    for variant in DEFAULT_VARIANTS:
        if (adapter := f"{DEFAULT_ADAPTER}-{variant}") in shipped:
            models[f"{DEFAULT_NAME}-{variant}"] = ServedModel(adapter=adapter)
    return models


def read_config(
    path: Path | None,
    overrides: dict[str, Any],
    also: Mapping[str, str | None] | None = None,
    environment: Mapping[str, str] | None = None,
) -> ServeConfig:
    """A YAML file of `ServeConfig`'s fields, with ``environment``'s variables on top, ``overrides`` above them, and
    more models ``also`` served, as adapters by name. Raises InputError, naming file or variable, and field."""
    given = _read_environment(environment or {})
    sources = {name: f"{VARIABLE_PREFIX}{name.upper()}" for name in given if name not in overrides}
    fields = (_read_yaml(path) if path else {}) | given | overrides
    config = _checked(path, fields, sources)
    if not also:
        return config
    more = {name: ServedModel(adapter=adapter) for name, adapter in also.items()}
    for name in more.keys() & config.served.keys():
        raise InputError(f"model {name!r} is served already; allowed: another name")
    single = ("adapter", "served_model_name")  # which name the first of them
    rest = {name: value for name, value in fields.items() if name not in single}
    return _checked(path, rest | {"models": config.served | more}, sources)


def config_schema() -> dict[str, Any]:
    """JSON Schema of the YAML file, for editors and checks before a deployment."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **ServeConfig.model_json_schema()}


def _read_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """Fields from variables named after them; their values are YAML, so that numbers, null and lists can be said."""
    import yaml

    fields: dict[str, Any] = {}
    for variable, text in environment.items():
        if not variable.startswith(VARIABLE_PREFIX):
            continue
        name = variable.removeprefix(VARIABLE_PREFIX).lower()
        if name not in ServeConfig.model_fields:
            raise InputError(f"{variable}: there is no option {name!r}; allowed: {', '.join(ServeConfig.model_fields)}")
        try:
            fields[name] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise InputError(f"{variable}: {error}") from error
    return fields


def _read_yaml(path: Path) -> dict[str, Any]:
    import yaml

    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path}: {error}") from error
    if loaded is not None and not isinstance(loaded, dict):
        raise InputError(f"{path}: a mapping of options is expected, not a {type(loaded).__name__}")
    return loaded or {}


def _checked(path: Path | None, fields: dict[str, Any], sources: Mapping[str, str]) -> ServeConfig:
    """``sources`` are the variables that fields come from, by field."""
    try:
        return ServeConfig(**fields)
    except ValidationError as error:
        first = error.errors()[0]
        source = sources.get(str(first["loc"][0])) if first["loc"] else None
        where = f"{source or path}: " if source or path is not None else ""
        what = first["msg"].removeprefix("Value error, ")
        if first["loc"]:
            what = f"{'.'.join(map(str, first['loc']))}: {what} (is {first['input']!r})"
        raise InputError(f"{where}{what}") from error


def _num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
