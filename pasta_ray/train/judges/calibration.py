"""The local judge's weights: a Bradley-Terry model of human preferences, fitted on half of them, tested on the other.

With features x of an answer, weights w and strength s = w·x, the first of two answers is preferred with probability
σ(s₁ - s₂) (Bradley & Terry 1952, with features as in a conditional logit).
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from pasta_ray.train.jsonl import read_models
from pasta_ray.train.judges.base import Answer, Comparison, Question, preferred
from pasta_ray.train.judges.text import longer

Vector = NDArray[np.float64]

# What a feature may mean, whatever a small sample says: a weight of the other sign would reward loops, or punish
# answers that fit the question. 0 leaves the sign to the data.
SIGNS: Mapping[str, int] = {
    "log_likelihood": 1,
    "relevance": 1,
    "similarity": 1,
    "log_length": 0,
    "empty": -1,
    "repetition": -1,
    "copied": -1,
}
# What the data cannot say, since none of its answers was cut off by a limit: against a finished answer that is alike
# in all else, a cut one is preferred one time in three.
BY_HAND: Mapping[str, float] = {"cut": -0.7}
STRENGTHS_L2 = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
NUM_FOLDS = 5

Text = Annotated[str, BeforeValidator(lambda value: str(value) if isinstance(value, bool) else value)]


class HumanPair(BaseModel):
    """Two answers and what people said: 1 the first, 2 the second, 0 neither. A text that was true or false before
    some tool made it JSON is read as "True" or "False"."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str
    instruction: str
    output_1: Text
    output_2: Text
    human: list[Literal[0, 1, 2]] = Field(min_length=1)
    input: str | None = None
    source: str = "unnamed"
    license: str = "unknown"

    @property
    def comparison(self) -> Comparison:
        question = Question(self.instruction, self.input or None)
        return Comparison(question, Answer(self.output_1), Answer(self.output_2))

    @property
    def target(self) -> float:
        """Share of people for the first; who saw no difference counts half."""
        return fmean({0: 0.5, 1: 1.0, 2: 0.0}[vote] for vote in self.human)

    @property
    def majority(self) -> float | None:
        """1 or 0 for the answer that more people preferred, None for a tie."""
        first, second = self.human.count(1), self.human.count(2)
        return None if first == second else float(first > second)

    @property
    def held_out(self) -> bool:
        """Whether the pair tests and does not fit: by its instruction, so that all of an instruction's pairs do."""
        return digest(self.instruction) % 2 == 1


