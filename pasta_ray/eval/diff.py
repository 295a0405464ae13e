"""Two reports side by side: what has changed, and whether that is more than chance."""

from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from pasta_ray.errors import InputError
from pasta_ray.eval.figures import EvalReport, Figures, Interval, Preference, Speed, SystemReport
from pasta_ray.train.jsonl import explain

SPEEDS = ("wall_speedup", "token_speedup", "step_speedup", "theoretical_speedup")
SHARES = ("share_slower", "realised_over_theoretical", "tag_share", "ms_per_step", "visible_tokens")
COUNTS = ("finished", "cut", "loops", "refused", "bodies_cut", "violations")


class Change(Figures):
    """One figure in both reports. ``apart``: its two 95 % intervals do not touch; None where it has no interval."""

    system: str
    figure: str
    before: float | None
    after: float | None
    apart: bool | None = None


class Diff(Figures):
    """``unlike``: in what the two runs differ beside their systems, so that figures cannot be compared just so."""

    unlike: list[str]
    only_before: list[str]
    only_after: list[str]
    changes: list[Change]


def read_report(path: Path) -> EvalReport:
    """A report's file, or the folder that holds it. Raises InputError that names the file."""
    file = path / "report.json" if path.is_dir() else path
    try:
        return EvalReport.model_validate_json(file.read_bytes())
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}") from error
    except ValidationError as error:
        raise InputError(f"{file}: no report of an evaluation: {explain(error)}") from error


def diff_reports(before: EvalReport, after: EvalReport) -> Diff:
    both = [name for name in before.systems if name in after.systems]
    return Diff(
        unlike=list(_unlike(before, after)),
        only_before=[name for name in before.systems if name not in after.systems],
        only_after=[name for name in after.systems if name not in before.systems],
        changes=[change for name in both for change in _changes(name, before.systems[name], after.systems[name])],
    )


def _unlike(before: EvalReport, after: EvalReport) -> Iterator[str]:
    """Name, and the two values."""
    one, other = before.told.plan, after.told.plan
    for name in (
        "max_tokens",
        "temperature",
        "top_p",
        "dtype",
        "quantization",
        "threads",
        "workers",
        "device",
        "limit",
    ):
        if getattr(one, name) != getattr(other, name):
            yield f"{name}: {getattr(one, name)} and {getattr(other, name)}"
    if before.told.prompts_sha256 != after.told.prompts_sha256:
        yield f"prompts: {one.prompts} and {other.prompts}"
    if before.baseline != after.baseline:
        yield f"baseline: {before.baseline} and {after.baseline}"
    judges = [report.judge.name if report.judge else "none" for report in (before, after)]
    if judges[0] != judges[1]:
        yield f"judge: {judges[0]} and {judges[1]}"
    machines = [report.sittings[0].machine if report.sittings else None for report in (before, after)]
    for name in ("processor", "usable_cores", "threads", "commit"):
        values = [getattr(machine, name, None) for machine in machines]
        if values[0] != values[1]:
            yield f"machine's {name}: {values[0]} and {values[1]}"


def _changes(name: str, before: SystemReport, after: SystemReport) -> Iterator[Change]:
    for view in ("all", "clean"):
        yield from _speed_changes(name, view, getattr(before.speed, view), getattr(after.speed, view))
        if before.quality and after.quality:
            quality = (getattr(before.quality, view), getattr(after.quality, view))
            yield from _quality_changes(name, view, *quality)
    for field in COUNTS:
        values = (getattr(before.counts, field), getattr(after.counts, field))
        if any(values):
            yield Change(system=name, figure=field, before=values[0], after=values[1])


def _speed_changes(name: str, view: str, before: Speed, after: Speed) -> Iterator[Change]:
    for field in SPEEDS:
        one, other = getattr(before, field), getattr(after, field)
        if one or other:
            yield Change(
                system=name,
                figure=f"{field}, {view}",
                before=one.value if one else None,
                after=other.value if other else None,
                apart=_apart(one, other) if one and other else None,
            )
    for field in SHARES:
        values = (getattr(before, field), getattr(after, field))
        if values != (None, None):
            yield Change(system=name, figure=f"{field}, {view}", before=values[0], after=values[1])


def _quality_changes(name: str, view: str, before: Preference, after: Preference) -> Iterator[Change]:
    for field in ("win_rate", "points"):
        values = (getattr(before, field), getattr(after, field))
        yield Change(system=name, figure=f"{field}, {view}", before=values[0], after=values[1])


def _apart(one: Interval, other: Interval) -> bool:
    return one.high < other.low or other.high < one.low
