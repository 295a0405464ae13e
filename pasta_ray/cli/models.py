"""Options that choose a model, as several commands have them: their values, and what they mean together."""

from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pasta_ray.engine.config import EngineConfig
    from pasta_ray.lang import TokenMap

DEFAULT_ADAPTER = "pasta"
NO_ADAPTER = "none"


class Quantization(StrEnum):
    """Of the weights."""

    none = "none"
    int8 = "int8"


class Dtype(StrEnum):
    """Of the weights."""

    float32 = "float32"
    bfloat16 = "bfloat16"


def engine_config(
    model: str, adapter: str, device: str, dtype: Dtype, quantization: Quantization, threads: int | None
) -> "EngineConfig":
    """The engine that a command's options ask for. Raises InputError for options that no engine has."""
    from pasta_ray.engine.config import EngineConfig

    return EngineConfig(
        model=model,
        adapter=None if adapter == NO_ADAPTER else adapter,
        device=device,
        dtype=dtype.value,
        quantization=None if quantization == Quantization.none else quantization.value,
        num_threads=threads,
    )


def chosen_method(config: "EngineConfig", method: str | None) -> tuple[str, "TokenMap | None"]:
    """``method``, or the one that the model's tags are for; and these tags. The model is fetched where it is not here.
    Raises InputError for a method that the model cannot be decoded by."""
    from pasta_ray.engine.methods import check_method, default_method
    from pasta_ray.engine.weights import find_tags

    tags = find_tags(config)
    method = method or default_method(tags)
    check_method(method, tags)
    return method, tags
