"""Work to time: prompts of random tokens, engines in several numerics, and branches that decode side by side."""

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pasta_ray.engine import Engine, EngineConfig
from pasta_ray.engine.branch import Branch
from pasta_ray.engine.messages import MAIN_BRANCH, Sampling
from pasta_ray.errors import InputError


@dataclass(frozen=True)
class Decoded:
    """One prompt's greedy answer: ``ttft_s`` until its first token, ``decode_s`` from there to its last."""

    tokens: tuple[int, ...]
    ttft_s: float
    decode_s: float

    @property
    def tokens_per_s(self) -> float:
        return (len(self.tokens) - 1) / self.decode_s


def load_engines(config: EngineConfig, quantizations: Sequence[str | None]) -> dict[str, Engine]:
    """One engine a quantisation, by the name of its numerics. No prefix is kept: equal prompts are computed anew."""
    configs = [replace(config, quantization=kind, prefix_cache_bytes=0) for kind in dict.fromkeys(quantizations)]
    return {numerics(config): Engine(config) for config in configs}


def numerics(config: EngineConfig) -> str:
    return config.quantization or config.dtype


def describe_engines(engines: Mapping[str, Engine]) -> dict[str, object]:
    """What the engines have in common, and the numerics in which they differ."""
    config = next(iter(engines.values())).config
    return {"model": config.model, "adapter": config.adapter, "numerics": list(engines)}


def random_prompts(num_prompts: int, num_tokens: int, vocab_size: int) -> list[list[int]]:
    """The same for the same arguments."""
    rng = random.Random(0)
    return [[rng.randrange(vocab_size) for _ in range(num_tokens)] for _ in range(num_prompts)]


def check_room(engine: Engine, context: int, num_tokens: int) -> None:
    """Raise InputError where ``num_tokens`` behind ``context`` exceed the model."""
    if context + num_tokens > engine.max_positions:
        raise InputError(
            f"a context of {context} tokens and {num_tokens} more exceed the model's {engine.max_positions} positions"
        )


def decode(engine: Engine, prompt_ids: Sequence[int], num_tokens: int) -> Decoded:
    """Exactly ``num_tokens`` greedy tokens behind a prompt; end-of-answer tokens end nothing."""
    start = time.perf_counter()
    branch = engine.open(prompt_ids, sampling=Sampling())
    while len(branch.tokens) == len(prompt_ids):
        engine.step()
    first = time.perf_counter()
    while len(branch.tokens) < len(prompt_ids) + num_tokens:
        engine.step()
    end = time.perf_counter()
    engine.free(branch)
    return Decoded(tuple(branch.tokens[len(prompt_ids) :]), first - start, end - first)


class Decoding:
    """One request a prompt, each of ``num_branches`` branches, prefilled and ready to decode.

    Held while it does not step, so that several share an engine and each steps alone.
    """

    def __init__(self, engine: Engine, prompts: Sequence[Sequence[int]], num_branches: int = 1) -> None:
        self._engine = engine
        self._mains: list[Branch] = []
        self._branches: list[Branch] = []
        for prompt in prompts:
            main = self._prefilled(prompt)
            self._mains.append(main)
            self._branches.append(main)
            for number in range(1, num_branches):
                child = engine.fork(main, prompt[:1], path=f"{MAIN_BRANCH}.{number}", sampling=Sampling())
                engine.hold(child)
                self._branches.append(child)

    def _prefilled(self, prompt: Sequence[int]) -> Branch:
        main = self._engine.open(prompt, sampling=Sampling())
        while len(main.tokens) == len(prompt):
            self._engine.step()
        self._engine.hold(main)
        return main

    def step(self) -> float:
        """One token for every branch; the seconds it took."""
        for branch in self._branches:
            self._engine.release(branch)
        start = time.perf_counter()
        outputs = self._engine.step()
        seconds = time.perf_counter() - start
        for branch in self._branches:
            self._engine.hold(branch)
        assert len(outputs) == len(self._branches), "every branch decodes in every step, and nobody else does"
        return seconds

    def steady_step(self) -> float:
        """The second of two steps. The first finds the caches full of what other cases have left there, which a
        service that goes on decoding does not."""
        self.step()
        return self.step()

    def free(self) -> None:
        for main in self._mains:
            self._engine.free(main)
