"""What a process loads for its part: a replica its decoder, a client of replicas only the tokenizer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from pasta_ray.actors.messages import DecoderLike
from pasta_ray.engine.config import DraftConfig, EngineConfig


class TokenizerLike(Protocol):
    """What a client needs of `pasta_ray.engine.tokenizer.Tokenizer`."""

    def encode(self, text: str) -> list[int]: ...
    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]: ...


@dataclass(frozen=True)
class LoadDecoder:
    """Called in a replica's own process; the weights are read from the machine's cache folder."""

    config: EngineConfig
    draft: DraftConfig = field(default_factory=DraftConfig)

    def __call__(self, replica: str) -> DecoderLike:
        from pasta_ray.engine import Engine
        from pasta_ray.engine.decoder import Decoder

        return Decoder(Engine(self.config), replica, self.draft)


@dataclass(frozen=True)
class LoadTokenizer:
    """The tokenizer that the engine of the same config has, without weights."""

    config: EngineConfig

    def __call__(self) -> TokenizerLike:
        from pasta_ray.engine.tokenizer import Tokenizer
        from pasta_ray.engine.weights import load_tags, resolve_adapter, resolve_model

        places = [resolve_model(self.config)]
        if self.config.adapter:
            places.insert(0, resolve_adapter(self.config.adapter))
        tags = next(filter(None, map(load_tags, places)), None)
        return Tokenizer.load(places[-1], tags)
