"""Several models in one replica: a decoder for each, behind the face of one."""

from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING

from pasta_ray.actors.messages import DecoderLike
from pasta_ray.engine.messages import BodyNews, BodyRequest, Counters, Events, Request
from pasta_ray.errors import NotFoundError

if TYPE_CHECKING:
    from pasta_ray.engine.decoder import Decoder


class ModelDecoders:
    """Each request is answered by the decoder that its ``model`` names; its id is known to no other one.

    A step is a step of one decoder, of those that are busy the next in turn: what a model brought is on its way, and
    commands are heard, before the next model computes.
    """

    def __init__(self, decoders: Mapping[str, DecoderLike]) -> None:
        assert decoders, "a replica holds at least one model"
        self._decoders = dict(decoders)
        self._turns = deque(decoders.values())

    @property
    def busy(self) -> bool:
        return any(decoder.busy for decoder in self._decoders.values())

    @property
    def num_slots(self) -> int:
        return sum(decoder.num_slots for decoder in self._decoders.values())

    @property
    def num_branches(self) -> int:
        return sum(decoder.num_branches for decoder in self._decoders.values())

    @property
    def num_requests(self) -> int:
        return sum(decoder.num_requests for decoder in self._decoders.values())

    @property
    def counters(self) -> Counters:
        return sum((decoder.counters for decoder in self._decoders.values()), Counters())

    @property
    def parts(self) -> Mapping[str, "Decoder"]:
        return {name: part for name, decoder in self._decoders.items() for part in decoder.parts.values()}

    def receive(self, request_id: str, path: str, news: BodyNews | None) -> None:
        for decoder in self._decoders.values():
            decoder.receive(request_id, path, news)

    def submit(self, request: Request | BodyRequest) -> None:
        """Raises NotFoundError for a model that is not here, and what its decoder raises."""
        decoder = self._decoders.get(request.model)
        if decoder is None:
            raise NotFoundError(f"model {request.model!r} is not in this replica; it holds {', '.join(self._decoders)}")
        decoder.submit(request)

    def cancel(self, request_id: str) -> None:
        """Decoders leave ids alone that they do not know, so whose the request is need not be written down."""
        for decoder in self._decoders.values():
            decoder.cancel(request_id)

    def step(self) -> list[Events]:
        for _ in range(len(self._turns)):
            decoder = self._turns[0]
            self._turns.rotate(-1)
            if decoder.busy:
                return decoder.step()
        return []
