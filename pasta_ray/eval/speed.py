"""Speed, from the answers alone: pure functions, the same figures whoever computes them again.

A prompt's ratio is the geometric mean over its repetitions; figures are over prompts, which is also what the bootstrap
draws from: repetitions of a prompt are no independent evidence.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from pasta_ray.engine.messages import Report
from pasta_ray.eval.answers import Answer, BySystem
from pasta_ray.eval.figures import Anatomy, Counts, Interval, LengthError, Percentiles, Speed, Views

NUM_RESAMPLES = 2000
PREDICTING = ("pasta", "pasta+speculative")  # methods whose model says how long a body gets
TEN = 10

Answers = Mapping[str, Sequence[Answer]]  # of one system, by prompt id
Measure = Callable[[Report], float]


def bootstrap(logs: Sequence[float], seed: int) -> Interval | None:
    """Geometric mean of exp(logs) with its 95 % percentile interval (Efron 1979); None for no values."""
    if not logs:
        return None
    values = np.array(logs)
    drawn = np.random.default_rng(seed).integers(len(values), size=(NUM_RESAMPLES, len(values)))
    low, high = np.percentile(values[drawn].mean(axis=1), (2.5, 97.5)).tolist()
    return Interval(value=math.exp(values.mean()), low=math.exp(low), high=math.exp(high))


def shared_prompts(own: Answers, baseline: Answers, prompts: Iterable[str]) -> tuple[list[str], list[str]]:
    """Of ``prompts``: those that both systems have answered in every repetition of either, and those of them where no
    answer was cut off or loops."""
    both = [id_ for id_ in prompts if id_ in own and id_ in baseline and len(own[id_]) == len(baseline[id_])]
    answered = [id_ for id_ in both if all(answer.report for answer in (*own[id_], *baseline[id_]))]
    clean = [id_ for id_ in answered if all(answer.is_clean for answer in (*own[id_], *baseline[id_]))]
    return answered, clean


def speed_views(own: Answers, baseline: Answers, prompts: Iterable[str], seed: int) -> Views:
    answered, clean = shared_prompts(own, baseline, prompts)
    return Views(all=speed(own, baseline, answered, seed), clean=speed(own, baseline, clean, seed))


def speed(own: Answers, baseline: Answers, prompts: Sequence[str], seed: int) -> Speed:
    """Over ``prompts``, all of which both have answered."""
    if not prompts:
        return Speed(num_prompts=0)
    wall = _log_ratios(own, baseline, prompts, lambda report: report.timing.wall_s)
    token = _log_ratios(own, baseline, prompts, _seconds_a_token)
    step = _log_ratios(own, baseline, prompts, lambda report: report.parallel.critical_path)
    theory = [_log_mean(own[id_], _theoretical) for id_ in prompts]
    theory_before = [_log_mean(baseline[id_], _theoretical) for id_ in prompts]
    answers = [answer for id_ in prompts for answer in own[id_]]
    reports = [answer.report for answer in answers if answer.report]
    visible = [report.usage.completion_tokens for report in reports]
    tags = sum(report.usage.annotation_tokens for report in reports)
    return Speed(
        num_prompts=len(prompts),
        wall_speedup=bootstrap(wall, seed),
        token_speedup=bootstrap(token, seed),
        step_speedup=bootstrap(step, seed),
        theoretical_speedup=bootstrap(theory, seed),
        realised_over_theoretical=math.exp(
            statistics.fmean(token) - statistics.fmean(theory) + statistics.fmean(theory_before)
        ),
        share_slower=sum(ratio < 0 for ratio in wall) / len(wall),
        latency_s=percentiles([report.timing.wall_s for report in reports]),
        ttft_s=percentiles([report.timing.ttft_s for report in reports]),
        ms_per_step=statistics.median(_ms_a_step(report) for report in reports),
        visible_tokens=statistics.fmean(visible),
        tag_share=tags / max(1, tags + sum(visible)),
        anatomy=anatomy(answers),
        length_error=length_error(answers),
    )


def wall_speedups(own: Answers, baseline: Answers, prompts: Iterable[str]) -> dict[str, float]:
    """Each shared prompt's speedup, for its distribution."""
    answered, _ = shared_prompts(own, baseline, prompts)
    logs = _log_ratios(own, baseline, answered, lambda report: report.timing.wall_s)
    return dict(zip(answered, map(math.exp, logs), strict=True))


