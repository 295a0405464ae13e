"""`pasta-ray train`: from documents to an adapter, and from samples to a better one."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from pasta_ray.cli.pipeline import pipeline
from pasta_ray.cli.sampling import sample
from pasta_ray.cli.scoring import calibrate_judge, judge, score
from pasta_ray.errors import InputError

if TYPE_CHECKING:
    from pasta_ray.train.config import RunConfig

MAX_NAMED = 5

ConfigOption = Annotated[Path | None, typer.Option(help="YAML file; `--set` goes over it.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="FIELD=VALUE, any field of the file.")]
NumCpusOption = Annotated[int | None, typer.Option(help="CPUs of a Ray that is started here; else Ray's own count.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]

train_app = typer.Typer(help="Teach a model to keep its promises.", no_args_is_help=True)


@train_app.command()
def sft(
    config: ConfigOption = None, set_: SetOption = None, num_cpus: NumCpusOption = None, as_json: JsonOption = False
) -> None:
    """Stage 1: fine-tune on documents. A run of the same name goes on where it stopped."""
    from pasta_ray.train.config import SftConfig, load_config

    settings = load_config(SftConfig, config, set_ or [])
    _check_files([*settings.documents, *settings.val_documents])
    with _training_packages(settings):
        from pasta_ray.train.sft import run_sft

    _train(run_sft, settings, num_cpus, as_json, _describe_documents)


@train_app.command()
def prefer(
    config: ConfigOption = None, set_: SetOption = None, num_cpus: NumCpusOption = None, as_json: JsonOption = False
) -> None:
    """Stage 2: prefer the best of a prompt's samples to the worst. A run of the same name goes on where it stopped."""
    from pasta_ray.train.config import PreferConfig, load_config

    settings = load_config(PreferConfig, config, set_ or [])
    _check_files(settings.scored)
    with _training_packages(settings):
        from pasta_ray.train.prefer import run_prefer

    _train(run_prefer, settings, num_cpus, as_json, _describe_pairs)


for command in (sample, score, judge, calibrate_judge, pipeline):
    train_app.command()(command)

Config = TypeVar("Config", bound="RunConfig")
Plan = dict[str, Any]  # a run's plan.json


def _check_files(paths: Sequence[Path]) -> None:
    """A file that is not there is missed before Ray is started."""
    for path in paths:
        if not path.is_file():
            raise InputError(f"{path}: no such file")


@contextmanager
def _training_packages(settings: "RunConfig") -> Iterator[None]:
    """Around the imports of what training alone needs. DeepSpeed is told the device: looking for one, it prints."""
    if not settings.use_gpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        yield
    except ImportError as error:
        raise InputError(f"training needs more packages: pip install 'pasta-ray[train]' ({error})") from error


def _train(
    run: Callable[[Config], Path],
    settings: Config,
    num_cpus: int | None,
    as_json: bool,
    describe: Callable[[Plan], Iterator[str]],
) -> None:
    import ray

    from pasta_ray.cli.following import follow
    from pasta_ray.train.run_folder import RunFolder

    if not ray.is_initialized():
        ray.init(num_cpus=num_cpus, include_dashboard=True)
    folder = RunFolder(settings)
    with follow(folder):
        result = run(settings)
    plan = folder.read_plan()
    if as_json:
        typer.echo(json.dumps({folder.result.name: str(result), **plan}))
        return
    typer.echo(f"{folder.result.name}: {result}")
    for line in describe(plan):
        typer.echo(line)


def _describe_documents(plan: Plan) -> Iterator[str]:
    too_long = plan["too_long"]
    if too_long:
        names = [f"{id_} ({num})" for id_, num in list(too_long.items())[:MAX_NAMED]]
        more = f" and {len(too_long) - MAX_NAMED} more" if len(too_long) > MAX_NAMED else ""
        yield f"{len(too_long)} documents were left out, longer than a row: {', '.join(names)}{more} tokens"


def _describe_pairs(plan: Plan) -> Iterator[str]:
    yield f"{plan['num_pairs']} pairs from {plan['num_prompts']} prompts"
    for which in ("chosen", "rejected"):
        means = ", ".join(f"{name} {value:.2f}" for name, value in plan[which].items() if value is not None)
        yield f"{which}: mean {means}"
    for reason, number in plan["left_out"].items():
        yield f"{number} prompts left out: {reason}"