def digest(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def read_pairs(path: Path) -> list[HumanPair]:
    """Raises InputError that names file and line."""
    return [pair for _, pair in read_models(path, HumanPair)]


@dataclass(frozen=True)
class Fit:
    """Weights per unit of each feature, and the spread of the feature's differences in the pairs fitted on. Features
    whose sign came out against SIGNS have weight 0."""

    weights: dict[str, float]
    spreads: dict[str, float]
    l2: float


def fit(
    differences: Sequence[Mapping[str, float]], targets: Sequence[float], groups: Sequence[int], names: Sequence[str]
) -> Fit:
    """The weights of ``names`` that explain the targets, with the L2 penalty that predicts best over NUM_FOLDS folds
    of whole ``groups``. ``differences`` are features of the first answer less those of the second."""
    x = np.array([[row[name] for name in names] for row in differences], dtype=np.float64)
    y = np.array(targets, dtype=np.float64)
    spread = np.sqrt((x**2).mean(axis=0))
    scaled = x / np.where(spread > 0, spread, 1.0)
    signs = np.array([SIGNS.get(name, 0) for name in names])
    folds = np.array(groups) % NUM_FOLDS
    losses = {l2: _fold_loss(scaled, y, folds, l2, signs) for l2 in STRENGTHS_L2}
    best = min(losses, key=lambda l2: losses[l2])
    weights = fit_signed(scaled, y, best, signs) / np.where(spread > 0, spread, 1.0)
    return Fit(dict(zip(names, weights.tolist(), strict=True)), dict(zip(names, spread.tolist(), strict=True)), best)


def _fold_loss(x: Vector, y: Vector, folds: NDArray[np.int64], l2: float, signs: NDArray[np.int64]) -> float:
    """Log-loss on each fold of the weights fitted on the others."""
    losses = []
    for fold in range(NUM_FOLDS):
        out = folds == fold
        if out.any() and not out.all():
            losses.append(log_loss(x[out] @ fit_signed(x[~out], y[~out], l2, signs), y[out]))
    return fmean(losses) if losses else 0.0


def fit_signed(x: Vector, y: Vector, l2: float, signs: NDArray[np.int64]) -> Vector:
    """Weights that minimise the log-loss plus l2/2·|w|², without the features that come out with the wrong sign: the
    worst of them is left out, and the rest fitted again, until none is wrong."""
    kept = np.ones(x.shape[1], dtype=bool)
    while True:
        weights = np.zeros(x.shape[1])
        weights[kept] = fit_logistic(x[:, kept], y, l2)
        wrong = np.where(weights * signs < 0, np.abs(weights), 0.0)
        if not wrong.any():
            return weights
        kept[int(wrong.argmax())] = False


def fit_logistic(x: Vector, y: Vector, l2: float) -> Vector:
    """Newton's method on the sum of log-losses of σ(x·w) against y in [0, 1], plus l2/2·|w|². No intercept: swapping
    the two answers must give the complement."""
    weights = np.zeros(x.shape[1])
    for _ in range(50):
        p = _sigmoid(x @ weights)
        gradient = x.T @ (p - y) + l2 * weights
        hessian = (x * (p * (1 - p))[:, None]).T @ x + l2 * np.eye(len(weights))
        step = np.linalg.solve(hessian, gradient)
        weights -= step
        if np.abs(step).max(initial=0.0) < 1e-10:
            break
    return weights


def log_loss(logits: Vector, y: Vector) -> float:
    """Mean cross-entropy in nats of σ(logits) against y in [0, 1]."""
    return float((np.logaddexp(0.0, logits) - y * logits).mean())


def _sigmoid(z: Vector) -> Vector:
    return 0.5 * (1 + np.tanh(z / 2))


def agreement(pairs: Sequence[HumanPair], verdicts: Sequence[float | None]) -> list[dict[str, Any]]:
    """How often a judge sides with the majority of people, by source and over all, beside a judge that always takes
    the longer answer and one that tosses a coin. Ties among people are left out; a judge's draw counts half; a miss
    counts as a draw."""
    sources = sorted({pair.source for pair in pairs})
    rows = [_agreement("all", pairs, verdicts)]
    for source in sources:
        own = [(pair, verdict) for pair, verdict in zip(pairs, verdicts, strict=True) if pair.source == source]
        rows.append(_agreement(source, [pair for pair, _ in own], [verdict for _, verdict in own]))
    return rows


def _agreement(name: str, pairs: Sequence[HumanPair], verdicts: Sequence[float | None]) -> dict[str, Any]:
    judged = [(p, 0.5 if v is None else v, p.majority) for p, v in zip(pairs, verdicts, strict=True)]
    settled = [(pair, verdict, majority) for pair, verdict, majority in judged if majority is not None]
    return {
        "source": name,
        "pairs": len(settled),
        "ties": len(pairs) - len(settled),
        "judge": fmean(_agrees(preferred(v), m) for _, v, m in settled) if settled else None,
        "longer": fmean(_agrees(longer(pair.output_1, pair.output_2), m) for pair, _, m in settled)
        if settled
        else None,
        "random": 0.5,
        "log_loss": fmean(_cross_entropy(v, p.target) for p, v, _ in judged) if judged else None,
    }


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return round(fmean(found), 4) if found else None


def _agrees(choice: float, majority: float) -> float:
    return 1 - abs(choice - majority)


def _cross_entropy(p: float, target: float) -> float:
    p = min(max(p, 1e-6), 1 - 1e-6)
    return float(-(target * np.log(p) + (1 - target) * np.log(1 - p)))
