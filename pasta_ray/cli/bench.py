"""`pasta-ray bench`: the engine's figures on this machine, as medians and ratios of one run."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pasta_ray.cli.models import NO_ADAPTER, Dtype, Quantization
from pasta_ray.errors import InputError

if TYPE_CHECKING:
    from pasta_ray.engine import Engine, EngineConfig
    from pasta_ray.eval.bench.figures import Result, Say

bench_app = typer.Typer(help="Measure the engine on this machine.", no_args_is_help=True)


Model = Annotated[str, typer.Option(help="A name, a folder, a .gguf file or a hub id.")]
Adapter = Annotated[str, typer.Option(help="A folder, a shipped name, or none.")]
DtypeOption = Annotated[Dtype, typer.Option(help="Of the weights.")]
Quantizations = Annotated[
    list[Quantization] | None, typer.Option(help="Of the weights; give it several times to compare.  [default: none]")
]
Context = Annotated[int, typer.Option(min=1, help="Tokens before the first that is timed.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads; torch's own choice unless given.")]
Reps = Annotated[int, typer.Option(min=1, help="Timed repetitions of every case.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Out = Annotated[Path | None, typer.Option(help="JSON file to write the result to.")]

DEFAULT_MODEL = "smollm2-135m-instruct"


@bench_app.command()
def step(
    model: Model = DEFAULT_MODEL,
    adapter: Adapter = NO_ADAPTER,
    dtype: DtypeOption = Dtype.float32,
    quantization: Quantizations = None,
    context: Context = 300,
    rows: Annotated[
        list[int] | None, typer.Option(min=1, help="Branches of one request, repeatable.  [default: 1 2 4 8 16]")
    ] = None,
    requests: Annotated[
        list[int] | None, typer.Option(min=1, help="Requests of one branch, repeatable.  [default: 1 4 16]")
    ] = None,
    threads: Threads = None,
    reps: Reps = 15,
    as_json: AsJson = False,
    out: Out = None,
) -> None:
    """Milliseconds of one step by branches and requests, what they are spent on, and what memory would allow."""
    from pasta_ray.eval.bench.machine import describe_machine
    from pasta_ray.eval.bench.step import StepOptions, bench_step

    defaults = StepOptions()
    options = StepOptions(context, _distinct(rows, defaults.rows), _distinct(requests, defaults.requests), reps)
    with _measuring(out) as say:
        engines = _load(_config(model, adapter, dtype, threads), quantization, say)
        result = bench_step(engines, options, describe_machine(), say)
    _show(result, as_json, out)


@bench_app.command()
def decode(
    model: Model = DEFAULT_MODEL,
    adapter: Adapter = NO_ADAPTER,
    dtype: DtypeOption = Dtype.float32,
    quantization: Quantizations = None,
    context: Context = 300,
    tokens: Annotated[int, typer.Option(min=2, help="Decoded by each request.")] = 128,
    requests: Annotated[int, typer.Option(min=2, help="Decoded at once, beside one alone.")] = 16,
    reference: Annotated[bool, typer.Option(help="Compare with `generate` of transformers in float32.")] = True,
    threads: Threads = None,
    reps: Reps = 5,
    as_json: AsJson = False,
    out: Out = None,
) -> None:
    """Greedy tokens a second: of one request, of many at once, and of transformers."""
    from pasta_ray.eval.bench.decode import DecodeOptions, bench_decode
    from pasta_ray.eval.bench.machine import describe_machine
    from pasta_ray.eval.bench.reference import Reference

    options = DecodeOptions(context, tokens, requests, reps)
    with _measuring(out) as say:
        config = _config(model, adapter, dtype, threads)
        engines = _load(config, quantization, say)
        other = Reference(config) if reference else None
        result = bench_decode(engines, other, options, describe_machine(), say)
    _show(result, as_json, out)


@bench_app.command()
def fork(
    model: Model = DEFAULT_MODEL,
    adapter: Adapter = NO_ADAPTER,
    dtype: DtypeOption = Dtype.float32,
    quantization: Quantizations = None,
    context: Context = 1000,
    children: Annotated[int, typer.Option(min=1, help="Forked and joined at once.")] = 8,
    threads: Threads = None,
    reps: Reps = 50,
    as_json: AsJson = False,
    out: Out = None,
) -> None:
    """Microseconds and copied bytes of fork and join, and the KV's bytes a token."""
    from pasta_ray.eval.bench.fork import ForkOptions, bench_fork
    from pasta_ray.eval.bench.machine import describe_machine

    options = ForkOptions(context, children, reps)
    with _measuring(out) as say:
        engines = _load(_config(model, adapter, dtype, threads), quantization, say)
        result = bench_fork(engines, options, describe_machine(), say)
    _show(result, as_json, out)


