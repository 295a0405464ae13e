"""What the service is made of. One model for `serve run`'s arguments, a YAML file and the command line's options."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pasta_ray.errors import InputError

if TYPE_CHECKING:
    from pasta_ray.engine.config import DraftConfig, EngineConfig

DEFAULT_MODEL = "smollm2-135m-instruct"
DEFAULT_ADAPTER = "pasta"
PROXY_HEADROOM = 64


class ServeConfig(BaseModel):
    """Every option of the service. Unknown ones are refused by name."""

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
    device: str = "cpu"
    dtype: str = "float32"
    quantization: Literal["auto", "none", "int8"] = Field(
        default="auto", description="of the weights; auto is int8 on a CPU with VNNI in float32, else none"
    )
    max_kv_bytes: int | None = Field(
        default=4 * 2**30, ge=1, description="KV of a replica's requests; beyond it they wait. null is no bound"
    )
    prefix_cache_bytes: int = Field(
        default=256 * 2**20, ge=0, description="KV kept of ended requests, for prompts that start alike"
    )
    num_threads: int | None = Field(
        default=None, ge=1, description="per replica; null shares the cores, one left for HTTP"
    )
    cache_dir: Path | None = None
    draft_model: str | None = Field(
        default=None, description="guesses for speculative methods; null looks guesses up in the text so far"
    )
    max_draft: int = Field(default=4, ge=1, le=32, description="tokens that a branch guesses in a step, at most")

    replicas: int = Field(
        default=1, ge=1, le=1024, description="decode replicas, each with its own copy of the weights"
    )
    cpus_per_replica: float = Field(default=1.0, ge=0, description="what Ray reserves")
    gpus_per_replica: float = Field(default=0.0, ge=0, description="what Ray reserves")
    num_ingress: int = Field(default=1, ge=1, le=256, description="HTTP workers")

    max_ongoing_requests: int = Field(default=64, ge=1, description="decoded at the same time")
    max_queued_requests: int = Field(default=256, ge=0, description="waiting; above it requests get status 429")
    request_timeout_s: float = Field(
        default=600.0, gt=0, description="of one answer; then its stream is closed with an error"
    )
    max_prompt_tokens: int = Field(default=7168, ge=1)
    max_answer_tokens: int = Field(default=4096, ge=1, description="the largest max_tokens that a client may ask for")
    default_max_tokens: int = Field(default=512, ge=1, description="max_tokens of a request that names none")
    max_branches: int = Field(default=16, ge=1, description="the largest max_branches that a client may ask for")

    @property
    def model_name(self) -> str:
        """The name that clients use."""
        if self.served_model_name:
            return self.served_model_name
        name = Path(self.model).name.removesuffix(".gguf")
        return f"{name}-{Path(self.adapter).name}" if self.adapter else name

    @property
    def default_method(self) -> str:
        """A base model writes no PASTA-LANG."""
        return "pasta" if self.adapter else "sequential"

    def engine_config(self) -> "EngineConfig":
        """The engine's own config; InputError names a value that it does not take."""
        from pasta_ray.engine.config import EngineConfig, default_cache_dir

        return EngineConfig(
            model=self.model,
            adapter=self.adapter,
            device=self.device,
            dtype=self.dtype,
            quantization=self._quantization(),
            max_kv_bytes=self.max_kv_bytes,
            prefix_cache_bytes=self.prefix_cache_bytes,
            num_threads=self.num_threads or max(1, (_num_cores() - 1) // self.replicas),
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

        return DraftConfig.beside(self.engine_config(), self.draft_model, self.max_draft)


def read_config(path: Path | None, overrides: dict[str, Any]) -> ServeConfig:
    """A YAML file of `ServeConfig`'s fields, with ``overrides`` on top. Raises InputError, naming file and field."""
    import yaml

    fields: dict[str, Any] = {}
    if path is not None:
        try:
            loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise InputError(f"{path}: {error}") from error
        if loaded is not None and not isinstance(loaded, dict):
            raise InputError(f"{path}: a mapping of options is expected, not a {type(loaded).__name__}")
        fields = loaded or {}
    try:
        return ServeConfig(**(fields | overrides))
    except ValidationError as error:
        first = error.errors()[0]
        where = f"{path}: " if path is not None else ""
        raise InputError(
            f"{where}{'.'.join(map(str, first['loc']))}: {first['msg']} (is {first['input']!r})"
        ) from error


def _num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
