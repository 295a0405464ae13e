"""Figures of speed, against values computed by hand."""

import math

import pytest

from pasta_ray.eval.answers import Answer, group_answers
from pasta_ray.eval.speed import (
    bootstrap,
    count_answers,
    length_error,
    same_texts,
    shared_prompts,
    speed,
    speed_views,
    wall_speedups,
)
from tests.eval.reports import LOOP, answer, body, report


def systems(*answers: Answer) -> dict[str, dict[str, list[Answer]]]:
    return group_answers(answers)


def test_speedups_are_geometric_means_over_prompts() -> None:
    """Guards arithmetic means, which one fast prompt carries, and ratios of sums, which the longest one carries."""
    found = systems(
        answer("p", "base", report(4.0, tokens=20, steps=20)),
        answer("q", "base", report(1.0, tokens=10, steps=10)),
        answer("p", "own", report(1.0, tokens=10, steps=5, tags=5)),
        answer("q", "own", report(2.0, tokens=10, steps=5, tags=5)),
    )
    figures = speed(found["own"], found["base"], ["p", "q"], seed=0)
    assert figures.wall_speedup is not None
    assert figures.wall_speedup.value == pytest.approx(math.sqrt(4.0 * 0.5))
    assert figures.wall_speedup.low == pytest.approx(0.5)
    assert figures.wall_speedup.high == pytest.approx(4.0)
    assert figures.token_speedup is not None
    assert figures.token_speedup.value == pytest.approx(math.sqrt(2.0 * 0.5)), "half as long is no gain"
    assert figures.step_speedup is not None
    assert figures.step_speedup.value == pytest.approx(math.sqrt(4.0 * 2.0))
    assert figures.theoretical_speedup is not None
    assert figures.theoretical_speedup.value == pytest.approx(2.0)
    assert figures.realised_over_theoretical == pytest.approx(1.0 / 2.0)
    assert figures.share_slower == 0.5
    assert figures.tag_share == pytest.approx(10 / 30)
    assert figures.latency_s is not None
    assert figures.latency_s.p50 == pytest.approx(1.5)
    assert figures.ttft_s is not None
    assert figures.ttft_s.p90 == pytest.approx(0.19)
    assert figures.ms_per_step == pytest.approx((1000 / 4 + 2000 / 4) / 2)
    assert wall_speedups(found["own"], found["base"], ["p", "q"]) == pytest.approx({"p": 4.0, "q": 0.5})


def test_repetitions_are_no_further_prompts() -> None:
    """Guards confidence that grows by asking the same prompt again."""
    twice = [
        answer(prompt, name, report(seconds * factor), repetition)
        for prompt, factor in (("p", 1.0), ("q", 2.0))
        for repetition in range(2)
        for name, seconds in (("base", 2.0), ("own", 1.0 + repetition))
    ]
    found = systems(*twice)
    figures = speed(found["own"], found["base"], ["p", "q"], seed=0)
    assert figures.wall_speedup is not None
    assert figures.wall_speedup.value == pytest.approx(math.sqrt(2.0 * 1.0))
    assert figures.wall_speedup.low == pytest.approx(figures.wall_speedup.high), "both prompts say the same"


def test_answers_that_loop_or_were_cut_are_in_one_view_only() -> None:
    """Guards a loop decoded in parallel that is counted as a speedup without a word."""
    found = systems(
        answer("good", "base", report(2.0)),
        answer("loop", "base", report(8.0)),
        answer("cut", "base", report(8.0, reason="length")),
        answer("refused", "base", None),
        answer("alone", "base", report(8.0)),
        answer("good", "own", report(1.0)),
        answer("loop", "own", report(1.0, text=LOOP)),
        answer("cut", "own", report(1.0)),
        answer("refused", "own", report(1.0)),
    )
    prompts = ["good", "loop", "cut", "refused", "alone", "unseen"]
    assert shared_prompts(found["own"], found["base"], prompts) == (["good", "loop", "cut"], ["good"])
    views = speed_views(found["own"], found["base"], prompts, seed=0)
    assert (views.all.num_prompts, views.clean.num_prompts) == (3, 1)
    assert views.clean.wall_speedup is not None
    assert views.clean.wall_speedup.value == pytest.approx(2.0)
    empty = speed_views(found["own"], found["base"], ["alone"], seed=0)
    assert (empty.all.num_prompts, empty.all.wall_speedup) == (0, None)


def test_an_interval_is_seeded_and_covers_the_truth() -> None:
    logs = [0.1 * (n % 7) for n in range(70)]
    first = bootstrap(logs, seed=3)
    assert first is not None
    assert first == bootstrap(logs, seed=3) != bootstrap(logs, seed=4)
    assert first.low < math.exp(0.3) < first.high
    assert math.log(first.high / first.low) == pytest.approx(2 * 1.96 * 0.2 / math.sqrt(70), rel=0.1)
    assert bootstrap([], seed=0) is None


def test_counts_tell_finished_cut_looping_refused_and_missing() -> None:
    given = [
        answer("a", "s", report(bodies=[body(10, 8), body(10, 64, "length", 2)])),
        answer("b", "s", report(text=LOOP, reason="length")),
        answer("c", "s", None),
    ]
    counts = count_answers(given, num_wanted=5)
    assert (counts.answers, counts.finished, counts.cut, counts.loops, counts.refused) == (3, 1, 1, 1, 1)
    assert (counts.missing, counts.bodies, counts.bodies_cut, counts.violations) == (2, 2, 1, 0)


def test_length_errors_are_those_of_predicted_bodies_that_ended() -> None:
    """Guards bodies that a budget cut, whose length nobody knows, and lengths that no model predicted."""
    given = [
        answer("a", "s", report(bodies=[body(20, 15), body(20, 30, "stop", 2), body(20, 84, "length", 3)])),
        answer("b", "s", report(bodies=[body(40, 20)])),
        answer("c", "s", report(method="sot", bodies=[body(900, 20)])),
    ]
    error = length_error(given)
    assert error is not None
    assert (error.num_bodies, error.median_tokens) == (3, 10.0)
    assert error.median_share == pytest.approx(1 / 3)
    assert (error.share_right, error.share_short) == (pytest.approx(1 / 3), pytest.approx(1 / 3))
    assert length_error(given[2:]) is None


def test_equal_texts_are_counted_by_prompt_and_repetition() -> None:
    found = systems(
        answer("p", "a", report(text="x")),
        answer("q", "a", report(text="y")),
        answer("p", "b", report(text="x")),
        answer("q", "b", report(text="z")),
        answer("r", "c", report(text="x")),
    )
    assert same_texts(found) == {"a": {"b": 0.5}, "b": {"a": 0.5}, "c": {}}
