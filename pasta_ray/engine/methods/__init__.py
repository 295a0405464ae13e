"""Decoding methods: each a small program over ``open``, ``fork``, ``join`` and ``step``.

An installed package adds its own as entry points of the group ``pasta_ray.methods``; docs/extending.md has an example.
"""

from functools import cache

from pasta_ray.engine.methods.apar import ThreadsRun
from pasta_ray.engine.methods.base import Run
from pasta_ray.engine.methods.pasta import PastaRun
from pasta_ray.engine.methods.sequential import SequentialRun
from pasta_ray.engine.methods.sot import SkeletonRun
from pasta_ray.engine.methods.speculative import SpeculativePastaRun, SpeculativeRun
from pasta_ray.errors import InputError
from pasta_ray.extensions import METHODS as ENTRY_POINTS
from pasta_ray.extensions import ExtensionError, extension_names, load_extension
from pasta_ray.lang import ControlMap, TagMap, TokenMap

METHODS: dict[str, type[Run]] = {
    "sequential": SequentialRun,
    "pasta": PastaRun,
    "speculative": SpeculativeRun,
    "pasta+speculative": SpeculativePastaRun,
    "sot": SkeletonRun,
    "apar": ThreadsRun,
}

__all__ = ["METHODS", "Run", "check_method", "default_method", "find_methods", "fitting_methods"]


def find_methods() -> dict[str, type[Run]]:
    """All methods by name: those of the table, and those of installed packages, which are imported when first asked
    for. Raises ExtensionError for one that cannot be."""
    return METHODS | _installed()


@cache
def _installed() -> dict[str, type[Run]]:
    return {name: _load(name) for name in extension_names(ENTRY_POINTS)}


def _load(name: str) -> type[Run]:
    if name in METHODS:
        raise ExtensionError(f"{ENTRY_POINTS}: method {name!r} is there already; allowed: another name")
    run = load_extension(ENTRY_POINTS, name)
    if not (isinstance(run, type) and issubclass(run, Run)):
        raise ExtensionError(f"{ENTRY_POINTS}: {name!r} is {run!r}; expected a subclass of {Run.__qualname__}")
    return run


def fitting_methods(tags: TokenMap | None) -> tuple[str, ...]:
    """The methods that a model which writes ``tags`` can run."""
    return tuple(name for name, run in find_methods().items() if run.fits(tags))


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
