"""`bench step`: what one engine step costs, what that is made of, and how far it is from what memory allows."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial

from pasta_ray.engine import Engine
from pasta_ray.engine.messages import Sampling
from pasta_ray.eval.bench.figures import Result, Say, interleave
from pasta_ray.eval.bench.machine import Machine
from pasta_ray.eval.bench.profile import Product, Profile, products_alone, profile_step, weight_bytes
from pasta_ray.eval.bench.workload import Decoding, check_room, describe_engines, random_prompts

PREFILL_TOKENS = 256
PROFILED = (1, 8)
NUM_WARMUPS = 2


@dataclass(frozen=True)
class StepOptions:
    """``rows`` are numbers of branches of one request, ``requests`` numbers of requests of one branch. A branch sees
    ``context`` tokens at first; its slab also holds what its siblings write in the repetitions."""

    context: int = 300
    rows: tuple[int, ...] = (1, 2, 4, 8, 16)
    requests: tuple[int, ...] = (1, 4, 16)
    reps: int = 15


def bench_step(engines: Mapping[str, Engine], options: StepOptions, machine: Machine, say: Say) -> Result:
    result = Result("step", machine, asdict(options) | describe_engines(engines))
    for engine in engines.values():
        check_room(engine, options.context, 2 * (NUM_WARMUPS + options.reps) + 2)
        check_room(engine, PREFILL_TOKENS, 1)
    _time_steps(result, engines, options, say)
    for label, engine in engines.items():
        _profile(result, label, engine, options, say)
    _compare(result, list(engines), options)
    return result


def _branches(count: int) -> str:
    return "1 branch" if count == 1 else f"{count} branches"


def _requests(count: int) -> str:
    return "1 request" if count == 1 else f"{count} requests"


def _time_steps(result: Result, engines: Mapping[str, Engine], options: StepOptions, say: Say) -> None:
    cases = {}
    decodings = []
    for label, engine in engines.items():
        prompts = random_prompts(max(options.requests), options.context, engine.vocab_size)
        for count in options.rows:
            say(f"{label}: {_branches(count)}, prefill")
            decodings.append(Decoding(engine, prompts[:1], count))
            cases[f"{label}: step, {_branches(count)}"] = decodings[-1].steady_step
        for count in options.requests:
            say(f"{label}: {_requests(count)}, prefill")
            decodings.append(Decoding(engine, prompts[:count]))
            cases[f"{label}: step, {_requests(count)}"] = decodings[-1].steady_step
        (prompt,) = random_prompts(1, PREFILL_TOKENS, engine.vocab_size)
        cases[f"{label}: prefill, {PREFILL_TOKENS} tokens"] = partial(_prefill, engine, prompt)
    for name, seconds in interleave(cases, num_warmups=NUM_WARMUPS, num_reps=options.reps, say=say).items():
        result.add(name, "ms", [1000 * s for s in seconds])
    for decoding in decodings:
        decoding.free()


def _prefill(engine: Engine, prompt_ids: Sequence[int]) -> float:
    """Seconds from opening a request to its first token."""
    start = time.perf_counter()
    branch = engine.open(prompt_ids, sampling=Sampling())
    while len(branch.tokens) == len(prompt_ids):
        engine.step()
    seconds = time.perf_counter() - start
    engine.free(branch)
    return seconds


def _profile(result: Result, label: str, engine: Engine, options: StepOptions, say: Say) -> None:
    prompts = random_prompts(1, options.context, engine.vocab_size)
    decodings = {count: Decoding(engine, prompts, count) for count in PROFILED}
    steps = {_branches(count): partial(profile_step, engine, decoding) for count, decoding in decodings.items()}
    profiles = interleave(
        steps, num_warmups=NUM_WARMUPS, num_reps=options.reps, say=lambda text: say(f"{label}: profile, {text}")
    )
    for decoding in decodings.values():
        decoding.free()
    products = {count: found[-1].products for count, found in profiles.items()}
    alone = _alone(products, options.reps, say)
    for count, found in profiles.items():
        _add_profile(result, f"{label}: profile, {count}", found)
        result.add(f"{label}: products alone, {count}", "ms", [1000 * s for s in alone[count]])
    num_bytes = weight_bytes(engine, products[_branches(1)])
    result.add(f"{label}: weights a step reads", "bytes", [num_bytes])
    result.add(f"{label}: memory limit of a step", "ms", [num_bytes / result.machine.bandwidth_gb_s / 1e6])


def _alone(products: Mapping[str, tuple[Product, ...]], reps: int, say: Say) -> dict[str, list[float]]:
    cases = {count: partial(products_alone, found) for count, found in products.items()}
    return interleave(cases, num_warmups=NUM_WARMUPS, num_reps=reps, say=say)


def _add_profile(result: Result, name: str, profiles: Sequence[Profile]) -> None:
    result.add(f"{name}: products", "ms", [1000 * profile.gemm_s for profile in profiles])
    result.add(f"{name}: attention", "ms", [1000 * profile.attention_s for profile in profiles])
    result.add(f"{name}: sampling", "ms", [1000 * profile.sampling_s for profile in profiles])
    result.add(f"{name}: rest", "ms", [1000 * profile.rest_s for profile in profiles])


def _compare(result: Result, labels: Sequence[str], options: StepOptions) -> None:
    fewest = min(options.rows)
    steps = [f"step, {_branches(count)}" for count in options.rows]
    steps += [f"step, {_requests(count)}" for count in options.requests]
    for label in labels:
        first = f"{label}: step, {_branches(fewest)}"
        for count in options.rows:
            if count != fewest:
                name = f"{label}: step, {_branches(count)}"
                result.compare(f"{name} / {_branches(fewest)}", name, first)
        result.compare(f"{first} / memory limit", first, f"{label}: memory limit of a step")
    for label in labels[1:]:
        for step in (*steps, f"prefill, {PREFILL_TOKENS} tokens"):
            result.compare(f"{step}: {labels[0]} / {label}", f"{labels[0]}: {step}", f"{label}: {step}")
