"""`pasta-ray train sample`: N documents a prompt, for the judges to score."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pasta_ray.cli.models import DEFAULT_ADAPTER, Dtype, Quantization, chosen_method, engine_config
from pasta_ray.errors import InputError

if TYPE_CHECKING:
    from pasta_ray.engine.config import EngineConfig
    from pasta_ray.train.sample import Crew, Outcome, Plan, Sampled


def sample(
    prompts: Annotated[Path, typer.Option(help="JSONL file of id and instruction (system, input, source, license).")],
    out: Annotated[Path, typer.Option(help="JSONL file of samples; those already in it are skipped.")],
    num: Annotated[int, typer.Option(help="Samples a prompt.")] = 10,
    temperature: Annotated[float, typer.Option(help="0 is greedy: all samples of a prompt alike.")] = 0.8,
    greedy: Annotated[bool, typer.Option("--greedy", help="Sample 0 is greedy, what `--temperature 0` gives.")] = False,
    top_p: Annotated[float, typer.Option(help="Sample from the likeliest tokens of this total probability.")] = 0.95,
    max_tokens: Annotated[int, typer.Option(help="Bound of a sample's visible tokens.")] = 384,
    seed: Annotated[int, typer.Option(help="Every sample's own seed follows from it, its prompt's id and number.")] = 0,
    model: Annotated[str, typer.Option(help="A name, a folder, a .gguf file or a hub id.")] = "smollm2-135m-instruct",
    adapter: Annotated[str, typer.Option(help="A folder, a shipped name, or none.")] = DEFAULT_ADAPTER,
    method: Annotated[
        str | None, typer.Option(help="As of `generate`.  [default: pasta with an adapter, else sequential]")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    dtype: Annotated[Dtype, typer.Option(help="Of the weights.")] = Dtype.float32,
    quantization: Annotated[Quantization, typer.Option(help="Of the weights.")] = Quantization.none,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads of a worker; torch's choice if not given.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Samples at the same time, of each worker.")] = 24,
    num_workers: Annotated[
        int, typer.Option(min=0, help="Engines in Ray actors; 0 samples in this process, without Ray.")
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the counts as JSON.")] = False,
) -> None:
    """Sample documents. Started again, it goes on where it stopped; a sample's seed does not depend on that."""
    from pasta_ray.train.sample import Plan

    config = engine_config(model, adapter, device, dtype, quantization, threads)
    method, _ = chosen_method(config, method)
    plan = Plan(num, method, temperature, top_p, max_tokens, seed, greedy)
    summary = _run(prompts, out, plan, config, batch, num_workers)
    if as_json:
        typer.echo(json.dumps(summary))
        return
    for name, value in summary.items():
        typer.echo(f"{name}: {value:.3f}" if isinstance(value, float) else f"{name}: {value}")


def _run(
    prompts_path: Path, out: Path, plan: "Plan", config: "EngineConfig", batch: int, num_workers: int
) -> dict[str, object]:
    """The run's counts. Raises InputError, once all else is done, where the engine has refused a prompt."""
    from pasta_ray.engine.tokenizer import Tokenizer
    from pasta_ray.engine.weights import resolve_model
    from pasta_ray.train.sample import Sampled, SampleFile, encode_prompts, read_prompts, sample_all, write_samples

    if out.resolve() == prompts_path.resolve():
        raise InputError(f"--out {out}: is the file of prompts itself")
    prompts = read_prompts(prompts_path)
    file = SampleFile(out, plan, config)
    result = Sampled(num_before=file.num_done(prompts))
    total = len(prompts) * plan.num - result.num_before
    refusals: list[str] = []
    began = time.perf_counter()
    if total:
        encoded = encode_prompts(prompts, Tokenizer.load(resolve_model(config), None).encode_chat)
        with _crew(config, num_workers) as crew:
            began = time.perf_counter()
            outcomes = sample_all(crew, file.requests(encoded), batch)
            shown = _shown(write_samples(file, out, prompts, outcomes, result), result, total)
            refusals += [f"sample {outcome.id!r}: {outcome.refusal}" for outcome in shown if outcome.refusal]
    seconds = time.perf_counter() - began
    if refusals:
        more = f"; and {len(refusals) - 1} more" if len(refusals) > 1 else ""
        raise InputError(f"{refusals[0]}{more}")
    return {
        "prompts": len(prompts),
        "samples": result.num_samples,
        "samples_before": result.num_before,
        "finished": result.num_finished,
        "tokens": result.num_tokens,
        "seconds": round(seconds, 3),
        "tokens_per_s": round(result.num_tokens / seconds, 1) if result.num_samples else None,
        "speedup_geomean": round(result.speedup, 4) if result.speedup else None,
        "out": str(out),
    }


@contextmanager
def _crew(config: "EngineConfig", num_workers: int) -> Iterator["Crew"]:
    from functools import partial

    from pasta_ray.train.sample import LocalCrew, Sampler, load_decoder

    load = partial(load_decoder, config)
    if not num_workers:
        yield LocalCrew(Sampler(load))
        return
    from pasta_ray.cli.ray_session import connect
    from pasta_ray.train.crew import RayCrew

    connect()
    on_gpu = config.device != "cpu"
    crew = RayCrew(load, num_workers, num_cpus=config.num_threads or 1, num_gpus=int(on_gpu))
    try:
        yield crew
    finally:
        crew.close()


def _shown(outcomes: Iterator["Outcome"], result: "Sampled", total: int) -> Iterator["Outcome"]:
    """The same outcomes, with a progress bar that shows how many tokens a second come of it."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("samples"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]:.0f} tokens/s"))
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        task = progress.add_task("samples", total=total, rate=0.0)
        began = time.perf_counter()
        for outcome in outcomes:
            progress.update(task, advance=1, rate=result.num_tokens / max(1e-9, time.perf_counter() - began))
            yield outcome
