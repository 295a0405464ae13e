"""`pasta-ray train pipeline`: from answers to adapters by one YAML file, a stage after the other.

Each stage is one of the other commands in a process of its own, so what a stage does is what its command does, and its
memory is free for the next. A stage that is done is skipped, one that was cut off goes on as its command does.
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from pasta_ray.errors import InputError, PastaError

DONE_FOLDER = "done"

Options = dict[str, Any]


@dataclass(frozen=True)
class Stage:
    """One command of the pipeline: ``name`` is unique in it, ``args`` are what stands behind `pasta-ray`."""

    name: str
    args: tuple[str, ...]


class StageError(PastaError):
    """A stage's command has failed; it has said why."""


def pipeline(
    config: Annotated[Path, typer.Option(help="YAML file of the whole pipeline.")],
    set_: Annotated[list[str] | None, typer.Option("--set", help="FIELD=VALUE, any field of the file.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the stages' commands and what is done.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was trained as JSON.")] = False,
) -> None:
    """Annotate, fine-tune, then sample, score and prefer, round after round. Run again, it goes on."""
    from pasta_ray.train.config import load_config
    from pasta_ray.train.pipeline import PipelineConfig

    settings = load_config(PipelineConfig, config, set_ or [])
    stages = [_stage(name, command, options) for name, command, options in settings.stages()]
    for stage in stages:
        _check(stage)
        state = "done" if _is_done(settings.folder, stage) else "to do"
        if dry_run:
            typer.echo(f"{state:6}{stage.name}: pasta-ray {' '.join(stage.args)}")
    if dry_run:
        return
    settings.folder.mkdir(parents=True, exist_ok=True)
    for number, stage in enumerate(stages, 1):
        if _is_done(settings.folder, stage):
            continue
        typer.echo(f"[{number}/{len(stages)}] {stage.name}", err=True)
        _run(stage)
        _mark_done(settings.folder, stage)
    trained = {name: str(folder) for name, folder in settings.trained().items()}
    if as_json:
        typer.echo(json.dumps(trained))
        return
    for name, folder in trained.items():
        typer.echo(f"{name}: {folder}")


def _stage(name: str, command: tuple[str, ...], options: Mapping[str, Any]) -> Stage:
    """``options`` become the command's; those called "" are its arguments."""
    return Stage(name, (*command, *(word for key, value in options.items() for word in _words(key, value))))


def _words(key: str, value: Any) -> Iterator[str]:
    if isinstance(value, list | tuple):
        for item in value:
            yield from _words(key, item)
    elif not key:
        yield str(value)
    elif isinstance(value, bool):
        yield from [f"--{key.replace('_', '-')}"] * value
    elif value is not None:
        yield from (f"--{key.replace('_', '-')}", str(value))


def _check(stage: Stage) -> None:
    """Parse the stage's command line without running it. Raises InputError that names stage and option."""
    from typer.core import TyperGroup
    from typer.exceptions import TyperException

    from pasta_ray.cli import app

    command: Any = typer.main.get_command(app)
    args = list(stage.args)
    try:
        while isinstance(command, TyperGroup) and args:
            command = command.commands[args.pop(0)]
        command.make_context("pasta-ray", args)
    except TyperException as error:
        message = error.format_message() if hasattr(error, "format_message") else str(error)
        raise InputError(f"stage {stage.name}: {message}") from error


def _is_done(folder: Path, stage: Stage) -> bool:
    """Raises InputError where the stage was done by another command line: its results are not what is asked for."""
    marker = folder / DONE_FOLDER / f"{stage.name}.json"
    if not marker.exists():
        return False
    done = json.loads(marker.read_text(encoding="utf-8"))
    if done != list(stage.args):
        changed = sorted(set(done) ^ set(stage.args))
        raise InputError(
            f"stage {stage.name}: was done with other settings ({', '.join(changed)}); allowed: another `folder`, or"
            f" {marker} removed, with what that stage and later ones wrote"
        )
    return True


def _mark_done(folder: Path, stage: Stage) -> None:
    marker = folder / DONE_FOLDER / f"{stage.name}.json"
    marker.parent.mkdir(parents=True, exist_ok=True)
    marker.write_text(json.dumps(stage.args) + "\n", encoding="utf-8")


def _run(stage: Stage) -> None:
    code = subprocess.call([sys.executable, "-m", "pasta_ray", *stage.args])
    if code:
        raise StageError(f"stage {stage.name} failed with exit code {code}; run again, the pipeline goes on from there")
