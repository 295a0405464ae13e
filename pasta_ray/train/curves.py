"""A run's curves as a picture."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Okabe and Ito's colours, which people with any kind of colour vision tell apart (https://jfly.uni-koeln.de/color).
COLOURS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#D55E00", "#CC79A7", "#0072B2", "#F0E442")
LOSSES, BESIDE = ("loss", "val_loss"), ("step", "num_steps", "num_workers")
WIDTH = 3  # panels side by side
SMOOTHED = 40  # a curve of many steps is drawn as means of that many stretches, over its own pale points


def draw_curves(steps: Sequence[Mapping[str, float]], path: Path, title: str) -> None:
    """PNG of every metric over the steps: all losses in one panel, held-out ones in a second, the rest in one each."""
    names = sorted({name for metrics in steps for name in metrics} - set(BESIDE))
    panels: dict[str, list[str]] = {}
    for name in names:
        family = next((loss for loss in LOSSES if name == loss or name.startswith(f"{loss}_")), name)
        panels.setdefault(family, []).append(name)
    order = sorted(panels, key=lambda family: (family not in LOSSES, family))
    rows = -(-len(order) // WIDTH)
    figure = Figure(figsize=(4 * WIDTH, 2.8 * max(1, rows)), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    for index, family in enumerate(order):
        _draw(figure.add_subplot(rows, WIDTH, index + 1), steps, panels[family], family)
    figure.savefig(path, dpi=110)


def _draw(axes: Axes, steps: Sequence[Mapping[str, float]], names: Sequence[str], family: str) -> None:
    for name, colour in zip(names, COLOURS, strict=False):
        points = [(metrics["step"], metrics[name]) for metrics in steps if math.isfinite(metrics.get(name, math.nan))]
        means = stretches(points)
        if len(means) < len(points):
            axes.plot(*zip(*points, strict=True), ".", color=colour, alpha=0.2, markersize=2)
        if means:
            axes.plot(*zip(*means, strict=True), "-", color=colour, label=name, linewidth=1.5)
    axes.set_title(family, fontsize="medium")
    axes.set_xlabel("step", fontsize="small")
    axes.grid(alpha=0.3)
    if len(names) > 1:
        axes.legend(fontsize="x-small")


def stretches(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Means of equal runs of points, at most ``SMOOTHED`` of them; fewer points are themselves."""
    size = max(1, -(-len(points) // SMOOTHED))
    runs = [points[at : at + size] for at in range(0, len(points), size)]
    return [(sum(x for x, _ in run) / len(run), sum(y for _, y in run) / len(run)) for run in runs]
