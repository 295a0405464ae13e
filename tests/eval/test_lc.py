"""Length-controlled win rates: the published model, its fit, and the published leaderboard."""

import csv
import json
import math
import os
import random
from pathlib import Path

import pytest

from pasta_ray.errors import InputError
from pasta_ray.eval.lc import Gamed, Judged, length_controlled, read_gamed, win_rate_at_equal_length

# Of AlpacaEval 2's leaderboard (github.com/tatsu-lab/alpaca_eval, weighted_alpaca_eval_gpt4_turbo_leaderboard.csv):
# model, length-controlled win rate in per cent.
PUBLISHED = {
    "gemma-2-9b-it-SimPO": 72.3508446939842,
    "gpt-4o-2024-05-13": 57.45682883335095,
    "gpt4_1106_preview_verbose": 51.57500797967598,
    "gpt4_1106_preview": 50.0,
    "gpt-4o-mini-2024-07-18": 50.727144855901976,
    "gpt4_1106_preview_concise": 41.896601591245386,
    "gpt4": 38.12808974440021,
    "claude-3-sonnet-20240229": 34.87247436243302,
    "claude-2": 28.155196141629148,
    "Meta-Llama-3-8B-Instruct": 22.91878467313347,
    "gpt-3.5-turbo-0301": 18.09324155198033,
    "Mistral-7B-Instruct-v0.2": 17.111251846021165,
}
FOLDER = Path(os.environ.get("ALPACAEVAL_DATA", "nowhere"))


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def verdicts(num: int, length: float, difficulty: float, intercept: float) -> list[Judged]:
    """Of a judge that is the model itself, over answers that differ in length by chance."""
    rng = random.Random(5)
    rows = [(rng.gauss(200, 500), rng.gauss(0, 1.5)) for _ in range(num)]
    mean = sum(delta for delta, _ in rows) / num
    spread = math.sqrt(sum((delta - mean) ** 2 for delta, _ in rows) / (num - 1))
    return [
        Judged(sigmoid(length * math.tanh(delta / spread) + difficulty * own + intercept), delta, own)
        for delta, own in rows
    ]


def test_a_fit_finds_the_model_that_gave_the_verdicts() -> None:
    """Guards signs, the scale of lengths, and verdicts between 0 and 1 taken for wins and losses."""
    judged = verdicts(400, length=-1.5, difficulty=0.8, intercept=-1.0)
    found = length_controlled(judged)
    assert found is not None
    assert found.length == pytest.approx(-1.5, abs=0.03)
    assert found.difficulty == pytest.approx(0.8, abs=0.03)
    assert found.intercept == pytest.approx(-1.0, abs=0.03)
    truth = win_rate_at_equal_length(-1.0, 0.8, [row.difficulty or 0.0 for row in judged])
    assert found.win_rate == pytest.approx(truth, abs=0.005)
    raw = sum(row.preference for row in judged) / len(judged)
    assert raw < found.win_rate - 0.03, "the model's answers are the shorter ones, and this judge likes long ones"
    assert (found.num, found.regularised) == (400, False)


def test_without_difficulties_the_term_is_left_out() -> None:
    judged = [Judged(row.preference, row.delta, None) for row in verdicts(100, -1.0, 0.0, 0.4)]
    found = length_controlled(judged)
    assert found is not None
    assert found.difficulty is None
    assert found.win_rate == pytest.approx(sigmoid(0.4), abs=0.01)
    assert length_controlled(judged[:9]) is None, "too few for five folds"
    same = length_controlled([Judged(0.5, 0.0, None)] * 10)
    assert same is not None
    assert same.win_rate == pytest.approx(0.5), "all as long as their opponents"


def test_verdicts_on_gamed_baselines_hold_the_length_coefficient(tmp_path: Path) -> None:
    """Guards a few verdicts that explain by length what is not length's."""
    judged = verdicts(40, -0.2, 0.0, -1.0)
    lines = ["preference,std_delta_len,instruction_difficulty,not_gamed_baseline"]
    lines += [
        f"{sigmoid(-3 * math.tanh(delta))},{delta},0.1,False" for delta in (-2.0, -1.0, 1.0, 2.0) for _ in range(400)
    ]
    (tmp_path / "g.csv").write_text("\n".join(lines), encoding="utf-8")
    gamed = read_gamed(tmp_path / "g.csv")
    assert gamed[0] == Gamed(pytest.approx(sigmoid(-3 * math.tanh(-2.0))), -2.0, 0.1)
    free, held = length_controlled(judged), length_controlled(judged, gamed)
    assert free is not None
    assert held is not None
    assert held.regularised
    assert held.length < free.length - 1
    (tmp_path / "bad.csv").write_text("preference\n0.5\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"bad.csv, line 2: numbers are expected in preference"):
        read_gamed(tmp_path / "bad.csv")


@pytest.mark.skipif(not FOLDER.is_dir(), reason="ALPACAEVAL_DATA names no folder with AlpacaEval's files")
def test_published_leaderboard_rows_are_reproduced() -> None:
    """Published coefficients over the prompts' published difficulties give the published win rates: to a point, since
    the file holds half of the prompts. The fit then finds these coefficients again from the verdicts they imply."""
    with (FOLDER / "alpacaeval_lc_weights.csv").open(encoding="utf-8", newline="") as file:
        weights = {row[0]: [float(value) for value in row[1:]] for row in list(csv.reader(file))[1:]}
    lines = (FOLDER / "alpacaeval_dev.jsonl").read_text(encoding="utf-8").splitlines()
    difficulties = [json.loads(line)["instruction_difficulty"] for line in lines]
    for model, published in PUBLISHED.items():
        _, difficulty, intercept = weights[model]
        assert 100 * win_rate_at_equal_length(intercept, difficulty, difficulties) == pytest.approx(published, abs=0.6)
    length, difficulty, intercept = weights["Mistral-7B-Instruct-v0.2"]
    rng = random.Random(1)
    deltas = [rng.gauss(0, 400) for _ in difficulties]
    mean = sum(deltas) / len(deltas)
    spread = math.sqrt(sum((delta - mean) ** 2 for delta in deltas) / (len(deltas) - 1))
    judged = [
        Judged(sigmoid(length * math.tanh(delta / spread) + difficulty * own + intercept), delta, own)
        for delta, own in zip(deltas, difficulties, strict=True)
    ]
    found = length_controlled(judged)
    assert found is not None
    assert 100 * found.win_rate == pytest.approx(PUBLISHED["Mistral-7B-Instruct-v0.2"], abs=1.0)
