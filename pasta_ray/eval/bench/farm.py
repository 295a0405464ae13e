"""`bench farm`: answers whose bodies stay, leave, or go where they are done first, on the same replicas in one run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

from pasta_ray.eval.bench.figures import Result, Say, interleave
from pasta_ray.eval.bench.machine import Machine

NUM_WARMUPS = 1
PROMPTS = (
    "Give me five tips for sleeping well.",
    "What are the benefits of regular exercise?",
    "How do I plan a trip to Japan?",
    "Compare cats and dogs as pets.",
)


@dataclass(frozen=True)
class FarmOptions:
    """``concurrent`` prompts are answered at once by ``replicas``, each in up to ``max_tokens``."""

    replicas: int = 2
    concurrent: int = 1
    max_tokens: int = 256
    reps: int = 5


@dataclass(frozen=True)
class FarmRound:
    """All prompts answered once: each answer's seconds, the tokens and bodies of all, bodies that were sent away, the
    KV bytes that went and came back, and the documents."""

    wall_s: float
    answer_s: tuple[float, ...]
    num_tokens: int
    num_bodies: int
    num_sent: int
    num_bytes: int
    documents: tuple[str, ...]


def bench_farm(
    rounds: Mapping[str, Callable[[], FarmRound]],
    options: FarmOptions,
    settings: Mapping[str, object],
    machine: Machine,
    say: Say,
) -> Result:
    """``rounds`` by policy; the first is what the others are compared with."""
    result = Result("farm", machine, asdict(options) | dict(settings))
    measured = interleave(rounds, num_warmups=NUM_WARMUPS, num_reps=options.reps, say=say)
    base = next(iter(rounds))
    for policy, found in measured.items():
        result.add(f"{policy}: an answer", "s", [seconds for each in found for seconds in each.answer_s])
        result.add(f"{policy}: throughput", "tokens/s", [each.num_tokens / each.wall_s for each in found])
        result.add(f"{policy}: bodies sent away", "share", [each.num_sent / max(1, each.num_bodies) for each in found])
        result.add(f"{policy}: KV moved for a round", "bytes", [each.num_bytes for each in found])
        result.add(f"{policy}: answers as those of {base}", "share", [_agreement(measured[base], found)])
        if policy != base:
            result.compare(f"{base} / {policy}: an answer", f"{base}: an answer", f"{policy}: an answer")
            result.compare(f"{policy} / {base}: throughput", f"{policy}: throughput", f"{base}: throughput")
    return result


def _agreement(some: Sequence[FarmRound], others: Sequence[FarmRound]) -> float:
    """The share of documents that are the same, round by round."""
    pairs = [
        pair
        for one, other in zip(some, others, strict=True)
        for pair in zip(one.documents, other.documents, strict=True)
    ]
    return sum(one == other for one, other in pairs) / len(pairs)
