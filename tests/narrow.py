"""A decoder over a small random model whose vocabulary is narrowed to a few letters, so that tags are common."""

import time
from dataclasses import dataclass
from pathlib import Path

import torch

from pasta_ray.engine import Engine, EngineConfig
from pasta_ray.engine.curve import StepCurve
from pasta_ray.engine.decoder import Decoder
from pasta_ray.engine.messages import Events
from pasta_ray.lang.grammar import Phase

LETTERS = "abc 127\n<\\é"


def load_narrow(folder: Path, replica: str = "local", curve: StepCurve | None = None, **settings: int) -> Decoder:
    """``folder`` holds a checkpoint with tags."""
    engine = Engine(EngineConfig(model=str(folder), prefill_chunk=16, **settings))
    decoder = Decoder(engine, replica, curve=curve)
    tokenizer, tags, masks = decoder.engine.tokenizer, decoder.engine.tags, decoder.engine.masks
    assert tags is not None
    assert masks is not None
    kept = {*tags.ids, *tokenizer.encode(LETTERS), *tokenizer.stop_ids}
    masks &= torch.tensor([token in kept for token in range(decoder.engine.vocab_size)])
    masks[[Phase.MAIN, Phase.MAIN_OPEN], tokenizer.stop_ids[0]] = False  # it ends only once it may promise no more
    return decoder


class PacedDecoder:
    """A decoder whose steps take at least ``step_s``."""

    def __init__(self, decoder: Decoder, step_s: float) -> None:
        self._decoder = decoder
        self._step_s = step_s

    def __getattr__(self, name: str) -> object:
        return getattr(self._decoder, name)

    def step(self) -> list[Events]:
        time.sleep(self._step_s)
        return self._decoder.step()


@dataclass(frozen=True)
class MakeNarrowDecoder:
    """A decoder factory. ``points`` are what steps are taken to cost at first; without any that is not known."""

    folder: Path
    step_s: float = 0.0
    points: tuple[tuple[int, float], ...] = ()

    def __call__(self, replica: str) -> PacedDecoder:
        torch.set_num_threads(1)
        curve = StepCurve(list(self.points)) if self.points else None
        return PacedDecoder(load_narrow(self.folder, replica, curve), self.step_s)
