"""A decoder over a small random model that writes tags often, also in a replica's process: it needs no other test."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from pasta_ray.engine import Engine, EngineConfig
from pasta_ray.engine.curve import StepCurve
from pasta_ray.engine.decoder import Decoder
from pasta_ray.lang.grammar import Phase

LETTERS = "abc 127\n<\\é"


def load_small(folder: Path, replica: str = "local", curve: StepCurve | None = None, **settings: int) -> Decoder:
    """Its vocabulary is narrowed to a few letters, so that tags are common, and it ends only once it may promise no
    more."""
    decoder = Decoder(Engine(EngineConfig(model=str(folder), prefill_chunk=16, **settings)), replica, curve=curve)
    tokenizer, tags, masks = decoder.engine.tokenizer, decoder.engine.tags, decoder.engine.masks
    assert tags is not None
    assert masks is not None
    kept = {*tags.ids, *tokenizer.encode(LETTERS), *tokenizer.stop_ids}
    masks &= torch.tensor([token in kept for token in range(len(masks[0]))])
    masks[[Phase.MAIN, Phase.MAIN_OPEN], tokenizer.stop_ids[0]] = False
    return decoder


@dataclass(frozen=True)
class MakeSmallDecoder:
    """A decoder factory. Steps cost what ``points`` say, as far as others hear; without any, nothing is known."""

    folder: str
    points: Sequence[tuple[int, float]] = ()

    def __call__(self, replica: str) -> Decoder:
        torch.set_num_threads(1)
        return load_small(Path(self.folder), replica, StepCurve(list(self.points)) if self.points else None)
