"""A decoder over a small random model whose vocabulary is narrowed to a few letters, so that tags are common."""

import time
from dataclasses import dataclass
from pathlib import Path

import torch

from pasta_ray.engine import Engine, EngineConfig
from pasta_ray.engine.decoder import Decoder
from pasta_ray.engine.messages import Events
from pasta_ray.lang.grammar import Phase

LETTERS = "abc 127\n<\\é"


def load_narrow(folder: Path, **settings: int) -> Decoder:
    """``folder`` holds a checkpoint with tags."""
    decoder = Decoder(Engine(EngineConfig(model=str(folder), prefill_chunk=16, **settings)))
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
    """A decoder factory."""

    folder: Path
    step_s: float

    def __call__(self, replica: str) -> PacedDecoder:
        decoder = load_narrow(self.folder)
        decoder.replica = replica
        return PacedDecoder(decoder, self.step_s)
