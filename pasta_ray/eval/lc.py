"""Length-controlled win rates, as AlpacaEval 2 computes them (Dubois et al. 2024, arXiv 2404.04475, eq. 1).

A logistic model of the judge's preference over an answer's length, the prompt's difficulty and who wrote the answer is
fitted, and then asked what the judge would prefer were both answers equally long:

    P(model over baseline) = σ(w_length · tanh(Δ / std Δ) + w_difficulty · difficulty + w_model)

Δ is the baseline's number of characters less the model's. As there, the fit is L1-regularised without intercept, its
strength chosen by five-fold cross-validation, and prompts' difficulties are given and not fitted.
"""

import csv
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pasta_ray.errors import InputError
from pasta_ray.eval.figures import LengthControlled

NUM_FOLDS = 5
FEWEST = 2 * NUM_FOLDS  # verdicts: two a fold
STRENGTHS = np.logspace(-4, 4, 10)  # inverse strengths that are tried: the ones of scikit-learn's LogisticRegressionCV
GAMED_WEIGHT = 0.2 / 2  # of each verdict on the two gamed baselines, beside 1 for the model's
GAMED_COLUMNS = ("preference", "std_delta_len", "instruction_difficulty")

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Judged:
    """One verdict: the probability that the judge prefers the model's answer, the opponent's characters less the
    model's, and the prompt's difficulty where it has one."""

    preference: float
    delta: float
    difficulty: float | None


@dataclass(frozen=True)
class Gamed:
    """A verdict on the baseline told to be verbose, or concise: such rows hold the coefficients of length and
    difficulty near what they are where only length differs."""

    preference: float
    scaled_delta: float
    difficulty: float


def length_controlled(judged: Sequence[Judged], gamed: Sequence[Gamed] = ()) -> LengthControlled | None:
    """None for fewer than FEWEST verdicts. Where a prompt has no difficulty the term is left out for all, and so are
    the ``gamed`` rows, which need it. Raises InputError where scikit-learn is not installed."""
    if len(judged) < FEWEST:
        return None
    spread = statistics.stdev(row.delta for row in judged)
    lengths = [math.tanh(row.delta / spread) if spread else 0.0 for row in judged]
    difficulties = [row.difficulty for row in judged if row.difficulty is not None]
    has_difficulty = len(difficulties) == len(judged)
    targets = [row.preference for row in judged]
    columns = [lengths, difficulties, [1.0] * len(judged)] if has_difficulty else [lengths, [1.0] * len(judged)]
    features, weights = np.array(columns).T, np.ones(len(judged))
    if gamed and has_difficulty:
        rows = [(math.tanh(row.scaled_delta), row.difficulty, 0.0) for row in gamed]
        features = np.concatenate((np.array(rows), features))
        targets = [row.preference for row in gamed] + targets
        weights = np.concatenate((np.full(len(gamed), GAMED_WEIGHT), weights))
    found = _fit(features, np.array(targets), weights).tolist()
    difficulty = found[1] if has_difficulty else None
    return LengthControlled(
        win_rate=win_rate_at_equal_length(found[-1], difficulty or 0.0, difficulties or [0.0]),
        num=len(judged),
        length=found[0],
        difficulty=difficulty,
        intercept=found[-1],
        regularised=bool(gamed) and has_difficulty,
    )


def win_rate_at_equal_length(intercept: float, difficulty: float, difficulties: Sequence[float]) -> float:
    """The mean over prompts of what the model predicts without a difference in length, in [0, 1]."""
    return statistics.fmean(0.5 * (1 + math.tanh((intercept + difficulty * own) / 2)) for own in difficulties)


def read_gamed(path: Path) -> list[Gamed]:
    """AlpacaEval's `df_gamed.csv`. Raises InputError with file and line."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            lines = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: {error}") from error
    rows = []
    for number, line in enumerate(lines, 2):
        try:
            rows.append(Gamed(*(float(line[name]) for name in GAMED_COLUMNS)))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path}, line {number}: numbers are expected in {', '.join(GAMED_COLUMNS)}") from error
    return rows


def _fit(features: Matrix, targets: Matrix, weights: Matrix) -> Matrix:
    """Coefficients [features.shape[1]] with the strength of best log-loss on held-out folds. A target p counts as p of
    a win and 1 - p of a loss."""
    folds = np.arange(len(targets)) % NUM_FOLDS
    losses = []
    for strength in STRENGTHS:
        loss = 0.0
        for fold in range(NUM_FOLDS):
            out = folds == fold
            found = _fit_once(features[~out], targets[~out], weights[~out], strength)
            logits = features[out] @ found
            loss += float((weights[out] * (np.logaddexp(0.0, logits) - targets[out] * logits)).sum())
        losses.append(loss)
    return _fit_once(features, targets, weights, STRENGTHS[int(np.argmin(losses))])


def _fit_once(features: Matrix, targets: Matrix, weights: Matrix, strength: float) -> Matrix:
    model = _logistic()(
        C=strength, l1_ratio=1.0, solver="liblinear", fit_intercept=False, max_iter=10_000, random_state=123
    )
    outcomes = np.repeat((1, 0), len(targets))
    counts = np.concatenate((weights * targets, weights * (1 - targets)))
    model.fit(np.concatenate((features, features)), outcomes, sample_weight=counts)
    coefficients: Matrix = model.coef_[0]
    return coefficients


def _logistic() -> Any:
    try:
        from sklearn.linear_model import LogisticRegression
    except ModuleNotFoundError as error:
        raise InputError("length-controlled win rates need scikit-learn: pip install 'pasta-ray[eval]'") from error
    return LogisticRegression
