"""`pasta-ray eval`: systems against each other on the same prompts, and reports of it."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from pasta_ray.errors import InputError

if TYPE_CHECKING:
    from pasta_ray.eval.figures import EvalReport
    from pasta_ray.eval.folder import EvalFolder
    from pasta_ray.eval.plan import EvalPlan

DEFAULT_METHODS = "sequential,speculative,sot,pasta,pasta+speculative"


class RunByDefault(TyperGroup):
    """`eval --prompts …` is `eval run --prompts …`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0].startswith("-") and args[0] not in ("-h", "--help"):
            args = ["run", *args]
        return super().parse_args(ctx, args)


eval_app = typer.Typer(
    cls=RunByDefault,
    help="Quality against speed: every system on the same prompts and machine. Without a command: run.",
    no_args_is_help=True,
)

JsonOption = Annotated[bool, typer.Option("--json", help="Print the report as JSON.")]


@eval_app.command()
def run(
    out: Annotated[Path, typer.Option(help="Folder of the evaluation; one that was cut off goes on.")],
    config: Annotated[Path | None, typer.Option(help="YAML file of the plan.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="FIELD=VALUE, any field of the plan.")] = None,
    prompts: Annotated[
        str | None, typer.Option(help="JSONL of id and instruction, AlpacaEval's JSON, or `alpacaeval`: the hub's.")
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(help=f"Usual systems, with commas, the baseline first.  [default: {DEFAULT_METHODS}]"),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="So many of the prompts, evenly spaced.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Answer every prompt with every system, in turn, then write report.json, report.md and plots."""
    from pasta_ray.eval.folder import EvalFolder

    plan = _plan(config, set_ or [], prompts, methods, limit)
    folder = EvalFolder(out)
    with folder.lock():
        _answer(plan, folder)
        report = _report(folder, judge=True)
    _show(report, folder, as_json)


@eval_app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="Of an evaluation.")],
    judge: Annotated[
        bool, typer.Option(help="Judge as the plan says; verdicts that are there are not asked for.")
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Write report.json, report.md and plots anew, from the answers that are there."""
    from pasta_ray.eval.folder import EvalFolder

    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    kept = EvalFolder(folder)
    with kept.lock():
        written = _report(kept, judge=judge)
    _show(written, kept, as_json)


@eval_app.command()
def diff(
    before: Annotated[Path, typer.Argument(help="A report, or its folder.")],
    after: Annotated[Path, typer.Argument(help="Another.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the differences as JSON.")] = False,
) -> None:
    """What has changed between two reports, figure by figure, for the systems of one name."""
    from pasta_ray.eval.diff import diff_reports, read_report

    found = diff_reports(read_report(before), read_report(after))
    if as_json:
        typer.echo(found.model_dump_json())
        return
    for label, names in (
        ("unlike", found.unlike),
        ("only before", found.only_before),
        ("only after", found.only_after),
    ):
        for name in names:
            typer.echo(f"{label}: {name}")
    for change in found.changes:
        mark = " *" if change.apart else ""
        typer.echo(f"{change.system}: {change.figure}: {_number(change.before)} -> {_number(change.after)}{mark}")
    if any(change.apart for change in found.changes):
        typer.echo("* the 95 % intervals do not touch")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _plan(
    config: Path | None, settings: list[str], prompts: str | None, methods: str | None, limit: int | None
) -> "EvalPlan":
    """The file's plan, with the options over it."""
    from pasta_ray.eval.plan import EvalPlan, standard_systems
    from pasta_ray.train.config import load_config

    given = [f"prompts={json.dumps(prompts)}"] if prompts else []
    given += [f"limit={limit}"] if limit else []
    names = methods or (DEFAULT_METHODS if config is None else None)
    if names and not any(setting.startswith("systems=") for setting in settings):
        chosen = standard_systems([name.strip() for name in names.split(",") if name.strip()])
        given.append(f"systems={json.dumps([system.model_dump() for system in chosen])}")
    return load_config(EvalPlan, config, [*given, *settings])


def _answer(plan: "EvalPlan", folder: "EvalFolder") -> None:
    """Every answer that is not there yet, and every measurement under load, with a progress bar."""
    from pasta_ray.eval.judging import check_quality
    from pasta_ray.eval.load import bursts, read_points, run_bursts
    from pasta_ray.eval.prompts import load_prompts
    from pasta_ray.eval.run import read_done, run_tasks, schedule
    from pasta_ray.eval.writing import check_packages

    check_packages()
    prompts = load_prompts(plan.prompts, plan.limit)
    if plan.quality:
        check_quality(plan.quality, prompts.prompts)
    done = read_done(folder.answers)
    tasks = [task for task in schedule(plan, prompts.prompts) if task.id not in done]
    measured = {point.id for point in read_points(plan, folder.load)}
    todo = [burst for burst in bursts(plan) if burst.id not in measured]
    folder.claim(plan, prompts)
    if not tasks and not todo:
        return
    from pasta_ray.eval.bench.machine import describe_machine
    from pasta_ray.eval.served import Everywhere
    from pasta_ray.eval.workers import run_in_workers

    folder.sit_down(describe_machine(plan.threads))

    @cache
    def loaded() -> Everywhere:
        with _status(f"loading {len(plan.systems)} systems"):
            return Everywhere.of(plan)

    if tasks:
        answers = (
            run_tasks(plan, tasks, loaded(), folder.answers)
            if plan.workers == 1
            else run_in_workers(plan, tasks, Everywhere.of, folder.answers)
        )
        with _progress("answers", len(done) + len(tasks), len(done)) as advance:
            for _ in answers:
                advance(1)
    if todo:
        with _progress("load", len(todo), 0) as advance:
            for _ in run_bursts(plan, todo, prompts.prompts, loaded(), folder.load):
                advance(1)


def _report(folder: "EvalFolder", *, judge: bool) -> "EvalReport":
    """Written twice: before a judge is asked, which may fail, and after. Raises what ended the judging."""
    from pasta_ray.eval.load import read_points
    from pasta_ray.eval.report import Found, judge_answers, speed_report
    from pasta_ray.eval.writing import write_report

    found = Found.read(folder)
    report = speed_report(found, folder.read_sittings(), read_points(found.plan, folder.load))
    write_report(report, found, folder)
    if not judge or report.told.plan.quality is None:
        return report
    with _progress("verdicts", None, 0) as advance:
        judgement = judge_answers(found, folder, advance)
    report = judgement.added_to(report)
    write_report(report, found, folder)
    if judgement.error:
        raise judgement.error
    return report


def _show(report: "EvalReport", folder: "EvalFolder", as_json: bool) -> None:
    if as_json:
        typer.echo(report.model_dump_json())
        return
    from rich.console import Console
    from rich.markdown import Markdown

    Console().print(Markdown(folder.markdown.read_text(encoding="utf-8")))
    typer.echo(f"{folder.path}: {', '.join(sorted(path.name for path in folder.path.glob('[!.]*')))}")


@contextmanager
def _status(text: str) -> Iterator[None]:
    from rich.console import Console

    with Console(stderr=True).status(text):
        yield


@contextmanager
def _progress(what: str, total: int | None, done: int) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(what, total=total, completed=done)
        yield lambda number: progress.advance(task, number)
