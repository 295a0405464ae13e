"""`pasta-ray chat`: a conversation on the terminal, whose answers are seen being written."""

import asyncio
import os
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from pasta_ray.cli.models import DEFAULT_ADAPTER, Dtype, Quantization, chosen_method, engine_config
from pasta_ray.errors import InputError

if TYPE_CHECKING:
    from pasta_ray.cli.answering import Options
    from pasta_ray.cli.speaking import Speaker
    from pasta_ray.engine.config import EngineConfig

DEFAULT_MODEL = "smollm2-135m-instruct"


def chat(
    system: Annotated[str | None, typer.Option(help="A message that stands before the conversation.")] = None,
    method: Annotated[
        str | None,
        typer.Option(help="As for `generate`; /method changes it.  [default: what the model's tags are for]"),
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Bound of one visible answer.")] = 512,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Sample from the likeliest tokens of this total probability.")] = 1.0,
    seed: Annotated[int, typer.Option(help="The same seed gives the same answers.")] = 0,
    max_branches: Annotated[int, typer.Option(min=1, help="Bodies decoded at the same time, at most.")] = 16,
    model: Annotated[
        str | None,
        typer.Option(
            help="A name, a folder, a .gguf file or a hub id; with --base-url a served name."
            f"  [default: {DEFAULT_MODEL}, or the first that is served]"
        ),
    ] = None,
    adapter: Annotated[str, typer.Option(help="A folder, a shipped name, or none.")] = DEFAULT_ADAPTER,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    dtype: Annotated[Dtype, typer.Option(help="Of the weights.")] = Dtype.float32,
    quantization: Annotated[Quantization, typer.Option(help="Of the weights.")] = Quantization.none,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; torch's own choice unless given.")] = None,
    in_process: Annotated[bool, typer.Option(help="Decode in this process, or in a replica of a Ray cluster.")] = True,
    base_url: Annotated[
        str | None, typer.Option(help="Ask a service, such as http://127.0.0.1:8000, instead of loading a model.")
    ] = None,
    api_key_env: Annotated[
        str | None, typer.Option(help="The environment variable that holds the service's API key.")
    ] = None,
) -> None:
    """Talk with the model. Answers are shown as they are written, in several places at once; /help lists commands."""
    from pasta_ray.cli.answering import Options
    from pasta_ray.cli.conversation import Conversation, read_line
    from pasta_ray.engine.config import DraftConfig
    from pasta_ray.engine.messages import Sampling

    sampling = Sampling(temperature, top_p, seed)
    options = Options(method or "", max_tokens, max_branches, sampling, DraftConfig())
    console, notes = Console(), Console(stderr=True)
    with asyncio.Runner() as runner:
        ends = AsyncExitStack()
        try:
            if base_url is not None:
                speaker = runner.run(_served(ends, base_url, api_key_env, model, options))
            else:
                if api_key_env is not None:
                    raise InputError("--api-key-env goes with --base-url")
                config = engine_config(model or DEFAULT_MODEL, adapter, device, dtype, quantization, threads)
                speaker = runner.run(_local(ends, config, options, in_process))
            if console.is_terminal:
                notes.print("/help lists commands, Ctrl-C stops an answer, Ctrl-D ends", style="dim")
            Conversation(speaker, runner, console, notes, system).run(read_line)
        finally:
            runner.run(ends.aclose())


async def _local(ends: AsyncExitStack, config: "EngineConfig", options: "Options", in_process: bool) -> "Speaker":
    from dataclasses import replace

    from pasta_ray.cli import answering
    from pasta_ray.cli.speaking import LocalSpeaker

    with Console(stderr=True).status(f"reading {config.model}"):  # perhaps fetching it
        method, tags = chosen_method(config, options.method)
    options = replace(options, method=method)
    source, tokenizer = await ends.enter_async_context(answering.source_of(config, options.draft, in_process))
    return LocalSpeaker(source, tokenizer, options, tags)


async def _served(
    ends: AsyncExitStack, base_url: str, api_key_env: str | None, model: str | None, options: "Options"
) -> "Speaker":
    from pasta_ray.cli.speaking import ServedSpeaker
    from pasta_ray.client import AsyncClient

    key = None
    if api_key_env is not None:
        key = os.environ.get(api_key_env)
        if not key:
            raise InputError(f"--api-key-env: the environment has no {api_key_env}")
    client = await ends.enter_async_context(AsyncClient(base_url, key))
    served = await client.models()
    if model is not None and model not in served:
        raise InputError(f"--model is {model!r}; served: {', '.join(served)}")
    return ServedSpeaker(client, model or served[0], options, options.method or None)