@bench_app.command()
def farm(
    model: Model = DEFAULT_MODEL,
    adapter: Adapter = "pasta",
    dtype: DtypeOption = Dtype.float32,
    quantization: Annotated[Quantization, typer.Option(help="Of the weights.")] = Quantization.none,
    replicas: Annotated[int, typer.Option(min=2, help="Each with its own copy of the weights.")] = 2,
    concurrent: Annotated[int, typer.Option(min=1, help="Prompts answered at once.")] = 1,
    max_tokens: Annotated[int, typer.Option(min=1, help="Bound of each answer.")] = 256,
    threads: Threads = 1,
    reps: Reps = 5,
    as_json: AsJson = False,
    out: Out = None,
) -> None:
    """Answers with bodies kept on their replica, farmed out by predicted finish time, and all farmed out."""
    from pasta_ray.cli.farm import farm_rounds
    from pasta_ray.eval.bench.farm import FarmOptions, bench_farm
    from pasta_ray.eval.bench.machine import describe_machine

    options = FarmOptions(replicas, concurrent, max_tokens, reps)
    kind = None if quantization is Quantization.none else quantization.value
    with _measuring(out) as say:
        config = replace(_config(model, adapter, dtype, threads), quantization=kind)
        machine = describe_machine()
        say(f"starting {replicas} replicas")
        with farm_rounds(config, options) as rounds:
            settings = {"model": model, "adapter": adapter, "numerics": kind or dtype.value, "threads": threads}
            result = bench_farm(rounds, options, settings, machine, say)
    _show(result, as_json, out)


def _distinct(given: list[int] | None, default: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(given)) if given else default


def _config(model: str, adapter: str, dtype: Dtype, threads: int | None) -> "EngineConfig":
    from pasta_ray.engine import EngineConfig

    adapter_name = None if adapter == NO_ADAPTER else adapter
    return EngineConfig(model=model, adapter=adapter_name, dtype=dtype.value, num_threads=threads)


def _load(config: "EngineConfig", quantizations: list[Quantization] | None, say: "Say") -> dict[str, "Engine"]:
    from pasta_ray.eval.bench.workload import load_engines

    say(f"loading {config.model}")
    kinds = quantizations or [Quantization.none]
    return load_engines(config, [None if kind is Quantization.none else kind.value for kind in kinds])


@contextmanager
def _measuring(out: Path | None) -> Iterator["Say"]:
    """A line on standard error that says how far the run is. A file that cannot be written ends it before it starts."""
    from rich.console import Console

    if out:
        try:
            out.touch()
        except OSError as error:
            raise InputError(f"--out {out}: {error.strerror}") from error
    with Console(stderr=True).status("starting") as status:
        yield status.update


def _show(result: "Result", as_json: bool, out: Path | None) -> None:
    from pasta_ray.eval.bench.tables import print_result

    text = json.dumps(asdict(result), ensure_ascii=False, indent=2)
    if out:
        out.write_text(text + "\n", encoding="utf-8")
    if as_json:
        typer.echo(text)
    else:
        print_result(result)
