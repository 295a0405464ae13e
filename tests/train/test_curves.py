"""Curves of a run: every metric once, long runs smoothed, gaps and bad numbers left out."""

from pathlib import Path

import pytest

from pasta_ray.train.curves import SMOOTHED, draw_curves, stretches


def test_long_curves_are_drawn_as_means() -> None:
    """Guards against a curve that drops its end, or weighs one stretch more."""
    points = [(float(step), 2.0 * step) for step in range(1, 3 * SMOOTHED + 2)]
    means = stretches(points)
    assert len(means) <= SMOOTHED
    assert means[0] == (2.5, 5.0)
    assert means[-1][0] == pytest.approx(points[-1][0], abs=4)
    assert stretches(points[:5]) == points[:5]
    assert stretches([]) == []


def test_any_metrics_make_a_picture(tmp_path: Path) -> None:
    """Guards the last thing that a run does: a metric that some steps lack, or that is not finite, must not stop it."""
    steps = [{"step": n, "loss": 1 / n, "loss_tag": float("nan"), "accuracy": 0.5} for n in range(1, 100)]
    steps[10] |= {"val_loss": 0.3}
    draw_curves(steps, tmp_path / "curves.png", "a run")
    assert (tmp_path / "curves.png").stat().st_size > 10_000
