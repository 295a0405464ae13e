"""Made-up answers whose figures can be computed by hand."""

from collections.abc import Sequence

from pasta_ray.cli import main
from pasta_ray.engine.messages import BranchReport, FinishReason, Parallel, Report, Timing, Usage
from pasta_ray.eval.answers import Answer, answer_id

LOOP = "one two three four five six seven " * 8


def run(*args: object) -> int:
    """The exit code of `pasta-ray eval ARGS`."""
    try:
        main(["eval", *map(str, args)])
    except SystemExit as exit_:
        return int(exit_.code or 0)
    return 0


def body(predicted: int | None, tokens: int, reason: FinishReason = "stop", number: int = 1) -> BranchReport:
    return BranchReport(f"0.{number}", "0", "topic", predicted, tokens, 1, 2, 0.0, 1.0, "local", reason)


def report(
    wall_s: float = 1.0,
    *,
    text: str = "a fine answer",
    tokens: int = 10,
    steps: int = 10,
    tags: int = 0,
    reason: FinishReason = "stop",
    method: str = "pasta",
    bodies: Sequence[BranchReport] = (),
) -> Report:
    """An answer of ``tokens`` visible tokens, in ``steps`` model steps; its prefill took no time."""
    return Report(
        id="r",
        method=method,
        text=text,
        document=text,
        finish_reason=reason,
        usage=Usage(5, tokens, tags),
        timing=Timing(wall_s, wall_s / 10, 0.0),
        parallel=Parallel(len(bodies), 0, 1, steps, tokens, tokens / steps),
        branches=tuple(bodies),
    )


def answer(prompt: str, system: str, given: Report | None, repetition: int = 0) -> Answer:
    return Answer(
        id=answer_id(prompt, system, repetition),
        prompt_id=prompt,
        system=system,
        repetition=repetition,
        report=given,
        refusal="" if given else "too long",
    )
