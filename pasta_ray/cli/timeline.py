"""A finished answer's branches as bars over its steps, and what forking gained."""

from rich.bar import Bar
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pasta_ray.cli.live import branch_style, printable
from pasta_ray.engine.messages import Report

NARROWEST_BAR = 10


def timeline(report: Report) -> RenderableType:
    """One line a branch where there are several, and a summary."""
    if len(report.branches) < 2:
        return Text(_summary(report), style="dim")
    num_steps = max(branch.last_step for branch in report.branches)
    table = Table.grid(padding=(0, 1), expand=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True, overflow="ellipsis", max_width=24)
    table.add_column(ratio=1, min_width=NARROWEST_BAR)
    table.add_column(justify="right", no_wrap=True)
    bodies = 0
    for branch in sorted(report.branches, key=lambda branch: [int(part) for part in branch.id.split(".")]):
        bodies += branch.parent is not None
        number = bodies if branch.parent is not None else 0
        style = branch_style(number)
        table.add_row(
            Text(str(number or ""), style),
            Text("main" if not number else printable(branch.topic or "body"), style),
            Bar(num_steps, branch.first_step - 1, branch.last_step, color=style.color or "default"),
            Text(f"{branch.tokens} tokens", style="dim"),
        )
    return Group(table, Text(_summary(report), style="dim"))


def _summary(report: Report) -> str:
    usage, timing, parallel = report.usage, report.timing, report.parallel
    cut = ", cut off at the limit" if report.finish_reason == "length" else ""
    clock = f"{report.method}: {usage.completion_tokens} tokens in {timing.wall_s:.2f} s{cut}"
    if not parallel.num_promises:
        return clock
    promises = "1 promise" if parallel.num_promises == 1 else f"{parallel.num_promises} promises"
    return (
        f"{clock}; {promises}, critical path {parallel.critical_path} of {parallel.sequential_tokens} steps:"
        f" {parallel.theoretical_speedup:.2f}× in theory"
    )
