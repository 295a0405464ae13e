"""The same work by ``transformers``: what a user has without this package."""

import time
from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.generation.streamers import BaseStreamer

from pasta_ray.engine import EngineConfig
from pasta_ray.engine.weights import resolve_model
from pasta_ray.eval.bench.workload import Decoded


class Reference:
    """The base model of ``config`` in float32, with the library's default settings."""

    def __init__(self, config: EngineConfig) -> None:
        # Any: the library's own types refuse their own `generate`.
        self.model: Any = AutoModelForCausalLM.from_pretrained(resolve_model(config), dtype=torch.float32)

    @property
    def vocab_size(self) -> int:
        return int(self.model.config.vocab_size)

    def decode(self, prompt_ids: Sequence[int], num_tokens: int) -> Decoded:
        """Exactly ``num_tokens`` greedy tokens by ``generate``."""
        clock = _Clock()
        inputs = torch.tensor([prompt_ids])
        start = time.perf_counter()
        output = self.model.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            min_new_tokens=num_tokens,
            max_new_tokens=num_tokens,
            do_sample=False,
            pad_token_id=0,
            streamer=clock,
        )
        tokens = output[0, len(prompt_ids) :].tolist()
        assert len(tokens) == num_tokens == len(clock.times) - 1, "generate stopped early"
        return Decoded(tuple(tokens), clock.times[1] - start, clock.times[-1] - clock.times[1])


class _Clock(BaseStreamer):
    """When ``generate`` gave the prompt, and then each token."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:  # noqa: ARG002  # the interface's
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Nothing is left to do."""
