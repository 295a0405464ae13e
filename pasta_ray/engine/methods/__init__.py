"""Decoding methods: each a small program over ``open``, ``fork``, ``join`` and ``step``."""

from pasta_ray.engine.methods.apar import ThreadsRun
from pasta_ray.engine.methods.base import Run
from pasta_ray.engine.methods.pasta import PastaRun
from pasta_ray.engine.methods.sequential import SequentialRun
from pasta_ray.engine.methods.sot import SkeletonRun
from pasta_ray.engine.methods.speculative import SpeculativePastaRun, SpeculativeRun
from pasta_ray.errors import InputError
from pasta_ray.lang import ControlMap, TagMap, TokenMap

METHODS: dict[str, type[Run]] = {
    "sequential": SequentialRun,
    "pasta": PastaRun,
    "speculative": SpeculativeRun,
    "pasta+speculative": SpeculativePastaRun,
    "sot": SkeletonRun,
    "apar": ThreadsRun,
}

__all__ = ["METHODS", "Run", "check_method", "default_method", "fitting_methods"]


def fitting_methods(tags: TokenMap | None) -> tuple[str, ...]:
    """The methods that a model which writes ``tags`` can run."""
    return tuple(name for name, run in METHODS.items() if run.fits(tags))


def default_method(tags: TokenMap | None) -> str:
    """The method that acts on the tags which a model writes; without tags there is nothing to act on."""
    match tags:
        case TagMap():
            return "pasta"
        case ControlMap():
            return "apar"
        case _:
            return "sequential"


def check_method(name: str, tags: TokenMap | None) -> None:
    """Raises InputError for a method that does not exist, or that a model which writes ``tags`` cannot run."""
    allowed = fitting_methods(tags)
    if name not in allowed:
        raise InputError(f"method is {name!r}; allowed with this model: {', '.join(allowed)}")
