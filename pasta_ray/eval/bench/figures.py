"""What a benchmark gives: figures with their spread, ratios of these, and the machine and settings they hold for."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from pasta_ray.eval.bench.machine import Machine

T = TypeVar("T")
Say = Callable[[str], None]  # tells whoever waits how far a run has come


@dataclass(frozen=True)
class Figure:
    """A quantity over ``num_samples`` repetitions; one that is counted and not timed has a single sample."""

    unit: str
    median: float
    p10: float
    p90: float
    num_samples: int


@dataclass(frozen=True)
class Ratio:
    """The quotient of two figures' medians, named as in :attr:`Result.figures`."""

    value: float
    numerator: str
    denominator: str


@dataclass
class Result:
    """One run of one benchmark."""

    benchmark: str
    machine: Machine
    settings: Mapping[str, object]
    figures: dict[str, Figure] = field(default_factory=dict)
    ratios: dict[str, Ratio] = field(default_factory=dict)

    def add(self, name: str, unit: str, samples: Sequence[float]) -> None:
        assert name not in self.figures, f"figure {name!r} is there already"
        p10, median, p90 = np.percentile(samples, (10, 50, 90)).tolist()
        self.figures[name] = Figure(unit, median, p10, p90, len(samples))

    def compare(self, name: str, numerator: str, denominator: str) -> None:
        assert name not in self.ratios, f"ratio {name!r} is there already"
        value = self.figures[numerator].median / self.figures[denominator].median
        self.ratios[name] = Ratio(value, numerator, denominator)


def interleave(
    cases: Mapping[str, Callable[[], T]], *, num_warmups: int, num_reps: int, say: Say
) -> dict[str, list[T]]:
    """What each case gives, in rounds of A B C, A B C, …: whatever slows the machine for a while slows all alike.

    The first ``num_warmups`` rounds are thrown away.
    """
    samples: dict[str, list[T]] = {name: [] for name in cases}
    for number in range(num_warmups + num_reps):
        say(f"round {number + 1} of {num_warmups + num_reps}")
        for name, case in cases.items():
            value = case()
            if number >= num_warmups:
                samples[name].append(value)
    return samples
