"""The local judge's weights: recovered from made preferences, tested on the half that did not fit them."""

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest

from pasta_ray.errors import InputError
from pasta_ray.train.judges.base import Answer, Comparison, Question
from pasta_ray.train.judges.calibration import (
    BY_HAND,
    SIGNS,
    HumanPair,
    agreement,
    fit,
    fit_logistic,
    log_loss,
    read_pairs,
)
from pasta_ray.train.judges.features import Extractor
from pasta_ray.train.judges.local import LocalJudge, LocalWeights, calibrate, describe_data, load_weights


def pair(id_: str, human: list[int], instruction: str = "", **fields: str) -> HumanPair:
    values = {"id": id_, "instruction": instruction or id_, "output_1": "a", "output_2": "b", "human": human}
    return HumanPair.model_validate(values | fields)


def test_known_weights_are_recovered() -> None:
    """Guards the fit: from many preferences drawn with known weights it finds them."""
    rng = np.random.default_rng(3)
    true = np.array([1.5, -0.5, 0.0])
    x = rng.normal(size=(20_000, 3))
    y = (rng.random(20_000) < 1 / (1 + np.exp(-x @ true))).astype(float)
    assert fit_logistic(x, y, l2=1.0) == pytest.approx(true, abs=0.06)
    found = fit([dict(zip("abc", row, strict=True)) for row in x], y.tolist(), list(range(len(x))), list("abc"))
    assert list(found.weights.values()) == pytest.approx(true.tolist(), abs=0.06)


def test_one_feature_by_hand() -> None:
    """Guards the penalised optimum: for d = 1 and target t it is the w with σ(w) - t + l2·w = 0, so w = 1/2 for
    t = σ(1/2) + 1/10 and l2 = 1/5."""
    (w,) = fit_logistic(np.array([[1.0]]), np.array([1 / (1 + math.exp(-0.5)) + 0.1]), l2=0.2)
    assert w == pytest.approx(0.5, abs=1e-9)
    assert log_loss(np.array([0.0]), np.array([0.3])) == pytest.approx(math.log(2))
    assert log_loss(np.array([math.log(3)]), np.array([1.0])) == pytest.approx(-math.log(0.75))


def test_a_feature_may_not_mean_its_opposite() -> None:
    """Guards against a judge that likes loops because a small sample did."""
    rng = random.Random(5)
    rows = [{"repetition": rng.random(), "similarity": rng.uniform(-1, 1)} for _ in range(200)]
    found = fit(rows, [1.0 if row["similarity"] > 0 else 0.6 for row in rows], list(range(200)), list(rows[0]))
    assert SIGNS["repetition"] == -1
    assert found.weights["repetition"] == 0.0
    assert found.weights["similarity"] > 0


def test_votes() -> None:
    """Guards ties: they count half for the fit, and are no test of agreement."""
    assert [pair("a", votes).target for votes in ([1], [2, 2, 2], [0], [1, 1, 2], [1, 0])] == [
        1.0,
        0.0,
        0.5,
        pytest.approx(2 / 3),
        0.75,
    ]
    assert [pair("a", votes).majority for votes in ([1, 0, 0], [2, 1, 2], [0, 0], [1, 2])] == [1.0, 0.0, None, None]


def test_agreement_by_hand() -> None:
    """Guards the report: ties left out, draws count half, always-longer on the same pairs."""
    pairs = [
        pair("a", [1], source="x", output_1="two words"),
        pair("b", [2], source="x", output_1="two words"),
        pair("c", [1], source="y"),
        pair("d", [0], source="y"),
    ]
    everything, x, y = agreement(pairs, [0.8, 0.9, 0.5, 0.7])
    assert (everything["source"], everything["pairs"], everything["ties"]) == ("all", 3, 1)
    assert everything["judge"] == pytest.approx((1 + 0 + 0.5) / 3, abs=1e-4)
    assert everything["longer"] == pytest.approx((1 + 0 + 0.5) / 3, abs=1e-4)
    assert (x["judge"], x["longer"], x["pairs"]) == (0.5, 0.5, 2)
    assert y["log_loss"] == pytest.approx((math.log(2) - 0.5 * math.log(0.7) - 0.5 * math.log(0.3)) / 2, abs=1e-4)


