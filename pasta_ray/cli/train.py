"""`pasta-ray annotate` and `pasta-ray train`: from answers to documents, from documents to an adapter."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from pasta_ray.cli.sampling import sample
from pasta_ray.cli.scoring import calibrate_judge, judge, score
from pasta_ray.errors import InputError

train_app = typer.Typer(help="Teach a model to keep its promises.", no_args_is_help=True)
train_app.command()(sample)
train_app.command()(score)
train_app.command()(judge)
train_app.command()(calibrate_judge)


class Annotator(StrEnum):
    """What turns an answer into a document."""

    syntax = "syntax"


class Level(StrEnum):
    """What the syntax annotator splits at."""

    section = "section"
    list = "list"
    paragraph = "paragraph"


def annotate(
    answers: Annotated[list[Path], typer.Argument(help="JSONL files of id, instruction and output (input, system).")],
    out: Annotated[Path, typer.Option(help="JSONL file of documents to write.")],
    annotator: Annotated[Annotator, typer.Option(help="How to find the parts.")] = Annotator.syntax,
    level: Annotated[
        list[Level] | None,
        typer.Option(help="Where `syntax` may split; all unless given. The outermost that gains wins."),
    ] = None,
    model: Annotated[str, typer.Option(help="Whose tokens lengths are counted in.")] = "smollm2-135m-instruct",
    max_tokens: Annotated[int, typer.Option(help="Longer answers are dropped.")] = 400,
    only_promising: Annotated[bool, typer.Option(help="Drop answers that do not split.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the counts as JSON.")] = False,
) -> None:
    """Turn instruction/answer pairs into documents; say what was dropped and why."""
    from rich.console import Console
    from rich.progress import track

    from pasta_ray.engine.config import EngineConfig
    from pasta_ray.engine.tokenizer import Tokenizer
    from pasta_ray.engine.weights import resolve_model
    from pasta_ray.train.annotate import Annotated as Counts
    from pasta_ray.train.annotate import Selection, annotate_pairs, read_pairs

    assert annotator is Annotator.syntax
    if out.resolve() in [path.resolve() for path in answers]:
        raise InputError(f"--out {out}: is one of the answers' files, which it would overwrite")
    tokenizer = Tokenizer.load(resolve_model(EngineConfig(model=model)), None)
    selection = Selection(
        max_tokens=max_tokens, only_promising=only_promising, levels=tuple(item.value for item in level or Level)
    )
    counts = Counts()
    pairs = [pair for path in answers for pair in read_pairs(path)]
    progress = track(pairs, "annotating", console=Console(stderr=True))
    records = list(annotate_pairs(progress, lambda text: len(tokenizer.encode(text)), selection, counts))
    try:
        out.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    except OSError as error:
        raise InputError(f"--out {out}: {error.strerror}") from error
    summary = vars(counts) | {"dropped": dict(counts.dropped)}
    if as_json:
        typer.echo(json.dumps(summary))
        return
    typer.echo(
        f"{counts.num_documents} documents, {counts.num_with_promises} of them with {counts.num_promises} promises"
    )
    for reason, number in counts.dropped.most_common():
        typer.echo(f"{number} dropped: {reason}")


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
    from pasta_ray.train.config import load_config

    settings = load_config(config, set_ or [])
    import ray

    from pasta_ray.train.sft import run_sft

    if not ray.is_initialized():
        ray.init(num_cpus=num_cpus, include_dashboard=True)
    adapter = run_sft(settings)
    typer.echo(json.dumps({"adapter": str(adapter)}) if as_json else f"adapter: {adapter}")
