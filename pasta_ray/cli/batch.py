"""`pasta-ray batch`: answers to a file of prompts, by a pool of engines on a Ray cluster."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pasta_ray.cli.models import DEFAULT_ADAPTER, Dtype, Quantization, chosen_method, engine_config

if TYPE_CHECKING:
    from pasta_ray.batch.run import Progress


def batch(
    prompts: Annotated[Path, typer.Argument(help="JSON lines (.jsonl) or Parquet: id, and instruction or messages.")],
    out: Annotated[
        Path, typer.Option(help="Where the answers go, .jsonl or .parquet; rows that have one are skipped.")
    ],
    method: Annotated[
        str | None, typer.Option(help="As of `generate`.  [default: what the model's tags are for, else sequential]")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Bound of a visible answer, all branches together.")] = 512,
    max_branches: Annotated[int, typer.Option(min=1, help="Bodies decoded at the same time, at most.")] = 16,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Sample from the likeliest tokens of this total probability.")] = 1.0,
    seed: Annotated[int, typer.Option(help="The same seed gives the same answers.")] = 0,
    model: Annotated[str, typer.Option(help="A name, a folder, a .gguf file or a hub id.")] = "smollm2-135m-instruct",
    adapter: Annotated[str, typer.Option(help="A folder, a shipped name, or none.")] = DEFAULT_ADAPTER,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    dtype: Annotated[Dtype, typer.Option(help="Of the weights.")] = Dtype.float32,
    quantization: Annotated[Quantization, typer.Option(help="Of the weights.")] = Quantization.none,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of a worker, which reserves as many CPUs.")] = 1,
    batch: Annotated[int, typer.Option(min=1, help="Rows at the same time, of each worker.")] = 16,
    num_workers: Annotated[int, typer.Option(min=1, help="Engines, each in a process of its own.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print the counts as JSON.")] = False,
) -> None:
    """Answer every row of a file once. A row may name method, max_tokens, max_branches, temperature, top_p and seed
    itself; one that cannot be answered gets its error as its answer. Started again, it goes on where it stopped."""
    from pasta_ray.actors.loading import LoadDecoder, LoadTokenizer
    from pasta_ray.batch.rows import Defaults
    from pasta_ray.batch.run import Pool, run_batch
    from pasta_ray.batch.worker import Job
    from pasta_ray.cli.ray_session import connect

    config = engine_config(model, adapter, device, dtype, quantization, threads)
    method, _ = chosen_method(config, method)
    job = Job(
        LoadDecoder(config),
        LoadTokenizer(config),
        Defaults(method, max_tokens, max_branches, temperature, top_p, seed),
    )
    pool = Pool(num_workers, batch, cpus_per_worker=threads, gpus_per_worker=int(device != "cpu"))
    began = time.perf_counter()
    steps = run_batch(prompts, out, job, pool)
    connect()
    progress = _followed(steps)
    counts = progress.counts() | {"seconds": round(time.perf_counter() - began, 3), "out": str(out)}
    typer.echo(json.dumps(counts) if as_json else "\n".join(f"{name}: {value}" for name, value in counts.items()))


def _followed(steps: "Iterator[Progress]") -> "Progress":
    """The last of ``steps``; all of them move a bar on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("rows"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[errors]} errors"))
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as bar:
        state = next(steps)
        task = bar.add_task("rows", total=state.num_rows, completed=state.num_done, errors=state.num_errors)
        for state in steps:
            bar.update(task, completed=state.num_done, errors=state.num_errors)
    return state
