"""A report's pictures. Colours and markers both tell systems apart."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pasta_ray.eval.figures import EvalReport, Preference
from pasta_ray.eval.published import PUBLISHED
from pasta_ray.train.curves import COLOURS

MARKERS = "osD^vP*X"
PARETO, SPEEDUPS, ANATOMY, LOAD = "pareto.png", "speedups.png", "anatomy.png", "load.png"


def draw_all(report: EvalReport, speedups: Mapping[str, Mapping[str, float]], folder: Path) -> list[str]:
    """PNG files in ``folder``; their names. ``speedups`` has each system's by prompt id."""
    drawn = []
    if any(_point(report, name) for name in report.systems):
        _draw(folder / PARETO, "Quality against speed", lambda axes: draw_pareto(axes, report))
        drawn.append(PARETO)
    others = {name: list(own.values()) for name, own in speedups.items() if own and name != report.baseline}
    if others:
        title = f"Speedup over {report.baseline}, prompt by prompt"
        _draw(folder / SPEEDUPS, title, lambda axes: draw_speedups(axes, others))
        drawn.append(SPEEDUPS)
    if any(own.speed.all.anatomy for own in report.systems.values()):
        _draw(folder / ANATOMY, "Model steps of an answer", lambda axes: draw_anatomy(axes, report))
        drawn.append(ANATOMY)
    if report.load:
        _draw(folder / LOAD, "Throughput under load", lambda axes: draw_load(axes, report))
        drawn.append(LOAD)
    return drawn


def pareto_front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Names of the points (speed, quality) that no other beats in one and equals in the other, by rising speed."""

    def beaten(own: tuple[float, float]) -> bool:
        return any(all(a >= b for a, b in zip(other, own, strict=True)) and other != own for other in points.values())

    return sorted((name for name, point in points.items() if not beaten(point)), key=lambda name: points[name])


def draw_pareto(axes: Axes, report: EvalReport) -> None:
    points = {name: point for name in report.systems if (point := _point(report, name))}
    for number, (name, (x, y)) in enumerate(points.items()):
        speed, quality = report.systems[name].speed.all.wall_speedup, report.systems[name].quality
        bars = [[x - speed.low], [speed.high - x]] if speed else None
        error = quality.all.standard_error if quality else None
        axes.errorbar(
            [x],
            [y],
            xerr=bars,
            yerr=None if error is None else 196 * error,
            **_style(number),
            markersize=8,
            linestyle="none",
            capsize=3,
            label=name,
        )
    front = [points[name] for name in pareto_front(points)]
    axes.step([x for x, _ in front], [y for _, y in front], where="post", color="grey", linewidth=1, label="front")
    for paper, dashes in zip(PUBLISHED, ("--", ":"), strict=True):
        ends = (paper.slowest, paper.fastest)
        axes.plot(*zip(*ends, strict=True), dashes, color="grey", marker=".", label=f"{paper.name}, published")
    axes.axhline(0, color="grey", linewidth=0.5)
    axes.axvline(1, color="grey", linewidth=0.5)
    axes.set_xlabel(f"wall-clock speedup over {report.baseline}")
    judge = report.judge.name if report.judge else "no judge"
    axes.set_ylabel(f"win rate, points over {report.baseline} ({judge})")


def draw_speedups(axes: Axes, speedups: Mapping[str, Sequence[float]]) -> None:
    """Each system's share of prompts that are sped up by less than x."""
    for number, (name, values) in enumerate(speedups.items()):
        ordered = sorted(values)
        shares = [(place + 1) / len(ordered) for place in range(len(ordered))]
        axes.step(ordered, shares, where="post", label=name, markersize=4, **_style(number))
    axes.axvline(1, color="grey", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xlabel("speedup (left of the line: slower)")
    axes.set_ylabel("share of prompts")


def draw_anatomy(axes: Axes, report: EvalReport) -> None:
    """Bars of the steps without, with one and with several open bodies."""
    names = [name for name, own in report.systems.items() if own.speed.all.anatomy]
    left = [0.0] * len(names)
    for number, (field, label) in enumerate(
        (("no_body", "no body"), ("one_body", "one body"), ("several_bodies", "several bodies"))
    ):
        widths = [getattr(report.systems[name].speed.all.anatomy, field) for name in names]
        hatch = ("", "//", "..")[number]
        axes.barh(names, widths, left=left, color=COLOURS[number + 1], hatch=hatch, edgecolor="white", label=label)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("steps, mean over answers")


def draw_load(axes: Axes, report: EvalReport) -> None:
    """Visible tokens a second against requests at once."""
    for number, name in enumerate(report.systems):
        points = sorted((point.concurrency, point.tokens_per_s) for point in report.load if point.system == name)
        if points:
            axes.plot(*zip(*points, strict=True), label=name, **_style(number))
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("requests at once")
    axes.set_ylabel("visible tokens a second")


def _point(report: EvalReport, name: str) -> tuple[float, float] | None:
    """Speedup and points of a system; the baseline is where both begin."""
    own = report.systems[name]
    if name == report.baseline:
        return (1.0, 0.0) if any(system.quality for system in report.systems.values()) else None
    found: Preference | None = own.quality.all if own.quality else None
    speed = own.speed.all.wall_speedup
    return (speed.value, found.points) if speed and found and found.points is not None else None


def _style(number: int) -> dict[str, Any]:
    """Of a report's system: no two share colour and marker."""
    turn, colour = divmod(number, len(COLOURS))
    return {"color": COLOURS[colour], "marker": MARKERS[(colour + 3 * turn) % len(MARKERS)]}


def _draw(path: Path, title: str, draw: Callable[[Axes], None]) -> None:
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(1, 1, 1)
    axes.set_title(title, fontsize="medium")
    axes.grid(alpha=0.3)
    draw(axes)
    figure.legend(fontsize="small", loc="outside right upper")
    figure.savefig(path, dpi=130)
