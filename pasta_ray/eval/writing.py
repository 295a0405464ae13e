"""A report's files: JSON, Markdown and pictures."""

from importlib.util import find_spec

from pasta_ray.errors import InputError
from pasta_ray.eval.figures import EvalReport
from pasta_ray.eval.folder import EvalFolder, write_whole
from pasta_ray.eval.markdown import to_markdown
from pasta_ray.eval.report import Found
from pasta_ray.eval.speed import wall_speedups


def check_packages() -> None:
    """Raises InputError where what the pictures need is not installed: better before the answers than after."""
    if find_spec("matplotlib") is None:
        raise InputError("the report's pictures need matplotlib: pip install 'pasta-ray[eval]'")


def write_report(report: EvalReport, found: Found, folder: EvalFolder) -> None:
    """`report.json` first: pictures need matplotlib. Raises InputError where that is not installed."""
    write_whole(folder.report, report.model_dump_json(indent=1) + "\n")
    write_whole(folder.markdown, to_markdown(report))
    check_packages()
    from pasta_ray.eval.plots import draw_all

    prompts = [prompt.id for prompt in found.prompts]
    baseline = found.systems[report.baseline]
    speedups = {name: wall_speedups(own, baseline, prompts) for name, own in found.systems.items()}
    write_whole(folder.markdown, to_markdown(report, draw_all(report, speedups, folder.path)))