def percentiles(values: Sequence[float]) -> Percentiles:
    p50, p90, p99 = np.percentile(values, (50, 90, 99)).tolist()
    return Percentiles(p50=p50, p90=p90, p99=p99)


def count_answers(answers: Sequence[Answer], num_wanted: int) -> Counts:
    reports = [answer.report for answer in answers if answer.report]
    bodies = [branch for report in reports for branch in report.branches if branch.parent]
    return Counts(
        answers=len(answers),
        finished=sum(answer.is_finished for answer in answers),
        cut=sum(report.finish_reason != "stop" for report in reports),
        loops=sum(answer.loops for answer in answers),
        refused=sum(answer.report is None for answer in answers),
        missing=num_wanted - len(answers),
        bodies=len(bodies),
        bodies_cut=sum(body.finish_reason == "length" for body in bodies),
        violations=sum(report.parallel.num_violations for report in reports),
    )


def length_error(answers: Iterable[Answer]) -> LengthError | None:
    """Of bodies that ended by themselves: of one that was cut nobody knows the length."""
    pairs = [
        (branch.tokens_predicted, branch.tokens)
        for answer in answers
        if answer.report and answer.report.method in PREDICTING
        for branch in answer.report.branches
        if branch.tokens_predicted and branch.finish_reason == "stop"
    ]
    if not pairs:
        return None
    return LengthError(
        num_bodies=len(pairs),
        median_tokens=statistics.median(abs(predicted - tokens) for predicted, tokens in pairs),
        median_share=statistics.median(abs(predicted - tokens) / tokens for predicted, tokens in pairs),
        share_right=statistics.fmean(0 <= predicted - tokens < TEN for predicted, tokens in pairs),
        share_short=statistics.fmean(tokens > predicted for predicted, tokens in pairs),
    )


def anatomy(answers: Iterable[Answer]) -> Anatomy | None:
    """None where there are no answers. A body is open from its first step to its last, whatever its siblings do."""
    reports = [answer.report for answer in answers if answer.report]
    if not reports:
        return None
    steps = [0, 0, 0]
    for report in reports:
        bodies = [branch for branch in report.branches if branch.parent]
        for step in range(1, max((branch.last_step for branch in report.branches), default=0) + 1):
            steps[min(2, sum(body.first_step <= step <= body.last_step for body in bodies))] += 1
    no_body, one_body, several = (number / len(reports) for number in steps)
    return Anatomy(no_body=no_body, one_body=one_body, several_bodies=several)


def same_texts(systems: BySystem) -> dict[str, dict[str, float]]:
    """Share of answers whose text is another system's, letter by letter, for each pair of systems."""
    texts = {
        name: {
            (answer.prompt_id, answer.repetition): answer.report.text
            for several in answers.values()
            for answer in several
            if answer.report
        }
        for name, answers in systems.items()
    }
    return {
        name: {
            other: _share_equal(own, theirs)
            for other, theirs in texts.items()
            if other != name and own.keys() & theirs.keys()
        }
        for name, own in texts.items()
    }


def _share_equal(own: Mapping[tuple[str, int], str], theirs: Mapping[tuple[str, int], str]) -> float:
    both = own.keys() & theirs.keys()
    return sum(own[key] == theirs[key] for key in both) / len(both)


def _log_ratios(own: Answers, baseline: Answers, prompts: Sequence[str], measure: Measure) -> list[float]:
    """log(baseline / own) of each prompt."""
    return [_log_mean(baseline[id_], measure) - _log_mean(own[id_], measure) for id_ in prompts]


def _log_mean(answers: Sequence[Answer], measure: Measure) -> float:
    return statistics.fmean(math.log(max(measure(answer.report), 1e-9)) for answer in answers if answer.report)


def _theoretical(report: Report) -> float:
    return report.parallel.theoretical_speedup


def _seconds_a_token(report: Report) -> float:
    return report.timing.wall_s / max(1, report.usage.completion_tokens)


def _ms_a_step(report: Report) -> float:
    """Behind the prefill, which is one step of another kind."""
    return 1000 * (report.timing.wall_s - report.timing.prefill_s) / max(1, report.parallel.critical_path - 1)
