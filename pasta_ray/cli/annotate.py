"""`pasta-ray annotate`: from answers to documents."""

import dataclasses
import json
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pasta_ray.errors import InputError
from pasta_ray.extensions import ANNOTATORS, extension_names, load_extension

if TYPE_CHECKING:
    from pasta_ray.train.annotate import Counts
    from pasta_ray.train.annotation_run import AnnotationRun
    from pasta_ray.train.annotators.base import AnnotatorConfig
    from pasta_ray.train.annotators.splits import Level as SplitLevel
    from pasta_ray.train.endpoint import EndpointConfig


class Annotator(StrEnum):
    """What turns an answer into a document."""

    syntax = "syntax"
    independence = "independence"
    llm = "llm"


class Level(StrEnum):
    """Where an answer may split; `syntax` knows no sentences."""

    section = "section"
    list = "list"
    paragraph = "paragraph"
    sentence = "sentence"


def _known_annotator(name: str) -> str:
    allowed = (*Annotator, *extension_names(ANNOTATORS))
    if name not in allowed:
        raise typer.BadParameter(f"{name!r} is not one of {', '.join(allowed)}")
    return name


def annotate(
    answers: Annotated[list[Path], typer.Argument(help="JSONL files of id, instruction and output (input, system).")],
    out: Annotated[Path, typer.Option(help="JSONL file of documents; a run that was cut off goes on in it.")],
    annotator: Annotated[
        str,
        typer.Option(
            callback=_known_annotator,
            help="How to find the parts: syntax, independence, llm, or what an installed package adds.",
        ),
    ] = Annotator.syntax.value,
    level: Annotated[
        list[Level] | None,
        typer.Option(help="Where `syntax` and `independence` may split; everywhere unless given."),
    ] = None,
    model: Annotated[
        str, typer.Option(help="Whose tokens lengths are counted in; for `independence`, whose likelihood decides.")
    ] = "smollm2-135m-instruct",
    max_tokens: Annotated[int, typer.Option(help="Longer answers are dropped.")] = 400,
    only_promising: Annotated[bool, typer.Option(help="Drop answers that do not split.")] = False,
    delta: Annotated[
        float | None,
        typer.Option(help="independence: nats a token that a body may lose when it does not see its siblings."),
    ] = None,
    device: Annotated[str, typer.Option(help="independence: cpu, cuda or cuda:N.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="independence: float32 or bfloat16.")] = "float32",
    endpoint: Annotated[str | None, typer.Option(help="llm: base URL of the API, mostly http…/v1.")] = None,
    endpoint_model: Annotated[str | None, typer.Option(help="llm: the model's name there.")] = None,
    api_key_env: Annotated[str | None, typer.Option(help="llm: environment variable that holds the key.")] = None,
    concurrency: Annotated[int, typer.Option(help="llm: requests under way at a time, in each worker.")] = 8,
    max_retries: Annotated[int, typer.Option(help="llm: tries of a request after the first.")] = 4,
    timeout_s: Annotated[float, typer.Option(help="llm: seconds for one try.")] = 120.0,
    price_in: Annotated[float, typer.Option(help="llm: price of a million prompt tokens, for the report.")] = 0.0,
    price_out: Annotated[float, typer.Option(help="llm: price of a million completion tokens.")] = 0.0,
    num_workers: Annotated[int, typer.Option(help="Workers of a Ray cluster; 0 works in this process.")] = 0,
    ray_address: Annotated[
        str | None, typer.Option(help="A Ray cluster to join; local always starts one.  [default: join or start]")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the counts as JSON.")] = False,
) -> None:
    """Turn instruction/answer pairs into documents; say what was dropped and why."""
    from pasta_ray.train.annotate import Selection
    from pasta_ray.train.annotation_run import AnnotationRun
    from pasta_ray.train.annotators.independence import ALL_LEVELS, DEFAULT_DELTA, IndependenceConfig
    from pasta_ray.train.annotators.llm import LlmConfig
    from pasta_ray.train.annotators.syntax import LEVELS, SyntaxConfig
    from pasta_ray.train.endpoint import EndpointConfig
    from pasta_ray.train.pool import Pool

    levels: Sequence[SplitLevel] = [item.value for item in level or ()]
    asked: EndpointConfig | None = None
    config: AnnotatorConfig
    match annotator:
        case Annotator.syntax:
            config = SyntaxConfig(levels or LEVELS)
        case Annotator.independence:
            chosen = DEFAULT_DELTA if delta is None else delta
            config = IndependenceConfig(chosen, levels or ALL_LEVELS, device=device, dtype=dtype)
        case Annotator.llm:
            if endpoint is None or endpoint_model is None:
                raise InputError("--annotator llm needs --endpoint and --endpoint-model")
            asked = EndpointConfig(
                endpoint, endpoint_model, api_key_env, concurrency, max_retries, timeout_s, price_in, price_out
            )
            asked.api_key()  # a key that is missing is missed here, not in every worker
            config = LlmConfig(asked)
        case _:
            config = load_extension(ANNOTATORS, annotator)()
    pool = Pool(num_workers, gpus_per_worker=int(annotator == Annotator.independence and device.startswith("cuda")))
    run = AnnotationRun(
        answers, out, config, model, Selection(max_tokens=max_tokens, only_promising=only_promising), pool
    )
    counts = _with_progress(run, ray_address)
    summary = _summary(counts, asked)
    if as_json:
        typer.echo(json.dumps(summary))
    else:
        _print(summary, run)


def _with_progress(run: "AnnotationRun", ray_address: str | None) -> "Counts":
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

    if run.pool.num_workers:
        from pasta_ray.cli.ray_session import connect

        connect(ray_address)
    columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("annotating", total=None)
        return run.run(lambda done, total: progress.update(task, completed=done, total=total))


def _summary(counts: "Counts", endpoint: "EndpointConfig | None") -> dict[str, object]:
    summary: dict[str, object] = {
        "num_documents": counts.num_documents,
        "num_with_promises": counts.num_with_promises,
        "num_promises": counts.num_promises,
        "speedup": round(counts.speedup, 3),
        "dropped": dict(counts.dropped.most_common()),
    }
    if endpoint:
        summary["usage"] = dataclasses.asdict(counts.usage) | {"cost": round(counts.usage.cost(endpoint), 4)}
    return summary


def _print(summary: dict[str, object], run: "AnnotationRun") -> None:
    typer.echo(
        f"{summary['num_documents']} documents in {run.out}, {summary['num_with_promises']} of them with"
        f" {summary['num_promises']} promises; predicted speedup {summary['speedup']}×"
    )
    dropped, usage = summary["dropped"], summary.get("usage")
    assert isinstance(dropped, dict)
    for reason, number in dropped.items():
        typer.echo(f"{number} dropped: {reason}")
    if dropped:
        typer.echo(f"which ones: {run.dropped}")
    if isinstance(usage, dict):
        typer.echo(
            "{num_requests} replies, {prompt_tokens} tokens in, {completion_tokens} out, cost {cost}".format(**usage)
        )
