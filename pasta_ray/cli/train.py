"""`pasta-ray train`: from documents to an adapter."""

import json
from pathlib import Path
from typing import Annotated

import typer

from pasta_ray.cli.pipeline import pipeline
from pasta_ray.cli.scoring import calibrate_judge, judge, score

MAX_NAMED = 5
train_app = typer.Typer(help="Teach a model to keep its promises.", no_args_is_help=True)
train_app.command()(pipeline)
train_app.command()(score)
train_app.command()(judge)
train_app.command()(calibrate_judge)


@train_app.command()
def sft(
    config: Annotated[Path | None, typer.Option(help="YAML file; `--set` goes over it.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="FIELD=VALUE, any field of the file.")] = None,
    num_cpus: Annotated[
        int | None, typer.Option(help="CPUs of a Ray that is started here; else Ray's own count.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Stage 1: fine-tune on documents. A run of the same name goes on where it stopped."""
    from pasta_ray.train.config import SftConfig, load_config

    settings = load_config(SftConfig, config, set_ or [])
    import ray

    from pasta_ray.cli.following import follow
    from pasta_ray.train.run_folder import RunFolder
    from pasta_ray.train.sft import run_sft

    if not ray.is_initialized():
        ray.init(num_cpus=num_cpus, include_dashboard=True)
    folder = RunFolder(settings)
    with follow(folder):
        result = run_sft(settings)
    summary = {folder.result.name: str(result), **folder.read_plan()}
    if as_json:
        typer.echo(json.dumps(summary))
        return
    typer.echo(f"{folder.result.name}: {result}")
    too_long = summary["too_long"]
    if too_long:
        names = [f"{id_} ({num})" for id_, num in list(too_long.items())[:MAX_NAMED]]
        more = f" and {len(too_long) - MAX_NAMED} more" if len(too_long) > MAX_NAMED else ""
        typer.echo(f"{len(too_long)} documents were left out, longer than a row: {', '.join(names)}{more} tokens")


@train_app.command()
def prefer(
    config: Annotated[Path | None, typer.Option(help="YAML file; `--set` goes over it.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="FIELD=VALUE, any field of the file.")] = None,
    num_cpus: Annotated[
        int | None, typer.Option(help="CPUs of a Ray that is started here; else Ray's own count.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Stage 2: prefer the best of a prompt's samples to the worst. A run of the same name goes on where it stopped."""
    from pasta_ray.train.config import PreferConfig, load_config

    settings = load_config(PreferConfig, config, set_ or [])
    import ray

    from pasta_ray.cli.following import follow
    from pasta_ray.train.prefer import run_prefer
    from pasta_ray.train.run_folder import RunFolder

    if not ray.is_initialized():
        ray.init(num_cpus=num_cpus, include_dashboard=True)
    folder = RunFolder(settings)
    with follow(folder):
        result = run_prefer(settings)
    summary = {folder.result.name: str(result), **folder.read_plan()}
    if as_json:
        typer.echo(json.dumps(summary))
        return
    typer.echo(f"{folder.result.name}: {result}")
    typer.echo(f"{summary['num_pairs']} pairs from {summary['num_prompts']} prompts")
    for which in ("chosen", "rejected"):
        means = ", ".join(f"{name} {value:.2f}" for name, value in summary[which].items() if value is not None)
        typer.echo(f"{which}: mean {means}")
    for reason, number in summary["left_out"].items():
        typer.echo(f"{number} prompts left out: {reason}")
