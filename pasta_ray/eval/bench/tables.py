"""A result for people."""

from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from pasta_ray.eval.bench.figures import Result


def print_result(result: Result) -> None:
    """On standard output: figures with their spread, ratios, and what they hold for."""
    console = Console()
    figures = Table("figure", title=f"bench {result.benchmark}")
    for column in ("median", "p10", "p90"):
        figures.add_column(column, justify="right")
    figures.add_column("unit")
    for name, figure in result.figures.items():
        spread = (figure.median, figure.p10, figure.p90)
        figures.add_row(name, *(_number(value) for value in spread), figure.unit)
    ratios = Table("ratio of medians")
    ratios.add_column("value", justify="right")
    for name, ratio in result.ratios.items():
        ratios.add_row(name, _number(ratio.value))
    console.print(figures, ratios)
    for title, facts in (("settings", result.settings), ("machine", asdict(result.machine))):
        text = ", ".join(f"{name} {_fact(value)}" for name, value in facts.items())
        console.print(f"{title}: {text}", highlight=False, markup=False)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _fact(value: object) -> str:
    return f"{value:.1f}" if isinstance(value, float) else str(value)
