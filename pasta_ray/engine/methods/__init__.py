"""Decoding methods: each a small program over ``open``, ``fork``, ``join`` and ``step``."""

from pasta_ray.engine.methods.apar import ThreadsRun
from pasta_ray.engine.methods.base import Run
from pasta_ray.engine.methods.pasta import PastaRun
from pasta_ray.engine.methods.sequential import SequentialRun
from pasta_ray.engine.methods.sot import SkeletonRun
from pasta_ray.engine.methods.speculative import SpeculativePastaRun, SpeculativeRun

METHODS: dict[str, type[Run]] = {
    "sequential": SequentialRun,
    "pasta": PastaRun,
    "speculative": SpeculativeRun,
    "pasta+speculative": SpeculativePastaRun,
    "sot": SkeletonRun,
    "apar": ThreadsRun,
}

__all__ = ["METHODS", "Run"]