def test_no_instruction_is_in_both_halves() -> None:
    """Guards the test half: an instruction seen in the fit would make it easier."""
    pairs = [pair(str(n), [1], instruction=f"instruction {n % 20}") for n in range(100)]
    halves = [{p.instruction for p in pairs if p.held_out is held_out} for held_out in (False, True)]
    assert all(halves)
    assert not halves[0] & halves[1]


def test_calibrate_reports_on_the_held_out_half() -> None:
    """Guards the file that ships: weights, what is set by hand, and an agreement that the fit has not seen."""
    rng = random.Random(1)
    pairs, features = [], []
    for n in range(400):
        a, b = rng.random(), rng.random()
        pairs.append(pair(str(n), [1 if a > b else 2], license="MIT"))
        features.append(({"similarity": a, "cut": 0.0}, {"similarity": b, "cut": 0.0}))
    weights = calibrate(pairs, features, "model", {"file": "f"})
    assert weights.weights["similarity"] > 1
    assert weights.weights["cut"] == BY_HAND["cut"]
    assert weights.set_by_hand == ["cut"]
    assert weights.agreement[0]["pairs"] == sum(p.held_out for p in pairs) == weights.data["pairs_held_out"]
    assert weights.agreement[0]["judge"] > 0.95
    with pytest.raises(InputError, match="allowed: 1 or more of each"):
        calibrate(pairs[:1], features[:1], "model", {})


def test_files_are_read_and_written(tmp_path: Path) -> None:
    """Guards against errors that do not say which line or field, and texts that JSON took for truth values."""
    path = tmp_path / "pairs.jsonl"
    line = {"id": "a", "instruction": "True?", "output_1": True, "output_2": "No", "human": [1, 0], "license": "MIT"}
    path.write_text(json.dumps(line) + "\n", encoding="utf-8")
    (read,) = read_pairs(path)
    assert read.comparison == Comparison(Question("True?"), Answer("True"), Answer("No"))
    assert describe_data(path, [read])["licences"] == {"unnamed": "MIT"}
    path.write_text(json.dumps(line | {"human": [3]}) + "\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"line 1: human\.0"):
        read_pairs(path)
    weights = LocalWeights(model="m", weights={"log_length": 0.5, "similarity": 0.0})
    weights.save(tmp_path / "judge.json")
    assert load_weights(tmp_path / "judge.json") == weights
    (tmp_path / "judge.json").write_text('{"model": "m", "weights": {}}', encoding="utf-8")
    with pytest.raises(InputError, match="weights"):
        load_weights(tmp_path / "judge.json")
    with pytest.raises(InputError, match=r"none\.json: No such file"):
        load_weights(tmp_path / "none.json")


def test_the_shipped_judge_is_what_it_says() -> None:
    """Guards the package's own file: it reads, it names its data's licences, none of its weights rewards repetition,
    and it agrees with people more often than always-longer."""
    weights = load_weights()
    assert set(weights.data["licences"].values()) <= {"MIT", "Apache-2.0"}
    assert weights.weights["repetition"] < 0
    assert weights.weights["cut"] < 0
    everything = weights.agreement[0]
    assert everything["judge"] > everything["longer"] > 0.5
    assert "not a model of human preference" in weights.what_it_is


def test_the_local_judge_compares_by_strength() -> None:
    """Guards the verdict's scale, its symmetry, and that only the last comparisons' features are kept."""
    weights = LocalWeights(model="m", weights={"log_length": 1.0, "cut": -0.7, "similarity": 0.0})
    judge = LocalJudge(weights, Extractor(None, None))
    question = Question("q")
    short, long, cut = Answer("a"), Answer("a b c"), Answer("a b c", finished=False)
    verdicts = judge.compare(
        [Comparison(question, long, short), Comparison(question, short, long), Comparison(question, cut, long)]
    )
    # Odds of 4 to 2, and of e^-0.7 to 1.
    assert verdicts == pytest.approx([2 / 3, 1 / 3, 1 / (1 + math.exp(0.7))])
    assert judge.features(question, long) == {"log_length": 1.3863, "cut": 0.0, "strength": 1.3863}
    assert judge.compare([Comparison(question, long, long)]) == [0.5]
    assert len(judge._known) == 1
