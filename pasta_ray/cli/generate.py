"""`pasta-ray generate`: answers to one prompt, or to a file of them."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from pasta_ray.cli.models import DEFAULT_ADAPTER, Dtype, Quantization, chosen_method, engine_config
from pasta_ray.errors import InputError


def generate(
    prompt: Annotated[str | None, typer.Argument(help="The prompt; - reads standard input.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="JSONL file of id and instruction.")] = None,
    out: Annotated[Path | None, typer.Option(help="JSONL file of reports; ids already in it are skipped.")] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="sequential, speculative, pasta, pasta+speculative, sot or apar."
            "  [default: what the model's tags are for, else sequential]"
        ),
    ] = None,
    router: Annotated[
        bool, typer.Option("--router", help="sot: ask the model first if the question suits it.")
    ] = False,
    unconstrained: Annotated[
        bool, typer.Option("--unconstrained", help="pasta: mask no token that breaks the grammar, but count it.")
    ] = False,
    max_tokens: Annotated[int, typer.Option(min=1, help="Bound of the visible answer, all branches together.")] = 512,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Sample from the likeliest tokens of this total probability.")] = 1.0,
    seed: Annotated[int, typer.Option(help="The same seed gives the same answer.")] = 0,
    max_branches: Annotated[int, typer.Option(min=1, help="Bodies decoded at the same time, at most.")] = 16,
    model: Annotated[str, typer.Option(help="A name, a folder, a .gguf file or a hub id.")] = "smollm2-135m-instruct",
    adapter: Annotated[str, typer.Option(help="A folder, a shipped name, or none.")] = DEFAULT_ADAPTER,
    draft_model: Annotated[
        str | None, typer.Option(help="Guesses for speculative methods.  [default: looked up in the text so far]")
    ] = None,
    max_draft: Annotated[int, typer.Option(help="Tokens that a branch guesses in a step, at most.")] = 4,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    dtype: Annotated[Dtype, typer.Option(help="Of the weights.")] = Dtype.float32,
    quantization: Annotated[Quantization, typer.Option(help="Of the weights.")] = Quantization.none,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; torch's own choice unless given.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Prompts at the same time; 1 gives a truthful wall time.")] = 1,
    in_process: Annotated[bool, typer.Option(help="Decode in this process, or in a replica of a Ray cluster.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report instead of the text.")] = False,
) -> None:
    """Answer a prompt. A terminal shows every branch while it is written, and a timeline at the end; a pipe gets the
    text in document order as it becomes readable. A file of prompts gives one report a line."""
    from pasta_ray.cli.prompts import Prompt, read_done, read_prompts

    if (prompt is None) == (prompts is None):
        raise InputError("give a prompt, or --prompts with a file: one of the two")
    if prompts is None and out is not None:
        raise InputError("--out goes with --prompts")
    wanted = read_prompts(prompts) if prompts else [Prompt("prompt", _one_prompt(prompt or ""))]
    done = read_done(out) if out else set()
    wanted = [item for item in wanted if item.id not in done]
    if not wanted:
        typer.echo(f"nothing to do: all {len(done)} answers are in {out}", err=True)
        return

    from pasta_ray.cli import answering
    from pasta_ray.engine.config import DraftConfig
    from pasta_ray.engine.messages import Sampling

    config = engine_config(model, adapter, device, dtype, quantization, threads)
    with Console(stderr=True).status(f"reading {config.model}"):  # perhaps fetching it
        method, _ = chosen_method(config, method)
    if draft_model is not None and "speculative" not in method:
        raise InputError(f"--draft-model goes with a speculative method, not with {method!r}")
    options = answering.Options(
        method=method,
        max_tokens=max_tokens,
        max_branches=max_branches,
        sampling=Sampling(temperature, top_p, seed),
        draft=DraftConfig.beside(config, draft_model, max_draft),
        router=router,
        constrained=not unconstrained,
    )
    if prompts is None:
        answering.answer_one(config, options, wanted[0], in_process, as_json)
    else:
        answering.answer_all(config, options, wanted, in_process, batch, out)


def _one_prompt(argument: str) -> str:
    if argument != "-":
        return argument
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"standard input: not UTF-8: {error.reason} at byte {error.start}") from error
