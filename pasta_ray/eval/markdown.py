"""`report.md`: a report's figures as tables, each with what it is measured against."""

from collections.abc import Callable, Iterator, Sequence

from pasta_ray.eval.figures import EvalReport, Interval, LoadPoint, Percentiles, Preference, Speed, SystemReport
from pasta_ray.eval.published import PUBLISHED

VIEWS = ("all", "clean")
NONE = "–"

Row = Sequence[str]


def to_markdown(report: EvalReport, plots: Sequence[str] = ()) -> str:
    """``plots`` are names of picture files beside the report."""
    sections = (_speed, _answers, _quality, _load, _categories) if report.told.plan.repetitions else (_load,)
    parts = [*_head(report), *(part for section in sections for part in section(report))]
    if plots:
        parts += ["## Pictures", *(f"![{name}]({name})" for name in plots)]
    return "\n\n".join(parts) + "\n"


def table(head: Row, rows: Sequence[Row]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '∣') for cell in line)} |" for line in lines)


def _head(report: EvalReport) -> Iterator[str]:
    plan, machine = report.told.plan, report.sittings[0].machine if report.sittings else None
    yield "# Evaluation"
    how = "greedy" if plan.temperature == 0 else f"temperature {plan.temperature:g}, top-p {plan.top_p:g}"
    numerics = f"{plan.dtype}{f', {plan.quantization}' if plan.quantization else ''}"
    if all(system.base_url for system in plan.systems):
        numerics = f"asked at {', '.join(sorted({system.base_url or '' for system in plan.systems}))}"
    at_once = "one request at a time" if plan.workers == 1 else f"{plan.workers} workers with a request at a time each"
    times = f"{plan.repetitions} repetition(s), {at_once}" if plan.repetitions else "under load alone"
    yield (
        f"{report.num_prompts} prompts ({plan.prompts}), {times}, {how}, at most {plan.max_tokens} tokens, {numerics}."
        f" Systems are compared with **{report.baseline}**."
    )
    if machine:
        loads = ", ".join(
            f"{sitting.load_average:.1f}" for sitting in report.sittings if sitting.load_average is not None
        )
        yield (
            f"Machine: {machine.processor}, {machine.usable_cores} of {machine.cores} cores, {machine.threads} threads,"
            f" {machine.bandwidth_gb_s:.1f} GB/s; commit {machine.commit}, torch {machine.versions.get('torch')};"
            f" {machine.date}; measured in {len(report.sittings)} sitting(s), load average at the start"
            f" {loads or NONE}."
        )
    if len({_same_machine(sitting.machine) for sitting in report.sittings}) > 1:
        yield "**The sittings were not all on the same machine and commit: times are not comparable.**"
    if not report.complete:
        yield "**Not all answers are there yet, or not all of the load.**"


def _same_machine(machine: object) -> tuple[object, ...]:
    return tuple(getattr(machine, name) for name in ("processor", "usable_cores", "threads", "commit"))


def _speed(report: EvalReport) -> Iterator[str]:
    yield "## Speed"
    yield (
        "Geometric means over prompts with 95 % bootstrap intervals; above 1 is faster than the baseline. *Clean*: only"
        " prompts where no answer of system or baseline was cut off or repeats itself."
    )
    head = ["system", "prompts", "wall-clock", "a token", "steps", "theoretical", "realised", "slower"]
    for view in VIEWS:
        yield f"### {view.capitalize()}"
        yield table(head, [[name, *_speed_row(getattr(own.speed, view))] for name, own in report.systems.items()])
    head = ["system", "p50 s", "p90 s", "p99 s", "first text p50 s", "p90 s", "ms a step", "tokens", "tags"]
    for view in VIEWS:
        yield f"### Latency, {view}"
        yield table(head, [[name, *_latency_row(getattr(own.speed, view))] for name, own in report.systems.items()])


def _speed_row(speed: Speed) -> Row:
    intervals = (speed.wall_speedup, speed.token_speedup, speed.step_speedup, speed.theoretical_speedup)
    shares = (speed.realised_over_theoretical, speed.share_slower)
    return [str(speed.num_prompts), *map(interval, intervals), *map(percent, shares)]


def _latency_row(speed: Speed) -> Row:
    latency, ttft = _percentiles(speed.latency_s), _percentiles(speed.ttft_s)
    rest = (number(speed.ms_per_step, 1), number(speed.visible_tokens, 0), percent(speed.tag_share))
    return [*latency, *ttft[:2], *rest]


def _percentiles(found: Percentiles | None) -> list[str]:
    return [number(getattr(found, name) if found else None, 2) for name in ("p50", "p90", "p99")]


def _answers(report: EvalReport) -> Iterator[str]:
    yield "## Answers"
    names = ["answers", "finished", "cut", "loops", "refused", "missing", "bodies", "bodies_cut", "violations"]
    yield table(
        ["system", *(name.replace("_", " ") for name in names)],
        [[name, *(str(getattr(own.counts, field)) for field in names)] for name, own in report.systems.items()],
    )
    head = ["system", "no body", "one", "several", "bodies", "off by", "relative", "right", "too short"]
    for view in VIEWS:
        yield f"### Steps and bodies, {view}"
        yield "Model steps of an answer, by the bodies that are open, and how well bodies' lengths were predicted."
        yield table(head, [[name, *_anatomy_row(getattr(own.speed, view))] for name, own in report.systems.items()])
    if same := [[name, *_same_row(own, report)] for name, own in report.systems.items()]:
        yield "Answers that are another system's, letter by letter:"
        yield table(["system", *report.systems], same)


