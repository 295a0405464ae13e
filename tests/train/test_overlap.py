"""No evaluation prompt in what the shipped adapters learnt from."""

from pathlib import Path

import numpy as np

from pasta_ray.train.overlap import all_gram_hashes, gram_hashes, overlapping

HASHES = Path(__file__).parents[1] / "data"


def test_runs_of_words() -> None:
    """Guards the measure: case and punctuation do not hide an overlap, seven words in common are none, and a prompt of
    fewer than eight words counts whole."""
    text = "One, two three FOUR five six seven eight nine"
    assert len(gram_hashes(text)) == 2
    others = all_gram_hashes([text, "What is love?"])
    assert overlapping(["zero one two three four five six seven eight", "WHAT is love"], others) == [0, 1]
    assert overlapping(["one two three four five six seven, and so on it goes", "What is", ""], others) == []


def test_the_shipped_adapters_saw_no_evaluation_prompt() -> None:
    """Guards the figures: no run of eight words of AlpacaEval's development prompts or of MT-bench in any prompt that
    an adapter's data was made of (made by jobs/overlap.py, kept as hashes)."""
    training, evaluation = (set(np.load(HASHES / f"{name}.npy").tolist()) for name in ("training", "evaluation"))
    assert len(training) > 10_000
    assert len(evaluation) > 4_000
    assert not training & evaluation
