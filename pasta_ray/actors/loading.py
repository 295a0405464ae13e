"""What a process loads for its part: a replica its decoder, a client of replicas only the tokenizer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from pasta_ray.actors.messages import DecoderFactory, DecoderLike
from pasta_ray.actors.models import ModelDecoders
from pasta_ray.engine.config import DraftConfig, EngineConfig
from pasta_ray.errors import ModelError, PastaError


class TokenizerLike(Protocol):
    """What a client needs of `pasta_ray.engine.tokenizer.Tokenizer`."""

    def encode(self, text: str) -> list[int]: ...
    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]: ...


@dataclass(frozen=True)
class LoadDecoder:
    """Called in a replica's own process; the weights are read from the machine's cache folder.

    A decoder that is ``timed`` takes a few steps first, to know when it is full and where a body is done soonest. One
    that ``shares`` prefixes with other replicas reads the weights once more, for their fingerprint.
    """

    config: EngineConfig
    draft: DraftConfig = field(default_factory=DraftConfig)
    timed: bool = False
    shares: bool = False

    def __call__(self, replica: str) -> DecoderLike:
        from pasta_ray.engine import Engine
        from pasta_ray.engine.calibration import calibrate
        from pasta_ray.engine.decoder import Decoder

        engine = Engine(self.config)
        if self.shares:
            _ = engine.fingerprint  # now, and not while requests wait
        return Decoder(engine, replica, self.draft, calibrate(engine) if self.timed else None)


@dataclass(frozen=True)
class LoadModels:
    """Several decoders for one replica, by the names that requests choose them by. Called in the replica's process."""

    makers: Mapping[str, DecoderFactory]

    def __call__(self, replica: str) -> DecoderLike:
        """Raises ModelError, naming the model, for one that cannot be loaded."""
        decoders: dict[str, DecoderLike] = {}
        for name, make in self.makers.items():
            try:
                decoders[name] = make(replica)
            except PastaError as error:
                raise ModelError(f"model {name!r} cannot be loaded: {error}") from error
        return ModelDecoders(decoders)


@dataclass(frozen=True)
class LoadTokenizer:
    """The tokenizer that the engine of the same config has, without weights."""

    config: EngineConfig

    def __call__(self) -> TokenizerLike:
        from pasta_ray.engine.tokenizer import Tokenizer
        from pasta_ray.engine.weights import find_tags, resolve_model

        return Tokenizer.load(resolve_model(self.config), find_tags(self.config))
