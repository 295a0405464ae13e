"""What an engine is made of: model, adapter, device. Frozen, and checked where it is made."""

import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path

from pasta_ray.errors import InputError

DEFAULT_MODEL = "smollm2-135m-instruct"
DTYPES = ("float32", "bfloat16")
QUANTIZATIONS = ("int8",)
MAX_DRAFT = 32
MEBIBYTE = 2**20


def default_cache_dir() -> Path:
    """``$XDG_CACHE_HOME/pasta-ray``, or ``~/.cache/pasta-ray``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "pasta-ray"


@dataclass(frozen=True)
class EngineConfig:
    """What to load and where to run it.

    ``model``: the default model's name, a folder, a ``.gguf`` file or a hub id. ``adapter``: a folder, or the name of
    an adapter that the package ships; None is the base model. ``num_threads`` None leaves torch's own choice.
    ``quantization`` of the weights: None is exact, "int8" quantises each output channel of every linear layer, and
    activations row by row, on CPU. ``prefill_chunk`` bounds the prompt tokens of one step. ``max_kv_bytes`` bounds the
    KV of all requests together, None does not; ``prefix_cache_bytes`` bounds what is kept of ended ones, 0 keeps none.
    """

    model: str = DEFAULT_MODEL
    adapter: str | None = None
    device: str = "cpu"
    dtype: str = "float32"
    quantization: str | None = None
    num_threads: int | None = None
    prefill_chunk: int = 256
    max_kv_bytes: int | None = None
    prefix_cache_bytes: int = 256 * MEBIBYTE
    cache_dir: Path = field(default_factory=default_cache_dir)

    def __post_init__(self) -> None:
        if not self.model:
            raise InputError("model is empty; allowed: a name, a folder, a .gguf file or a hub id")
        if self.adapter is not None and not self.adapter:
            raise InputError("adapter is empty; allowed: a folder, a shipped adapter's name, or None")
        if not re.fullmatch(r"cpu|cuda(:\d+)?", self.device):
            raise InputError(f"device is {self.device!r}; allowed: cpu, cuda, cuda:N")
        if self.dtype not in DTYPES:
            raise InputError(f"dtype is {self.dtype!r}; allowed: {', '.join(DTYPES)}")
        if self.quantization is not None:
            if self.quantization not in QUANTIZATIONS:
                raise InputError(f"quantization is {self.quantization!r}; allowed: None, {', '.join(QUANTIZATIONS)}")
            if self.device != "cpu" or self.dtype != "float32":
                raise InputError(
                    f"quantization {self.quantization!r} runs with device 'cpu' and dtype 'float32', not with"
                    f" {self.device!r} and {self.dtype!r}"
                )
        if self.num_threads is not None and self.num_threads < 1:
            raise InputError(f"num_threads is {self.num_threads}; allowed: 1 or more, or None")
        if self.prefill_chunk < 1:
            raise InputError(f"prefill_chunk is {self.prefill_chunk}; allowed: 1 or more")
        if self.max_kv_bytes is not None and self.max_kv_bytes < 1:
            raise InputError(f"max_kv_bytes is {self.max_kv_bytes}; allowed: 1 or more, or None")
        if self.prefix_cache_bytes < 0:
            raise InputError(f"prefix_cache_bytes is {self.prefix_cache_bytes}; allowed: 0 or more")


@dataclass(frozen=True)
class DraftConfig:
    """How speculative methods guess: with ``engine``, a smaller model of the same vocabulary, or, where that is None,
    with what the prompt and the answer hold already. ``max_draft`` bounds the tokens that a branch guesses in a step.
    """

    engine: EngineConfig | None = None
    max_draft: int = 4

    @classmethod
    def beside(cls, target: EngineConfig, model: str | None, max_draft: int) -> "DraftConfig":
        """Guesses of ``model``, without adapter and else as ``target`` runs; None looks them up in the text. The
        model's KV needs no bound of its own: it follows the requests that hold some of the target's."""
        if model is None:
            return cls(None, max_draft)
        return cls(replace(target, model=model, adapter=None, max_kv_bytes=None, prefix_cache_bytes=0), max_draft)

    def __post_init__(self) -> None:
        if not 1 <= self.max_draft <= MAX_DRAFT:
            raise InputError(f"max_draft is {self.max_draft}; allowed: 1 to {MAX_DRAFT}")