def _anatomy_row(speed: Speed) -> Row:
    steps, error = speed.anatomy, speed.length_error
    names = ("no_body", "one_body", "several_bodies")
    cells = [number(getattr(steps, name) if steps else None, 1) for name in names]
    if error is None:
        return [*cells, *[NONE] * 5]
    shares = (error.median_share, error.share_right, error.share_short)
    return [*cells, str(error.num_bodies), f"{error.median_tokens:g} tokens", *map(percent, shares)]


def _same_row(own: SystemReport, report: EvalReport) -> Row:
    return [percent(own.same_text.get(other)) for other in report.systems]


def _quality(report: EvalReport) -> Iterator[str]:
    yield "## Quality"
    if report.judge_error:
        yield f"**Judging ended early: {report.judge_error}**"
    if report.judge is None:
        yield "No judge has compared the answers."
    else:
        yield _judge_line(report)
        head = ["system", "verdicts", "missed", "win rate", "±", "length-controlled", "points", "longer"]
        for view in VIEWS:
            judged = [(name, own.quality) for name, own in report.systems.items() if own.quality]
            opponent = judged[0][1].opponent if judged else NONE
            yield f"### Against {opponent}, {view}"
            yield table(head, [[name, *_preference_row(getattr(quality, view))] for name, quality in judged])
    if found := [(name, own.perplexity) for name, own in report.systems.items() if own.perplexity]:
        yield "Perplexity of the answers under the model without adapter (loops are likely: see clean):"
        rows = [[name, number(own.all, 2), number(own.clean, 2)] for name, own in found]
        yield table(["system", *VIEWS], rows)
    lines = (
        f"{paper.name} ({paper.setting}): {paper.slowest[0]}× at {paper.slowest[1]:+} points to {paper.fastest[0]}× at"
        f" {paper.fastest[1]:+} points"
        for paper in PUBLISHED
    )
    yield "For reference, as published, on other models and machines: " + "; ".join(lines) + "."


def _judge_line(report: EvalReport) -> str:
    judge = report.judge
    assert judge
    if judge.human_agreement is None:
        worth = "How often it agrees with people was **not measured**."
    else:
        worth = (
            f"It sides with the majority of people in {percent(judge.human_agreement)} of {judge.num_human_pairs}"
            f" pairs; always taking the longer answer does in {percent(judge.longer_agreement)}."
        )
    return f"Judge: **{judge.name}**. {judge.what_it_is} {worth}"


def _preference_row(found: Preference) -> Row:
    controlled = found.length_controlled
    rates = (percent(found.win_rate), percent(found.standard_error))
    points = NONE if found.points is None else f"{found.points:+.1f}"
    return [
        str(found.num),
        str(found.num_missed),
        *rates,
        percent(controlled.win_rate if controlled else None),
        points,
        percent(found.share_longer),
    ]


def _load(report: EvalReport) -> Iterator[str]:
    if not report.load:
        return
    yield "## Under load"
    yield (
        "So many requests at once, each followed by the next as soon as its answer is there: visible tokens a second of"
        " all answers together, and seconds of a whole answer."
    )
    levels = sorted({point.concurrency for point in report.load})
    found = {(point.system, point.concurrency): point for point in report.load}
    names = [name for name in report.systems if any(point.system == name for point in report.load)]
    cells: Sequence[tuple[str, Callable[[LoadPoint], str]]] = (
        ("tokens/s", lambda point: number(point.tokens_per_s, 0)),
        ("p50 s", lambda point: number(point.latency_s.p50, 2)),
        ("p90 s", lambda point: number(point.latency_s.p90, 2)),
        ("first text p50 s", lambda point: number(point.ttft_s.p50, 2)),
    )
    for title, cell in cells:
        rows = [
            [name, *(cell(found[name, level]) if (name, level) in found else NONE for level in levels)]
            for name in names
        ]
        yield table([f"{title}, requests at once:", *map(str, levels)], rows)


def _categories(report: EvalReport) -> Iterator[str]:
    categories = next(iter(report.systems.values())).by_category
    if not categories:
        return
    yield "## By category"
    yield "Wall-clock speedup over all prompts of a category, and over its clean ones."

    def cell(speed: Speed) -> str:
        return f"{interval(speed.wall_speedup)} (n={speed.num_prompts})"

    cells: Sequence[tuple[str, Callable[[SystemReport, str], Speed]]] = (
        ("all", lambda own, category: own.by_category[category].all),
        ("clean", lambda own, category: own.by_category[category].clean),
    )
    for view, speed in cells:
        yield f"### {view.capitalize()}, by category"
        rows = [
            [name, *(cell(speed(own, category)) for category in categories)] for name, own in report.systems.items()
        ]
        yield table(["system", *categories], rows)


def interval(found: Interval | None) -> str:
    return f"{found.value:.2f}× [{found.low:.2f}, {found.high:.2f}]" if found else NONE


def percent(value: float | None) -> str:
    return NONE if value is None else f"{100 * value:.1f} %"


def number(value: float | None, digits: int) -> str:
    return NONE if value is None else f"{value:.{digits}f}"
