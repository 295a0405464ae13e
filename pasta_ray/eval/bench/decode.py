"""`bench decode`: greedy tokens a second, of one request, of many at once, and of ``transformers``."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial

from pasta_ray.engine import Engine
from pasta_ray.errors import InputError
from pasta_ray.eval.bench.figures import Result, Say, interleave
from pasta_ray.eval.bench.machine import Machine
from pasta_ray.eval.bench.reference import Reference
from pasta_ray.eval.bench.workload import Decoding, check_room, decode, describe_engines, random_prompts

NUM_WARMUPS = 1
ONE = "1 request"
REFERENCE = "transformers float32: 1 request"


@dataclass(frozen=True)
class DecodeOptions:
    """``tokens`` are decoded behind ``context`` tokens; the first, which the prefill gives, is not in the rates."""

    context: int = 300
    tokens: int = 128
    requests: int = 16
    reps: int = 5

    def __post_init__(self) -> None:
        if self.tokens < 2:
            raise InputError(f"tokens is {self.tokens}; allowed: 2 or more, since the first is the prefill's")
        if self.requests < 2:
            raise InputError(f"requests is {self.requests}; allowed: 2 or more, since one is always measured")


def bench_decode(
    engines: Mapping[str, Engine], reference: Reference | None, options: DecodeOptions, machine: Machine, say: Say
) -> Result:
    """``reference`` None leaves the comparison out."""
    result = Result("decode", machine, asdict(options) | describe_engines(engines))
    many = f"{options.requests} requests"
    vocab_sizes = [engine.vocab_size for engine in engines.values()] + ([reference.vocab_size] if reference else [])
    prompts = random_prompts(options.requests, options.context, min(vocab_sizes))
    cases: dict[str, Callable[[], float]] = {}
    for label, engine in engines.items():
        check_room(engine, options.context, options.tokens)
        cases[f"{label}: {ONE}"] = partial(_alone, engine, prompts[0], options.tokens)
        cases[f"{label}: {many}"] = partial(_together, engine, prompts, options.tokens)
    if reference:
        cases[REFERENCE] = lambda: reference.decode(prompts[0], options.tokens).tokens_per_s
    for name, rates in interleave(cases, num_warmups=NUM_WARMUPS, num_reps=options.reps, say=say).items():
        result.add(name, "tokens/s", rates)
    for label in engines:
        result.compare(f"{label}: {many} / {ONE}", f"{label}: {many}", f"{label}: {ONE}")
        if reference:
            result.compare(f"{label} / transformers float32", f"{label}: {ONE}", REFERENCE)
    first, *others = engines
    for label in others:
        result.compare(f"{label} / {first}", f"{label}: {ONE}", f"{first}: {ONE}")
    return result


def _alone(engine: Engine, prompt: Sequence[int], num_tokens: int) -> float:
    return decode(engine, prompt, num_tokens).tokens_per_s


def _together(engine: Engine, prompts: Sequence[Sequence[int]], num_tokens: int) -> float:
    """Tokens a second of all requests, once all are prefilled."""
    decoding = Decoding(engine, prompts)
    seconds = sum(decoding.step() for _ in range(num_tokens - 1))
    decoding.free()
    return len(prompts) * (num_tokens - 1) / seconds
