"""`pasta-ray train score`, `judge` and `calibrate-judge`: what samples are worth, and what judges are worth."""

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pasta_ray.errors import InputError

if TYPE_CHECKING:
    from pasta_ray.train.judges.base import Judge


class JudgeKind(StrEnum):
    """Who judges."""

    local = "local"
    llm = "llm"


JudgeOption = Annotated[
    JudgeKind,
    typer.Option(help="local: a small statistical judge, not a model of human preference. llm: asks an endpoint."),
]
WeightsOption = Annotated[
    Path | None, typer.Option(help="local: the file of `calibrate-judge`.  [default: the shipped one]")
]
BaseUrlOption = Annotated[str | None, typer.Option(help="llm: an OpenAI-compatible endpoint, up to /v1.")]
JudgeModelOption = Annotated[str | None, typer.Option(help="llm: the endpoint's model that judges.")]
KeyOption = Annotated[str | None, typer.Option(help="llm: environment variable that holds the endpoint's key.")]
ConcurrencyOption = Annotated[int, typer.Option(min=1, help="llm: requests at the same time.")]
DeviceOption = Annotated[str, typer.Option(help="local: cpu, cuda or cuda:N.")]
ThreadsOption = Annotated[int | None, typer.Option(min=1, help="local: CPU threads; torch's own choice unless given.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def score(
    samples: Annotated[Path, typer.Argument(help="JSONL file of samples, as `train sample` writes them.")],
    out: Annotated[Path, typer.Option(help="JSONL file of scored samples; ids already in it are skipped.")],
    judge: JudgeOption = JudgeKind.local,
    references: Annotated[
        Path | None,
        typer.Option(
            help="JSONL file of answers by prompt id, to compare with.  [default: the prompt's other samples]"
        ),
    ] = None,
    opponents: Annotated[
        int | None, typer.Option(min=1, help="Other samples that each is compared with; all unless given.")
    ] = None,
    weights: WeightsOption = None,
    base_url: BaseUrlOption = None,
    judge_model: JudgeModelOption = None,
    api_key_env: KeyOption = None,
    concurrency: ConcurrencyOption = 8,
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Add each sample's quality: the probability that the judge prefers it. The score of a sample is speedup plus λ
    times quality; λ is chosen later, in stage 2."""
    from rich.console import Console
    from rich.progress import Progress

    from pasta_ray.train.judges.winrate import read_answers
    from pasta_ray.train.score import Scored, read_samples, score_samples

    if out.resolve() == samples.resolve():
        raise InputError(f"--out {out}: is the file of samples itself")
    by_prompt = read_samples(samples)
    answers = read_answers(references) if references else None
    judging = _judge(judge, weights, base_url, judge_model, api_key_env, concurrency, device, threads)
    result = Scored()
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("scoring", total=None)
        steps = score_samples(by_prompt, judging, out, result, references=answers, num_opponents=opponents)
        for dealt in steps:
            total = sum(map(len, by_prompt.values())) - result.num_before
            progress.update(task, advance=dealt, total=total)
    summary = vars(result) | {"judge": judging.name, "out": str(out)} | judging.costs()
    _print(summary, as_json)
    if result.num_unscored:
        raise InputError(f"{result.num_unscored} samples got no usable verdict; the same command tries them again")


def judge(
    first: Annotated[Path, typer.Argument(help="JSONL file of reports, as `generate --out` writes them.")],
    second: Annotated[Path, typer.Argument(help="Another system's, on the same prompts.")],
    prompts: Annotated[Path, typer.Option(help="JSONL file of id and instruction (input, system).")],
    judge: JudgeOption = JudgeKind.local,
    weights: WeightsOption = None,
    base_url: BaseUrlOption = None,
    judge_model: JudgeModelOption = None,
    api_key_env: KeyOption = None,
    concurrency: ConcurrencyOption = 8,
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Win rate of one system's answers over another's: the mean probability that the judge prefers the first's."""
    from dataclasses import asdict

    from pasta_ray.train.judges.winrate import pair_up, read_answers, read_questions, win_rate

    comparisons = pair_up(read_questions(prompts), read_answers(first), read_answers(second))
    judging = _judge(judge, weights, base_url, judge_model, api_key_env, concurrency, device, threads)
    _print(
        {"first": str(first), "second": str(second)} | asdict(win_rate(judging, comparisons)) | judging.costs(), as_json
    )


def calibrate_judge(
    file: Annotated[Path, typer.Argument(help="JSONL file of pairs with human preferences.")],
    out: Annotated[Path, typer.Option(help="The local judge's file to write.")],
    features: Annotated[
        Path | None, typer.Option(help="JSONL file that keeps features; a run that was cut off goes on from it.")
    ] = None,
    model: Annotated[str, typer.Option(help="Whose likelihoods are taken.")] = "smollm2-135m-instruct",
    likelihood: Annotated[
        bool, typer.Option(help="Weigh likelihoods too, which cost two forward passes of the model an answer.")
    ] = True,
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fit the local judge's weights on half of the pairs; report on the others how often it agrees with people."""
    from rich.console import Console
    from rich.progress import track

    from pasta_ray.train.judges import calibration, local
    from pasta_ray.train.judges.features import LIKELIHOODS, extract_all, load_extractor

    _set_threads(threads)
    pairs = calibration.read_pairs(file)
    asked = [
        (pair.comparison.question, answer)
        for pair in pairs
        for answer in (pair.comparison.first, pair.comparison.second)
    ]
    wanted = [name for name in calibration.SIGNS if likelihood or name not in LIKELIHOODS]
    extractor = load_extractor(model, wanted, device=device)
    found = extract_all(
        extractor, asked, features, lambda steps: track(steps, "features", console=Console(stderr=True))
    )
    both = [(found[first], found[second]) for first, second in zip(asked[::2], asked[1::2], strict=True)]
    weights = local.calibrate(pairs, both, model, local.describe_data(file, pairs))
    weights.save(out)
    if as_json:
        typer.echo(weights.model_dump_json())
        return
    typer.echo(f"{out}: weights of {', '.join(weights.used)}")
    for row in weights.agreement:
        judged, longer = (f"{row[name]:.1%}" if row[name] is not None else "-" for name in ("judge", "longer"))
        typer.echo(f"{row['source']}: {row['pairs']} pairs, judge {judged}, longer {longer}, random 50.0%")


def _judge(
    kind: JudgeKind,
    weights: Path | None,
    base_url: str | None,
    model: str | None,
    api_key_env: str | None,
    concurrency: int,
    device: str,
    threads: int | None,
) -> "Judge":
    if kind is JudgeKind.local:
        if base_url or model:
            raise InputError("--base-url and --judge-model go with --judge llm")
        from pasta_ray.train.judges.local import LocalJudge

        _set_threads(threads)
        return LocalJudge.load(weights, device=device)
    if not base_url or not model:
        raise InputError("--judge llm needs --base-url and --judge-model")
    if weights:
        raise InputError("--weights goes with --judge local")
    from pasta_ray.train.endpoint import EndpointConfig
    from pasta_ray.train.judges.llm import LlmJudge

    return LlmJudge(EndpointConfig(base_url, model, api_key_env=api_key_env, concurrency=concurrency))


def _set_threads(threads: int | None) -> None:
    import torch

    if threads:
        torch.set_num_threads(threads)


def _print(summary: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(summary))
        return
    for name, value in summary.items():
        typer.echo(f"{name}: {value:.4f}" if isinstance(value, float) else f"{name}: {value}")
