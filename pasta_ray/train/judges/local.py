"""The local judge: a small statistical judge for machines without a language model that can judge.

It weighs a dozen numbers (features.py, text.py) with weights fitted to human preferences (calibration.py). It is not a
model of human preference: it cannot tell whether an answer is true, and its file says how often it agrees with people.
"""

import datetime
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pasta_ray.errors import InputError
from pasta_ray.train.jsonl import explain
from pasta_ray.train.judges.base import Answer, Comparison, Question
from pasta_ray.train.judges.calibration import BY_HAND, HumanPair, agreement, digest, fit
from pasta_ray.train.judges.features import ANSWER_TOKENS, EMBEDDING, PROMPT_TOKENS, Extractor, load_extractor

Features = Mapping[str, float]
NAME = "local"
SHIPPED = Path(__file__).parent / "local.json"
WHAT_IT_IS = "A small statistical judge, not a model of human preference: see `agreement`."


class LocalWeights(BaseModel):
    """A local judge's file. ``weights`` are per unit of each feature; a feature of weight 0 is not computed where that
    saves a model. The report of agreement is on the held-out half of the data."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    what_it_is: str = WHAT_IT_IS
    format: Literal[1] = 1
    model: str = Field(description="whose likelihoods are taken")
    embedding: str = EMBEDDING
    prompt_tokens: int = Field(default=PROMPT_TOKENS, ge=2)
    answer_tokens: int = Field(default=ANSWER_TOKENS, ge=1)
    weights: dict[str, float] = Field(min_length=1)
    set_by_hand: list[str] = Field(default_factory=list, description="weights that are not fitted")
    spreads: dict[str, float] = Field(default_factory=dict, description="of the differences in the pairs fitted on")
    l2: float = 0.0
    fitted_on: str = Field("", description="date")
    data: dict[str, Any] = Field(default_factory=dict, description="name, sha256, numbers of pairs, licences")
    agreement: list[dict[str, Any]] = Field(default_factory=list)

    def strength(self, features: Mapping[str, float]) -> float:
        return sum(weight * features[name] for name, weight in self.weights.items() if weight)

    @property
    def used(self) -> list[str]:
        return [name for name, weight in self.weights.items() if weight]

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(self.model_dump(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def load_weights(path: Path = SHIPPED) -> LocalWeights:
    """Raises InputError that names the file and the field."""
    try:
        return LocalWeights.model_validate_json(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    except ValidationError as error:
        raise InputError(f"{path}: {explain(error)}") from error


class LocalJudge:
    """Compares by strength: the weighted sum of an answer's features. It keeps those of the last comparisons."""

    name = NAME
    counts_wins = True

    def __init__(self, weights: LocalWeights, extractor: Extractor) -> None:
        self.weights = weights
        self._extractor = extractor
        self._known: dict[tuple[Question, Answer], dict[str, float]] = {}

    @classmethod
    def load(cls, path: Path | None = None, *, device: str = "cpu") -> "LocalJudge":
        """The judge of a file; the shipped one unless given."""
        weights = load_weights(path or SHIPPED)
        extractor = load_extractor(
            weights.model,
            weights.used,
            device=device,
            prompt_tokens=weights.prompt_tokens,
            answer_tokens=weights.answer_tokens,
        )
        return cls(weights, extractor)

    def compare(self, comparisons: Sequence[Comparison]) -> list[float | None]:
        asked = [(c.question, answer) for c in comparisons for answer in (c.first, c.second)]
        self._learn(asked)
        strengths = [self.weights.strength(self._known[key]) for key in asked]
        return [_sigmoid(a - b) for a, b in zip(strengths[::2], strengths[1::2], strict=True)]

    def features(self, question: Question, answer: Answer) -> dict[str, float]:
        """The features it weighs and, as ``strength``, their weighted sum."""
        key = (question, answer)
        if key not in self._known:
            self._learn([key])
        found = self._known[key]
        numbers = {name: found[name] for name in self.weights.used} | {"strength": self.weights.strength(found)}
        return {name: round(number, 4) for name, number in numbers.items()}

    def costs(self) -> dict[str, float]:
        return {}

    def _learn(self, asked: Sequence[tuple[Question, Answer]]) -> None:
        """Know the features of ``asked``, and of nothing else."""
        keys = list(dict.fromkeys(asked))
        new = [key for key in keys if key not in self._known]
        known = self._known | dict(zip(new, self._extractor.extract(new), strict=True))
        self._known = {key: known[key] for key in keys}


def calibrate(
    pairs: Sequence[HumanPair], features: Sequence[tuple[Features, Features]], model: str, data: Mapping[str, Any]
) -> LocalWeights:
    """Fit on the pairs that are not held out, report on those that are. ``features`` are those of each pair's first
    and second answer, ``data`` says what the pairs are. Raises InputError where a half has no pairs."""
    both = list(zip(pairs, features, strict=True))
    fitted_on = [(pair, found) for pair, found in both if not pair.held_out]
    held_out = [(pair, found) for pair, found in both if pair.held_out]
    if not fitted_on or not held_out:
        raise InputError(
            f"{len(fitted_on)} pairs to fit on and {len(held_out)} to test on; allowed: 1 or more of each,"
            " halved by a hash of the instruction"
        )
    names = [name for name in features[0][0] if name not in BY_HAND]
    found = fit(
        [{name: first[name] - second[name] for name in names} for _, (first, second) in fitted_on],
        [pair.target for pair, _ in fitted_on],
        [digest(pair.instruction) // 2 for pair, _ in fitted_on],
        names,
    )
    weights = LocalWeights(
        model=model,
        weights={name: round(weight, 6) for name, weight in found.weights.items()} | dict(BY_HAND),
        set_by_hand=list(BY_HAND),
        spreads={name: round(spread, 6) for name, spread in found.spreads.items()},
        l2=found.l2,
        fitted_on=datetime.date.today().isoformat(),
        data={**data, "pairs_fitted_on": len(fitted_on), "pairs_held_out": len(held_out)},
    )
    verdicts = [_sigmoid(weights.strength(first) - weights.strength(second)) for _, (first, second) in held_out]
    return weights.model_copy(update={"agreement": agreement([pair for pair, _ in held_out], verdicts)})


def describe_data(path: Path, pairs: Sequence[HumanPair]) -> dict[str, Any]:
    """Name, hash, sources and licences of a calibration file."""
    return {
        "file": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "licences": dict(sorted({(pair.source, pair.license) for pair in pairs})),
    }


def _sigmoid(z: float) -> float:
    return float(0.5 * (1 + np.tanh(z / 2)))
